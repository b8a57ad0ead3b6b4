// Attention inside segments of a token stream, forward and backward.
