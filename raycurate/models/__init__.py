"""A model's files and what follows from them: its contract, weights, tokens, pooling, devices."""
