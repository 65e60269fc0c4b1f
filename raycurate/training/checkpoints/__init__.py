"""Checkpoints: how they come to be, their states, and the models exported from them."""
