"""What a training sees: pictures and texts, in batches, each time a little otherwise."""
