"""What all kernels stand on: compilation, threads, matrix products, elementary functions."""
