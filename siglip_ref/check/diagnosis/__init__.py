"""From what is wrong to a cause: mistakes that explain it."""
