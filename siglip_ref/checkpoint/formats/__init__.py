"""Files of weights, by format."""
