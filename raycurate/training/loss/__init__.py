"""Losses, masks and their gradients."""
