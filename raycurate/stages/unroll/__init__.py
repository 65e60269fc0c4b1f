"""Mined training data -> one positive a row."""
