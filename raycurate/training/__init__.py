"""Contrastive training of a bi-encoder: what knows torch.distributed, and not Ray."""
