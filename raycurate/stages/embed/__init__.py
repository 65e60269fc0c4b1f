"""Documents -> embeddings."""
