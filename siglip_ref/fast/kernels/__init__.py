"""Compiled loops that several twins share."""
