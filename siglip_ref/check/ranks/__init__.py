"""check_distributed_loss."""
