"""Fitted centroids as files: an output's `_kmeans_centroids.npy`, and what a fit leaves for a later attempt."""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from raycurate.clustering.options import Array
from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError

if TYPE_CHECKING:
    from raycurate.stages.kmeans.config import KMeansConfig

CENTROIDS = "_kmeans_centroids.npy"  # with the `_`, which readers of Parquet folders leave out
_OTHER_NAME = "kmeans_centroids.npy"  # in outputs of before, and in those of NeMo Curator


@dataclass(frozen=True)
class FittedCentroids:
    """centroids: float32 [k, dim]. iterations, rows (fitted to) and read_seconds: of the fit; 0 when given.

    read_seconds is what starting the group and reading the vectors took. first_pass: precision of the fit's first
    product, "" where that is not known."""

    centroids: np.ndarray
    iterations: int = 0
    rows: int = 0
    read_seconds: float = 0.0
    first_pass: str = ""


@dataclass(frozen=True)
class GivenCentroids:
    """Centroids of the user's, each read once. centroids: to assign to; first: to begin the fit with; else None."""

    centroids: np.ndarray | None
    first: np.ndarray | None

    @classmethod
    def of(cls, config: KMeansConfig) -> GivenCentroids:
        """Raises InputError when they cannot be read, or are no centroids."""
        init, first = config.init, None
        if isinstance(init, Array):
            first = checked(init.values, where="init")
        elif init.endswith(".npy"):
            first = load_centroids(init)
        return cls(load_centroids(config.centroids) if config.centroids is not None else None, first)

    def by_content(self) -> dict[str, str]:
        """The options that are files, by what is in them."""
        found = {"centroids": self.centroids, "init": self.first}
        return {name: fingerprint(array.tobytes().hex()) for name, array in found.items() if array is not None}

    @property
    def count(self) -> int | None:
        """How many clusters there are by this."""
        array = self.centroids if self.centroids is not None else self.first
        return len(array) if array is not None else None


def load_centroids(path: str) -> np.ndarray:
    """The centroids of a .npy file, or of the output folder that has one.

    Raises:
        InputError: there is none, or it holds something else than finite float vectors.
    """
    file = path if path.endswith(".npy") else centroids_file(path)
    data = storage.read_bytes(file)
    try:
        found = np.load(io.BytesIO(data))
    except (ValueError, EOFError) as error:
        raise InputError(f"it is no .npy file ({error})", where=file) from error
    return checked(found, where=file)


def checked(found: np.ndarray, *, where: str) -> np.ndarray:
    """Centroids as float32 [k, dim]; raises InputError when they are something else than finite float vectors."""
    if found.ndim != 2 or not len(found) or found.dtype.kind not in "fiu":
        raise InputError(f"it holds {found.dtype} {list(found.shape)}, not centroids [k, dim]", where=where)
    if not np.isfinite(found).all():
        raise InputError("it holds NaN or infinity", where=where)
    return np.ascontiguousarray(found, np.float32)


def centroids_file(output: str) -> str:
    """Where the centroids of an output folder are: under our name, else under the one that others have for them."""
    other = storage.join(output, _OTHER_NAME)
    ours = storage.join(output, CENTROIDS)
    return other if not storage.exists(ours) and storage.exists(other) else ours


def save_fit(path: str, centres: FittedCentroids) -> None:
    """Write a fit for a later attempt, as `.npz`."""
    buffer = io.BytesIO()
    np.savez(buffer, **asdict(centres))
    storage.write_bytes(path, buffer.getvalue())


def load_fit(path: str, *, k: int, dim: int) -> FittedCentroids | None:
    """What `save_fit` wrote for this many clusters and dimensions; None when there is nothing of the kind."""
    if not storage.exists(path):
        return None
    try:
        with np.load(io.BytesIO(storage.read_bytes(path))) as file:
            numbers = int(file["iterations"]), int(file["rows"]), float(file["read_seconds"])
            found = FittedCentroids(
                file["centroids"], *numbers, str(file["first_pass"]) if "first_pass" in file else ""
            )
    except (ValueError, KeyError, zipfile.BadZipFile):
        return None  # of another version: fit anew
    return found if found.centroids.shape == (k, dim) else None
