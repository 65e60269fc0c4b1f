"""Documents -> embeddings. `raycurate.embed(dataset, ...)` is `raycurate.embed.transform.embed`."""

from raycurate.core.callable_module import make_callable

make_callable(__name__, "raycurate.embed.transform:embed")
