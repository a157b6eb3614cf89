"""Processes beside the ranks: who failed, where and why; then everything ends."""
