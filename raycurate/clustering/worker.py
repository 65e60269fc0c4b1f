"""One member of the group: loads its share of the vectors and takes part in the fit of one of two engines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurate.clustering.engine import Engine, Meeting
from raycurate.clustering.options import FitOptions
from raycurate.clustering.shards import Piece, read_piece
from raycurate.core.observe import Progress

if TYPE_CHECKING:
    from raycurate.clustering.lloyd import Iteration
    from raycurate.clustering.torch_engine import Fit

log = logging.getLogger(__name__)
_FRACTION_STREAM = 1 << 20  # of the random streams, the one that draws the rows of fit_data_fraction


def engine_named(name: str) -> Engine:
    """`torch` or `raft`.

    Raises:
        MissingDependencyError: what it needs is not installed here.
    """
    if name == "raft":
        from raycurate.clustering.raft_engine import RaftEngine

        return RaftEngine()
    from raycurate.clustering.torch_engine import TorchEngine

    return TorchEngine()


class KMeansWorker:
    """A Ray actor. Calls come in this order: check, load, rendezvous (rank 0), join, fit; ping at any time."""

    def __init__(self, threads: int) -> None:
        from raycurate.core.malloc import reuse_freed_memory
        from raycurate.core.observe import setup_logging

        setup_logging(verbose=False)
        reuse_freed_memory()
        self.threads = threads
        self.rank = 0
        self.engine: Engine
        self.parts: list[np.ndarray] = []
        self.numbers: list[np.ndarray] = []
        self._gauges: dict[str, Any] = {}
        self._progress: Progress | None = None

    def ping(self) -> int:
        """This worker's process id."""
        return os.getpid()

    def check(self, versions: Mapping[str, str], engine: str) -> None:
        """See that the driver's versions are here, and what the engine needs.

        Raises:
            RaycurateError: they differ. MissingDependencyError: a package is missing.
        """
        from raycurate.ray_runtime.cluster import check_environment

        check_environment(versions, "kmeans worker")
        self.engine = engine_named(engine)

    def load(self, pieces: list[Piece], column: str, dimension: int, options: FitOptions) -> tuple[int, int]:
        """Read the vectors of this worker's pieces; returns how many vectors it holds and how many it left out.

        Pieces are joined to parts of at most a batch, for a matrix product over many rows is the faster one.
        """
        from raycurate.clustering.points import uniform

        rejected = 0
        waiting: list[np.ndarray] = []
        for piece in pieces:
            found = read_piece(piece, embedding_field=column, dimension=dimension)
            rejected += len(found.rejects)
            numbers = piece.number + found.index_N
            rows = found.rows_ND
            if options.fit_data_fraction is not None:
                drawn = uniform(options.random_state, _FRACTION_STREAM, numbers) < options.fit_data_fraction
                rows, numbers = rows[drawn], numbers[drawn]
            self.numbers.append(numbers)
            if waiting and sum(map(len, waiting)) + len(rows) > options.max_samples_per_batch:
                self.parts.append(np.concatenate(waiting))
                waiting = []
            waiting.append(rows)
        if waiting:
            self.parts.append(np.concatenate(waiting))
        return sum(map(len, self.parts)), rejected

    def rendezvous(self) -> Meeting:
        return self.engine.rendezvous()

    def join(self, meeting: Meeting, rank: int, size: int, device: str, timeout_s: float) -> None:
        """Become member `rank` of `size`; raises what the engine's `join` raises."""
        self.rank = rank
        if rank == 0:
            self._gauges = _gauges()
        with self._leaving_when_it_fails():
            self.engine.join(meeting, rank, size, device=device, timeout_s=timeout_s)

    def fit(self, dimension: int, options: FitOptions, state: str | None = None) -> Fit:
        """The whole fit, after which this worker has left; the same result on every rank."""
        import torch

        from raycurate.clustering.points import Points

        if self.threads:
            torch.set_num_threads(self.threads)
        parts = [part for part in self.parts if len(part)] or [np.empty((0, dimension), np.float32)]
        numbers = np.concatenate(self.numbers) if self.numbers else np.empty(0, np.int64)
        points = Points(parts, numbers, torch.device(options.device), options.max_samples_per_batch)
        if self.rank == 0:
            self._progress = Progress(f"kmeans (at most {options.max_iter})", unit="iteration")
        with self._leaving_when_it_fails():
            fitted = self.engine.fit(points, options, state, lambda done: self._tell(done, options.engine))
        if self._progress is not None:
            self._progress.close()
        self.engine.leave(failed=False)
        return fitted

    @contextmanager
    def _leaving_when_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.engine.leave(failed=True)
            raise

    def _tell(self, done: Iteration, engine: str) -> None:
        """Log an iteration, and show it at Ray's metrics endpoint; rank 0 speaks for all."""
        if self.rank != 0:
            return
        log.debug("kmeans: iteration %d, inertia %.6g, shift %.3g", done.number, done.inertia, done.shift)
        if self._progress is not None:
            self._progress.update(1, note=f"inertia {done.inertia:.6g}")
        values = {"iteration": float(done.number), "inertia": done.inertia}
        for name, gauge in self._gauges.items():
            gauge.set(values[name], tags={"stage": "kmeans", "engine": engine})


def _gauges() -> dict[str, Any]:
    """What Ray's metrics endpoint shows of a fit; nothing outside of Ray."""
    import ray
    from ray.util.metrics import Gauge

    if not ray.is_initialized():
        return {}
    return {
        name: Gauge(f"raycurate_kmeans_{name}", what, tag_keys=("stage", "engine"))
        for name, what in (
            ("iteration", "iterations of k-means done"),
            ("inertia", "sum of squared distances to the nearest centroid"),
        )
    }
