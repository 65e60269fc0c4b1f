"""What a fit needs to know, under the names that RAFT's and NeMo Curator's users know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raycurate.core.errors import ConfigError
from raycurate.core.hashing import hex_digest

if TYPE_CHECKING:
    import numpy as np


class Array:
    """An array given as an option; in a manifest and in the key of a run it stands by its shape and a hash."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __str__(self) -> str:
        content = hex_digest(self.values.tobytes(), 16)
        return f"array {list(self.values.shape)} {self.values.dtype} {content}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def checked(value: Any) -> Array:
            if isinstance(value, Array):
                return value
            if not hasattr(value, "__array__"):
                raise ValueError("this is no array")
            import numpy as np

            return cls(np.asarray(value))

        shown = core_schema.plain_serializer_function_ser_schema(str)
        return core_schema.no_info_plain_validator_function(checked, serialization=shown)


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit, as a worker gets them.

    init: `k-means||`, `random`, or centroids, float32 [n_clusters, dim].
    n_init: fits with different seeds, of which the one with the least inertia is kept.
    fit_data_fraction: share of the rows, drawn one by one, that the centroids are fitted to.
    warm_start_fraction: share of those rows, drawn likewise, that is fitted first; its centroids are the first ones
        of the fit to all. Engine `torch` only.
    checkpoint_every: iterations between two saves of the centroids to `state`, a folder or URI. A state is of one
        engine: do not let another go on from it.
    engine: `torch` (CPU or CUDA) or `raft` (cuML, CUDA).
    device_memory_fraction: share of the GPU's free memory that `raft` may fill with vectors; when a worker's do not
        fit, all workers' stay in host memory and are streamed in buffers of that share.
    """

    n_clusters: int
    max_iter: int = 300
    tol: float = 1e-4
    random_state: int = 42
    init: str | np.ndarray = "k-means||"
    n_init: int = 1
    oversampling_factor: float = 2.0
    max_samples_per_batch: int = 32768
    fit_data_fraction: float | None = None
    checkpoint_every: int = 10
    device: Literal["cpu", "cuda"] = "cpu"
    embedding_field: str = "embeddings"
    state: str | None = None
    engine: Literal["torch", "raft"] = "torch"
    device_memory_fraction: float = 0.6
    warm_start_fraction: float | None = None

    def __post_init__(self) -> None:
        if self.warm_start_fraction is not None and not 0 < self.warm_start_fraction <= 1:
            raise ConfigError(
                f"{self.warm_start_fraction} is no share of the rows",
                where="warm_start_fraction",
                fix="Set it above 0 and to 1 at most, or leave it out",
            )
        if not 0 < self.device_memory_fraction <= 1:
            raise ConfigError(
                f"{self.device_memory_fraction} is no share of the GPU's memory",
                where="device_memory_fraction",
                fix="Set it above 0 and to 1 at most",
            )
        if self.engine == "raft" and self.warm_start_fraction is not None:
            raise ConfigError(
                "the engine 'raft' has no warm start",
                where="warm_start_fraction",
                fix="Leave it out, or set engine=torch",
            )
        if self.engine == "raft" and self.oversampling_factor <= 0:
            raise ConfigError(
                f"the engine 'raft' cannot oversample by {self.oversampling_factor}",
                where="oversampling_factor",
                fix="Set it above 0",
            )
