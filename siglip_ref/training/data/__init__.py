"""Pictures with captions to train on: drawn shapes, real digits, your own folder or list."""
