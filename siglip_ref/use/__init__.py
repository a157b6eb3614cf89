"""A loaded model at work: pictures and texts in, embeddings and answers out."""
