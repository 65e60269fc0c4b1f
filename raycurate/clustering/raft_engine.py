"""The k-means engine on RAPIDS: cuML's multi-GPU KMeans over an NCCL clique that Ray's actors form, without Dask.

Rank 0 makes NCCL's unique id, the group hands it to all, and each puts its communicator into a pylibraft handle
(read from raft_dask's `Comms`, which does the same over Dask). cuML's fit has no hook between iterations, so it runs
in slices of `checkpoint_every` iterations, each from the centroids of the one before, which are saved. What has to
be agreed on outside of cuML (row counts, inertia, stopping) goes over a small Gloo group, whose collectives have
timeouts; NCCL's here have none, so a member that hangs without dying is noticed by Ray only when its node is.

With vectors in host memory cuML seeds k-means|| on a sample of 3 * n_clusters rows, so that its first centroids
there are not those that it makes from vectors on the device.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.distributed import TCPStore

from raycurate.clustering.collective import Alone, Collective
from raycurate.clustering.engine import CollectiveError, Meeting
from raycurate.clustering.lloyd import Iteration
from raycurate.clustering.options import Array, FitOptions
from raycurate.clustering.points import Points
from raycurate.clustering.saved_centroids import Best, Saved
from raycurate.clustering.torch_engine import (
    Fit,
    Progress,
    best_trial,
    count_rows,
    given_centroids,
    listen,
    meet,
    note,
    part,
)
from raycurate.core.errors import InputError, RaycurateError, require

log = logging.getLogger(__name__)
_INITS = {"k-means||": "scalable-k-means++", "random": "random"}  # ours: cuML's


@dataclass(frozen=True)
class Rapids:
    """What is used of RAPIDS; the one place that imports it."""

    nccl: Any
    handle: Any
    inject_comms: Any
    self_test: Any
    kmeans: Any
    cupy: Any

    @classmethod
    def installed(cls) -> Rapids:
        """Raises MissingDependencyError."""
        purpose = "the k-means engine 'raft'"
        comms = require("raft_dask.common.comms_utils", "rapids", purpose=purpose)
        return cls(
            nccl=require("raft_dask.common.nccl", "rapids", purpose=purpose).nccl,
            handle=require("pylibraft.common.handle", "rapids", purpose=purpose).Handle,
            inject_comms=comms.inject_comms_on_handle_coll_only,
            self_test=comms.perform_test_comms_allreduce,
            kmeans=require("cuml.cluster.kmeans_mg", "rapids", purpose=purpose).KMeansMG,
            cupy=require("cupy", "rapids", purpose=purpose),
        )


class RaftEngine:
    """Members joined by NCCL for cuML, and by Gloo for what is agreed on outside of it."""

    def __init__(self) -> None:
        self._rapids = Rapids.installed()
        self._group: Collective = Alone()
        self._store: TCPStore | None = None
        self._nccl: Any = None
        self._handle: Any = None

    def rendezvous(self) -> Meeting:
        address, self._store = listen()
        return Meeting(address, self._rapids.nccl.get_unique_id())

    def join(self, meeting: Meeting, rank: int, size: int, *, device: str, timeout_s: float) -> None:
        self._group = meet(meeting.address, rank, size, backend="gloo", timeout_s=timeout_s, store=self._store)
        self._nccl = self._rapids.nccl()
        try:
            self._nccl.init(size, meeting.unique_id, rank)
        except RuntimeError as error:
            raise CollectiveError(str(error)) from error
        self._handle = self._rapids.handle(n_streams=0)
        self._rapids.inject_comms(self._handle, self._nccl, size, rank, False)
        if not self._rapids.self_test(self._handle, 0):
            raise RaycurateError(
                f"NCCL's sum over {size} workers is wrong",
                where=f"self-test of the group at {meeting.address}",
                fix="Look at NCCL's log (NCCL_DEBUG=INFO in the workers' environment), or set engine=torch",
            )

    def fit(self, points: Points, options: FitOptions, state: str | None, progress: Progress) -> Fit:
        return fit(points, options, self._group, self._rapids, self._handle, state=state, progress=progress)

    def leave(self, *, failed: bool) -> None:
        """Destroy the communicator, which waits for the others, or abort it when they may be gone."""
        communicator, self._nccl, self._handle = self._nccl, None, None
        try:
            if communicator is not None:
                communicator.abort() if failed else communicator.destroy()
        except RuntimeError as error:  # the fit is done or lost, and this process is ended next
            log.warning("kmeans: NCCL was not left in order (%s)", error)
        part(self._group, failed=failed)
        self._group, self._store = Alone(), None


def fit(
    points: Points,
    options: FitOptions,
    group: Collective,
    rapids: Rapids,
    handle: Any,
    *,
    state: str | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit on every rank's points together; every rank gets the same result, rank 0 saves.

    Raises:
        InputError: fewer rows than clusters, first centroids of another shape, or too few rows to draw from on a rank.
        CollectiveError: NCCL reports an error.
    """
    began = time.perf_counter()
    rows = count_rows(points, options, group)
    parts, buffered = place(points, options, group, rapids.cupy)
    if group.rank == 0:
        where = f"in host memory, {buffered:,} rows of a worker on its device at once" if buffered else "on the device"
        log.info("kmeans: the vectors are %s", where)
    slices = Slices(rapids, handle, group, parts, arguments_of(options, buffered))

    def trial(number: int, saved: Saved | None, best: Best) -> Best:
        tell = partial(note, options=options, group=group, state=state, trial=number, best=best, progress=progress)
        return run_slices(slices, points.dim, options, trial=number, saved=saved, tell=tell)

    best, resumed_from = best_trial(trial, options, points.dim, state)
    return Fit(best.centroids, best.inertia, best.iterations, rows, resumed_from, time.perf_counter() - began)


def arguments_of(options: FitOptions, buffered: int) -> dict[str, Any]:
    """KMeansMG's arguments for all slices; trials are ours, so `n_init` is 1."""
    return {
        "n_clusters": options.k,
        "tol": options.tol,
        "n_init": 1,
        "oversampling_factor": options.oversampling_factor,
        "max_samples_per_batch": options.max_samples_per_batch,
        "device_buffer_samples": buffered,
        "output_type": "numpy",
    }


def place(points: Points, options: FitOptions, group: Collective, cupy: Any) -> tuple[list[Any], int]:
    """The rank's parts where cuML is to find them, and how many rows it buffers at once (0: all are on the device).

    On every rank alike: on the device when each rank's vectors fit in their share of its free memory, else on the
    host. A buffer has half of that share, as cuML may fill a second one while it computes on the first.
    """
    free, _ = cupy.cuda.runtime.memGetInfo()
    most = int(free * options.device_memory_fraction) // (4 * points.dim)
    fits, rows = group.gather(torch.tensor([[int(len(points) <= most), most]])).T
    parts = [np.ascontiguousarray(rows_ND, np.float32) for rows_ND in points.parts]
    if bool(fits.all()):
        return [cupy.asarray(rows_ND) for rows_ND in parts], 0
    return parts, max(1, int(rows.min()) // 2)


@dataclass(frozen=True)
class Slices:
    """Runs cuML for some iterations on the ranks' parts."""

    rapids: Rapids
    handle: Any
    group: Collective
    parts: list[Any]
    arguments: dict[str, Any]

    def run(self, init: str | np.ndarray, seed: int, iterations: int) -> tuple[np.ndarray, int, float]:
        """Centroids float32 [k, dim], iterations that were run, and the centroids' inertia over all ranks."""
        model = self.rapids.kmeans(
            handle=self.handle, init=init, random_state=seed, max_iter=iterations, **self.arguments
        )
        self._validate(model)
        try:
            model.fit(self.parts)
        except RuntimeError as error:
            if "nccl" in str(error).lower():
                raise CollectiveError(str(error)) from error
            raise
        inertia = float(self.group.sum(torch.tensor([float(model.inertia_)], dtype=torch.float64)))
        # RAFT's counter is one past the end when the loop was not left early.
        return np.asarray(model.cluster_centers_, np.float32), min(int(model.n_iter_), iterations), inertia

    def _validate(self, model: Any) -> None:
        """cuML's check of what this rank holds, agreed on: one rank's error alone would leave the others waiting."""
        said = ""
        try:
            model.validate(self.parts, self.group.rank, self.group.size)
        except ValueError as error:
            said = str(error)
        refused = self.group.gather(torch.tensor([self.group.rank] if said else [], dtype=torch.int64)).tolist()
        if refused:
            raise InputError(
                f"workers {refused} of {self.group.size} hold too few rows to begin with {said}".rstrip(),
                where="init",
                fix="Set init=k-means||, or use fewer workers (num_workers)",
            )


def run_slices(
    slices: Slices,
    dim: int,
    options: FitOptions,
    *,
    trial: int,
    saved: Saved | None,
    tell: Callable[[Iteration], None],
) -> Best:
    """One trial: slices of `checkpoint_every` iterations until one is cut short or `max_iter` is reached.

    A slice does not know the inertia before it, so RAFT's two rules (shift < tol, inertia ratio > 1 - tol) are also
    applied from slice to slice; both then hold for each iteration between.
    """
    group = slices.group
    number, inertia = (saved.iteration, saved.inertia) if saved else (0, math.nan)
    centroids = saved.centroids if saved else None
    init: Any = centroids
    if init is None:
        given = options.init
        init = given_centroids(given.values, options, dim) if isinstance(given, Array) else _INITS[given]
    while number < options.max_iter:
        asked = min(options.checkpoint_every, options.max_iter - number)
        moved, ran, now = slices.run(init, options.random_state + trial, asked)
        shift = math.inf if centroids is None else float(np.square(moved - centroids, dtype=np.float64).sum())
        settled = ran < asked or shift < options.tol or (inertia > 0 and now / inertia > 1 - options.tol)
        stopped = bool(group.sum(torch.tensor([int(settled)])))  # all stop when one does
        number, centroids, inertia, init = number + ran, moved, now, moved
        tell(Iteration(number, torch.from_numpy(centroids), inertia, shift, stopped))
        if stopped:
            break
    assert centroids is not None  # max_iter is 1 at least
    return Best(centroids, inertia, number)
