"""Weights of other libraries: their names and layouts as data, readers that never run code, one loader for all."""
