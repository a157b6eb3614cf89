"""What a loss computes, worked out by experiments: its formula as data, and whether it was proven."""
