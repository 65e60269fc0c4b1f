"""Question/answer records, titles or BEIR data -> training data and splits."""
