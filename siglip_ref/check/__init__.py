"""Checking other implementations: values and every gradient, with a verdict, the evidence, and what to do next."""
