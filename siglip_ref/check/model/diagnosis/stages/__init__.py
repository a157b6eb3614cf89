"""A wrong model worked out stage by stage: what each may compute, tried and proven."""
