"""The options of vectors and of a fit to them, under the names that RAFT's and NeMo Curator's users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator

from raycurate.core.config import StageConfig, option
from raycurate.core.hashing import hex_digest

if TYPE_CHECKING:
    import numpy as np

Fraction = Annotated[float, Field(gt=0, le=1)]


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


class VectorsOptions(StageConfig):
    """Where embeddings are and what their columns are called."""

    input: str | list[str] = option(..., "Folder, file or glob of embeddings, or a list of them.", place="input")
    input_filetype: Literal["parquet", "jsonl"] = option("parquet", "What the embeddings are stored as.")
    id_field: str = option("id", "Column that holds the id.")
    embedding_field: str = option("embeddings", "Column that holds the vector.")
    metadata_fields: list[str] = option([], "Further columns to pass through.")
    embedding_dim: int | None = option(None, "Dimension of the vectors; the files' own by default.", gt=0)


class FitOptions(StageConfig):
    """How centroids are fitted to vectors."""

    n_clusters: Annotated[int, Field(gt=0)] | Literal["auto"] = option(
        "auto", "Clusters; auto is about the square root of the number of rows."
    )
    max_iter: int = option(300, "Most iterations of Lloyd's algorithm.", gt=0)
    tol: float = option(
        1e-4, "Stop once the centroids move less than this in all (sum of squares), or inertia falls by less.", ge=0
    )
    random_state: int = option(42, "Seed.", ge=0)
    init: str | Array = option(
        "k-means||",
        "First centroids: k-means||, random, or a .npy file (in Python an array too) with [n_clusters, dim].",
        place="model",
    )
    n_init: int = option(1, "Fits from different first centroids; the one with the least inertia is kept.", gt=0)
    oversampling_factor: float = option(2.0, "Candidates k-means|| draws in a round, in units of n_clusters.", gt=0)
    max_samples_per_batch: int = option(32768, "Rows a device works on at once.", operational=True, gt=0)
    fit_data_fraction: Fraction | None = option(None, "Share of the rows, drawn one by one, to fit to; all by default.")
    warm_start_fraction: Fraction | None = option(
        None, "Fit to this share of the rows first and go on from there on all of them (torch engine)."
    )
    engine: Literal["auto", "torch", "raft"] = option(
        "auto", "What fits: raft (cuML on GPUs) or torch; auto is raft where there are GPUs and RAPIDS is installed."
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to compute; auto is CUDA where there are GPUs.", operational=True
    )
    device_memory_fraction: Fraction = option(
        0.6, "Share of a GPU's free memory for the vectors; what is larger stays on the host.", operational=True
    )
    checkpoint_every: int = option(10, "Iterations between two saves of the centroids.", operational=True, gt=0)

    @field_validator("init")
    @classmethod
    def _known_init(cls, value: str | Array) -> str | Array:
        if isinstance(value, Array) or value in ("k-means||", "random") or value.endswith(".npy"):
            return value
        if value == "scalable-k-means++":  # RAFT's other name of it
            return "k-means||"
        raise ValueError("write k-means||, random or the path of a .npy file")

    @property
    def k(self) -> int:
        """Clusters, once `auto` is settled."""
        assert self.n_clusters != "auto", "n_clusters=auto is settled where the rows are counted"
        return self.n_clusters

    def settled(self, *, cuda: bool) -> Self:
        """The same with the engine and the device filled in, for workers with a GPU each or without one."""
        return self.model_copy(update={"engine": self.engine_on(cuda=cuda)[0], "device": "cuda" if cuda else "cpu"})

    def engine_on(self, *, cuda: bool) -> tuple[Literal["torch", "raft"], str]:
        """The engine for workers with a GPU each or without one, and why it is this one."""
        from importlib.util import find_spec

        if self.engine != "auto":
            return self.engine, "asked for"
        if not cuda:
            return "torch", "auto: no GPU"
        if self.warm_start_fraction is not None:
            return "torch", "auto: raft has no warm start"
        if find_spec("cuml") and find_spec("raft_dask"):
            return "raft", "auto: GPUs, and RAPIDS is installed"
        return "torch", "auto: GPUs, but RAPIDS is not installed"
