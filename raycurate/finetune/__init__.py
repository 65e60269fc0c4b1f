"""Contrastive fine-tuning of embedding models on Ray Train."""
