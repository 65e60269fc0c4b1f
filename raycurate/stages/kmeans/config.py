"""The options of the k-means stage, under the names that users of RAFT and NeMo Curator know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raycurate.clustering.options import Array
from raycurate.core.config import StageConfig, option
from raycurate.ray_runtime.cluster import ActorGroupOptions
from raycurate.streams.repeated_ids import RepeatedIds

ALGORITHM_VERSION = 1

Fraction = Annotated[float, Field(gt=0, le=1)]


class StorageAccess(StageConfig):
    """How folders are reached, by the names of fsspec; NeMo Curator's read_kwargs and write_kwargs."""

    storage_options: dict[str, Any] = option({}, "Keys, endpoints and the like, as fsspec names them.")


class VectorsOptions(StageConfig):
    """Where embeddings are and what their columns are called."""

    input: str | list[str] = option(..., "Folder, file or glob of embeddings, or a list of them.", place="input")
    input_filetype: Literal["parquet", "jsonl"] = option("parquet", "What the embeddings are stored as.")
    id_field: str = option("id", "Column that holds the id.")
    embedding_field: str = option("embeddings", "Column that holds the vector.")
    metadata_fields: list[str] = option([], "Further columns to pass through.")
    embedding_dim: int | None = option(None, "Dimension of the vectors; the files' own by default.", gt=0)


class KMeansConfig(VectorsOptions):
    """Embeddings in, the same rows by centroid out, vectors of unit length."""

    output: str = option(..., "Folder or URI the clusters are written to.", operational=True, place="output")
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
    centroids: str | None = option(
        None, "A .npy file of centroids, or the output of an earlier run: assign to these, fit none.", place="input"
    )
    cache_path: str | None = option(
        None,
        "Folder where fitted centroids are kept and found again by a run with the same settings.",
        operational=True,
        place="cache",
    )
    engine: Literal["auto", "torch", "raft"] = option(
        "auto", "What fits: raft (cuML on GPUs) or torch; auto is raft where there are GPUs and RAPIDS is installed."
    )
    num_workers: Annotated[int, Field(gt=0)] | Literal["auto"] = option(
        "auto",
        "Members of the fitting group; auto is one a GPU, or one a core up to eight a node, and as many as pay.",
        operational=True,
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to compute; auto is CUDA where there are GPUs.", operational=True
    )
    device_memory_fraction: Fraction = option(
        0.6, "Share of a GPU's free memory for the vectors; what is larger stays on the host.", operational=True
    )
    checkpoint_every: int = option(10, "Iterations between two saves of the centroids.", operational=True, gt=0)
    collective_timeout_s: float = option(
        60.0, "Seconds after which a collective of the group counts as failed.", operational=True, gt=0
    )
    actors: ActorGroupOptions = option(
        ActorGroupOptions(),
        "Placement and environment of the group: num_cpus, num_gpus, resources, accelerator_type, label_selector, "
        "runtime_env.",
        operational=True,
    )
    read_kwargs: StorageAccess = option(
        StorageAccess(),
        "How input, centroids and init are reached, where the environment does not say it: {storage_options: {key: "
        "..., secret: ..., endpoint_url: ...}}; written nowhere.",
        operational=True,
        exclude=True,
    )
    write_kwargs: StorageAccess = option(
        StorageAccess(), "The same of output and cache_path.", operational=True, exclude=True
    )
    repeated_ids: RepeatedIds = option(
        "error",
        "What is done when vectors share an id: error refuses and names them, rename gives the later ones ids of "
        "their own (listed in _renamed/).",
    )
    overwrite: bool = option(False, "Replace an output that is there already.", operational=True)
    max_rejects: int | None = option(
        None, "Stop once more rows than this are rejected; no limit by default.", operational=True, ge=0
    )

    @model_validator(mode="before")
    @classmethod
    def _storage_options_by_other_names(cls, values: Any) -> Any:
        """`storage_options` is for both, `read_storage_options` and `write_storage_options` are for one."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        both = values.pop("storage_options", None)
        for side in ("read", "write"):
            own = values.pop(f"{side}_storage_options", both)
            if own is not None:
                if values.get(f"{side}_kwargs"):
                    raise ValueError(f"storage options are given twice, also as {side}_kwargs; give them once")
                values[f"{side}_kwargs"] = {"storage_options": own}
        return values

    @field_validator("init")
    @classmethod
    def _known_init(cls, value: str | Array) -> str | Array:
        if isinstance(value, Array) or value in ("k-means||", "random") or value.endswith(".npy"):
            return value
        if value == "scalable-k-means++":  # RAFT's other name of it
            return "k-means||"
        raise ValueError("write k-means||, random or the path of a .npy file")
