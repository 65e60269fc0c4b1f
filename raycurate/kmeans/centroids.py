"""Fitted centroids as files: an output's `_kmeans_centroids.npy`, and what a fit leaves for a later attempt."""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict, dataclass

import numpy as np

from raycurate.core import storage
from raycurate.core.errors import InputError

CENTROIDS = "_kmeans_centroids.npy"  # with the `_`, which readers of Parquet folders leave out
_OTHER_NAME = "kmeans_centroids.npy"  # in outputs of before, and in those of NeMo Curator


@dataclass(frozen=True)
class Centres:
    """centroids: float32 [k, dim]. iterations, rows (fitted to) and read_seconds: of the fit; 0 when given.

    read_seconds is what starting the group and reading the vectors took."""

    centroids: np.ndarray
    iterations: int = 0
    rows: int = 0
    read_seconds: float = 0.0


def given(path: str) -> np.ndarray:
    """The centroids of a .npy file, or of the output folder that has one.

    Raises:
        InputError: there is none, or it holds something else than finite float vectors.
    """
    file = path if path.endswith(".npy") else centroids_file(path)
    data = storage.read_bytes(file)
    try:
        found = np.load(io.BytesIO(data))
    except ValueError as error:
        raise InputError(f"it is no .npy file ({error})", where=file) from error
    if found.ndim != 2 or not len(found) or not np.issubdtype(found.dtype, np.floating):
        raise InputError(f"it holds {found.dtype} {list(found.shape)}, not centroids [k, dim]", where=file)
    if not np.isfinite(found).all():
        raise InputError("it holds NaN or infinity", where=file)
    return np.ascontiguousarray(found, np.float32)


def centroids_file(output: str) -> str:
    """Where the centroids of an output folder are: under our name, else under the one that others have for them."""
    other = storage.join(output, _OTHER_NAME)
    ours = storage.join(output, CENTROIDS)
    return other if not storage.exists(ours) and storage.exists(other) else ours


def keep(path: str, centres: Centres) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **asdict(centres))
    storage.write_bytes(path, buffer.getvalue())


def kept(path: str, *, k: int, dim: int) -> Centres | None:
    """What `keep` wrote for this many clusters and dimensions; None when there is nothing of the kind."""
    if not storage.exists(path):
        return None
    try:
        with np.load(io.BytesIO(storage.read_bytes(path))) as file:
            found = Centres(file["centroids"], int(file["iterations"]), int(file["rows"]), float(file["read_seconds"]))
    except (ValueError, KeyError, zipfile.BadZipFile):
        return None  # of another version: fit anew
    return found if found.centroids.shape == (k, dim) else None
