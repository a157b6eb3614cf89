"""check_ranks."""
