"""Sums whose bits do not depend on their order, and the loss made of them."""
