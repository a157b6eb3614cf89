"""Where a model begins to deviate, and which mistakes explain it."""
