"""Training over ranks: gradients that add up, and SigLIP 2's objective."""
