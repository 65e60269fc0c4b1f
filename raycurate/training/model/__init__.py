"""The bi-encoder: a checkpoint's transformer made ready to be trained, and spread over ranks."""
