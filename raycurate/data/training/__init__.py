"""Training data in every form."""
