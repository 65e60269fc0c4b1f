"""Training data -> a fine-tuned embedding model, as a Ray Train run."""
