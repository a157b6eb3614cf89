"""The towers, written on ops: encoder block, image tower, text tower, two-tower model."""
