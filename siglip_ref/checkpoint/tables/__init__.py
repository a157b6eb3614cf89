"""Names of tensors, by library."""
