"""The paper's studies at toy scale, and what only they vary."""
