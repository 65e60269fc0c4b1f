"""A real corpus without a download, made from the documentation of installed Python packages."""
