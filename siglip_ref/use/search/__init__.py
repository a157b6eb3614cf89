"""Photos on a plain CPU: an index of their vectors, search, duplicates, classes, heat maps."""
