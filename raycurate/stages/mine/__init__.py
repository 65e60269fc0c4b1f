"""Training data -> the same with mined hard negatives."""
