"""Training data made ready, and cut into the batches of each rank."""
