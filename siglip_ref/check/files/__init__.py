"""Files of answers, checkpoints, and what stands before a model: check_dump, check_preprocess, check_tokenize."""
