"""A test set and systems -> retrieval metrics, intervals and comparisons."""
