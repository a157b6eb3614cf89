"""What a training keeps on disk."""
