"""K-means over vectors spread over processes and larger than their devices, and how clustered vectors are read."""
