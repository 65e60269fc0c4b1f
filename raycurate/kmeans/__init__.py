"""Embeddings -> clusters: k-means over vectors that are spread over processes and larger than their devices.

`raycurate.kmeans(input, output, ...)` is `raycurate.kmeans.stage.kmeans`.
"""

from raycurate.core.callable_module import make_callable

make_callable(__name__, "raycurate.kmeans.stage:kmeans")
