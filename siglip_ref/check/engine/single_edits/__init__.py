"""What a check would have seen of every single edit of the specification: measured once, shipped as data."""
