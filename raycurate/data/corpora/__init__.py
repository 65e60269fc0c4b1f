"""Corpora of numbered documents, and test sets."""
