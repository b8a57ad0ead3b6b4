// Pixels to token streams: patches, positions, mask tokens.
