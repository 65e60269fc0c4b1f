"""The options of the k-means stage: those of the vectors, of the fit (clustering/options.py), and its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raycurate.clustering.options import FitOptions, VectorsOptions
from raycurate.core.config import StageConfig, option
from raycurate.ray_runtime.cluster import ActorGroupOptions
from raycurate.streams.repeated_ids import RepeatedIds

ALGORITHM_VERSION = 1


class StorageAccess(StageConfig):
    """How folders are reached, by the names of fsspec; NeMo Curator's read_kwargs and write_kwargs."""

    storage_options: dict[str, Any] = option({}, "Keys, endpoints and the like, as fsspec names them.")


class KMeansConfig(FitOptions, VectorsOptions):
    """Embeddings in, the same rows by centroid out, vectors of unit length."""

    output: str = option(..., "Folder or URI the clusters are written to.", operational=True, place="output")
    centroids: str | None = option(
        None, "A .npy file of centroids, or the output of an earlier run: assign to these, fit none.", place="input"
    )
    cache_path: str | None = option(
        None,
        "Folder where fitted centroids are kept and found again by a run with the same settings.",
        operational=True,
        place="cache",
    )
    num_workers: Annotated[int, Field(gt=0)] | Literal["auto"] = option(
        "auto",
        "Members of the fitting group; auto is one a GPU, or one a core up to eight a node, and as many as pay.",
        operational=True,
    )
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
