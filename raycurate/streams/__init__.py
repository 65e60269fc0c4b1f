"""Resumable row streams: staging files that are their own checkpoint, made into a finished output."""
