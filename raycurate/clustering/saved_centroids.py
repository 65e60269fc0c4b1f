"""Centroids on their way, saved whole or not at all: a `.npz` beside the output."""

from __future__ import annotations

import io
import zipfile
from typing import NamedTuple

import numpy as np

from raycurate.core import storage

NAME = "kmeans_state.npz"


class Best(NamedTuple):
    """The trial with the least inertia so far; centroids has no rows before the first has ended."""

    centroids: np.ndarray
    inertia: float
    iterations: int


class Saved(NamedTuple):
    """Where a fit stands: centroids [k, dim] after `iteration` of trial `trial`, and the best trial before it.

    inertia: of the centroids that the iteration began with.
    """

    trial: int
    iteration: int
    inertia: float
    centroids: np.ndarray
    best: Best


def save(folder: str, state: Saved) -> None:
    buffer = io.BytesIO()
    best = {f"best_{name}": value for name, value in state.best._asdict().items()}
    own = {name: value for name, value in state._asdict().items() if name != "best"}
    np.savez(buffer, **own, **best)
    storage.write_bytes(storage.join(folder, NAME), buffer.getvalue())


def load(folder: str | None, *, k: int, dim: int) -> Saved | None:
    """The state in `folder`, or None when there is none for this many clusters and dimensions."""
    if folder is None or not storage.exists(storage.join(folder, NAME)):
        return None
    try:
        with np.load(io.BytesIO(storage.read_bytes(storage.join(folder, NAME)))) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile):
        return None  # of another version: begin anew
    if found["centroids"].shape != (k, dim):
        return None
    best = Best(found["best_centroids"], float(found["best_inertia"]), int(found["best_iterations"]))
    return Saved(int(found["trial"]), int(found["iteration"]), float(found["inertia"]), found["centroids"], best)
