"""check_model."""
