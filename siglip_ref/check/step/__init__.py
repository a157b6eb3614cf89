"""check_step."""
