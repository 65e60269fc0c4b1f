"""The stages, one folder each, named as their commands are."""
