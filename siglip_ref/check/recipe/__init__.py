"""The check of SigLIP 2's recipe: a program's losses and gradients at golden vectors."""
