// Dense convolutions with stride 1 as implicit matrix products, forward and backward.
