"""Training: one loop for one process and for many ranks, that can be killed at any instant."""
