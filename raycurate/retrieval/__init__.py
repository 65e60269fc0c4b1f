"""How well a system searches: metrics, statistics, BM25, and the answers of a model to a test set."""
