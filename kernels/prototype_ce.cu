// The prototype cross-entropy and what else reads the expert's distributions.
