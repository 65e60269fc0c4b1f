"""convert, mine and unroll in one: training, validation and test data."""
