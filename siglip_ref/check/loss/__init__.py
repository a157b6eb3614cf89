"""check_loss."""
