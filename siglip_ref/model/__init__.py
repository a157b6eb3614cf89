"""SigLIP put together: encoder, towers, the two-tower model and its loss; optimisers, accumulation and ranks."""
