"""Embeddings -> clusters."""
