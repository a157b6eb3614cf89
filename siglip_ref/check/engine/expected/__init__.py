"""The inputs at which a loss is judged, its exact values there, and what is allowed."""
