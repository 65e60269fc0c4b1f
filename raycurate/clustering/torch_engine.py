"""The k-means engine on torch: seeding, Lloyd, trials, and saving the centroids as it goes.

What the engine `raft` shares with it is here too: how members meet, the loop over trials, and saving.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.distributed import TCPStore

from raycurate.clustering.collective import Alone, Collective, TorchGroup
from raycurate.clustering.engine import CollectiveError, Meeting
from raycurate.clustering.lloyd import Iteration, Labelled, lloyd
from raycurate.clustering.nearest import Centroids, first_dtype, nearest
from raycurate.clustering.options import Array, FitOptions
from raycurate.clustering.points import Points, uniform
from raycurate.clustering.saved_centroids import Best, Saved, load, save
from raycurate.clustering.seeding import random_rows, scalable_kmeans
from raycurate.core.errors import InputError, RaycurateError
from raycurate.models.devices import bfloat16_is_faster, dtype_name

log = logging.getLogger(__name__)
_WARM_STREAM = (1 << 20) + 1  # of the random streams, the one that draws the rows of warm_start_fraction
Progress = Callable[[Iteration], None]


@dataclass(frozen=True)
class Fit:
    """centroids: float32 [k, dim]. inertia: sum of squared distances to them over all rows fitted to.

    iterations: of the best trial, over all rows. resumed_from: iteration that a saved state began at, 0 without one.
    seconds: of the whole fit without reading. seconds_seed: of those, what the first centroids took, a warm start's
    fit included; None where the engine makes them inside of its first iterations (`raft`). first_pass: the precision
    of the product that goes over all pairs, as this member chose it; labels do not depend on it.
    """

    centroids: np.ndarray
    inertia: float
    iterations: int
    rows: int
    resumed_from: int
    seconds: float
    seconds_seed: float | None = None
    first_pass: str = ""


class TorchEngine:
    """Members joined by torch.distributed: Gloo on CPUs, NCCL on GPUs."""

    def __init__(self) -> None:
        self._group: Collective = Alone()
        self._store: TCPStore | None = None

    def rendezvous(self) -> Meeting:
        address, self._store = listen()
        return Meeting(address)

    def join(self, meeting: Meeting, rank: int, size: int, *, device: str, timeout_s: float) -> None:
        backend = "nccl" if device == "cuda" else "gloo"
        self._group = meet(meeting.address, rank, size, backend=backend, timeout_s=timeout_s, store=self._store)
        see_that_labels_are_right(torch.device(device))

    def fit(self, points: Points, options: FitOptions, state: str | None, progress: Progress) -> Fit:
        return fit(points, options, self._group, state=state, progress=progress)

    def leave(self, *, failed: bool) -> None:
        part(self._group, failed=failed)
        self._group, self._store = Alone(), None


class Timed:
    """A group whose failing collectives raise CollectiveError."""

    def __init__(self, group: Collective) -> None:
        self._group = group
        self.rank, self.size = group.rank, group.size

    def sum(self, tensor: Tensor) -> Tensor:
        return self._timed(self._group.sum, tensor)

    def gather(self, rows: Tensor) -> Tensor:
        return self._timed(self._group.gather, rows)

    def _timed(self, collective: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        try:
            return collective(tensor)
        except RuntimeError as error:  # torch has no narrower type for Gloo's
            raise CollectiveError(str(error)) from error


def listen() -> tuple[str, TCPStore]:
    """`tcp://host:port` of this node, and rank 0's store, which listens there already: the port is nobody else's."""
    import ray

    host = ray.util.get_node_ip_address()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return f"tcp://{host}:{store.port}", store


def meet(
    address: str, rank: int, size: int, *, backend: str, timeout_s: float, store: TCPStore | None = None
) -> Collective:
    """Form torch's process group, and see that a sum over it is right; no group is formed for one alone.

    Args:
        store: rank 0's, which listens at `address`; None on the others.

    Raises:
        RaycurateError: the sum is wrong. CollectiveError: the members do not meet within `timeout_s`.
    """
    import torch.distributed as dist

    if size == 1:
        return Alone()
    timeout = timedelta(seconds=timeout_s)
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        if store is None:
            store = TCPStore(host, int(port), is_master=False, timeout=timeout)
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        raise CollectiveError(str(error)) from error
    group = Timed(TorchGroup())
    total = float(group.sum(torch.tensor([rank + 1.0])))
    if total != size * (size + 1) / 2:
        raise RaycurateError(f"the sum over {size} workers is {total}", where=f"self-test of the group at {address}")
    return group


def see_that_labels_are_right(device: torch.device) -> None:
    """Label a few points as a fit does, against float64: kernels that this hardware gets wrong show here, and their
    first use, which is slow, is not waited for by all in the first iteration.

    Raises:
        RaycurateError: a label is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    points_ND, centres_KD = (torch.randn(rows, 64, generator=generator) for rows in (1024, 128))
    ready = Centroids.of(centres_KD.to(device), rough=bfloat16_is_faster(device))
    labels_N = nearest(points_ND.to(device), ready).cpu()
    exact_NK = torch.cdist(points_ND.double(), centres_KD.double())
    over_N = exact_NK.gather(1, labels_N[:, None])[:, 0] - exact_NK.amin(1)
    if float(over_N.max()) > 1e-4:
        raise RaycurateError(
            f"a point's label is {float(over_N.max()):.3g} farther than its nearest centroid",
            where=f"self-test of k-means on {device}",
        )


def part(group: Collective, *, failed: bool) -> None:
    """End what `meet` formed. After a failure nothing is done: the process is about to be ended, and NCCL's orderly
    end would wait for members that are gone."""
    if group.size > 1 and not failed:
        torch.distributed.destroy_process_group()


def fit(
    points: Points,
    options: FitOptions,
    group: Collective,
    *,
    state: str | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit on every rank's points together; every rank gets the same result, rank 0 saves.

    Args:
        state: folder or URI where the centroids are saved as it goes, and found again. A state is of one engine.

    Raises:
        InputError: fewer rows than clusters, or first centroids of another shape.
    """
    began = time.perf_counter()
    rows = count_rows(points, options, group)
    rough = bfloat16_is_faster(points.device)
    first_pass = dtype_name(first_dtype(options.k, rough=rough))
    if group.rank == 0:
        log.info("kmeans: first pass in %s on %s", first_pass, points.device)
    seconds_seed = 0.0
    labelled = Labelled(points, options.k, rough=rough)

    def trial(number: int, saved: Saved | None, best: Best) -> Best:
        nonlocal seconds_seed
        if saved is not None:
            first = torch.from_numpy(saved.centroids).to(points.device)
        else:
            seeding = time.perf_counter()
            first = _first(points, options, group, number, rough)
            seconds_seed += time.perf_counter() - seeding
        done = lloyd(
            labelled,
            first,
            group,
            max_iter=options.max_iter,
            tol=options.tol,
            start=saved.iteration if saved else 0,
            last_inertia=saved.inertia if saved else math.nan,
            on_iteration=partial(
                note, options=options, group=group, state=state, trial=number, best=best, progress=progress
            ),
        )
        _, _, inertia = labelled.move_to(done.centroids, group)
        return Best(done.centroids.cpu().numpy(), inertia, done.number)

    best, resumed_from = best_trial(trial, options, points.dim, state)
    seconds = time.perf_counter() - began
    return Fit(best.centroids, best.inertia, best.iterations, rows, resumed_from, seconds, seconds_seed, first_pass)


def count_rows(points: Points, options: FitOptions, group: Collective) -> int:
    """The rows of all ranks; raises InputError on each when they are fewer than the clusters."""
    k = options.k
    rows = int(group.sum(torch.tensor([len(points)])))
    if rows < k:
        raise InputError(
            f"{rows:,} usable vectors cannot make {k:,} clusters",
            where="n_clusters",
            fix=f"Set n_clusters to {rows:,} or less"
            + (", or fit_data_fraction higher" if options.fit_data_fraction else ""),
        )
    return rows


def best_trial(
    trial: Callable[[int, Saved | None, Best], Best], options: FitOptions, dim: int, state: str | None
) -> tuple[Best, int]:
    """The best of `n_init` trials, and the iteration that what is saved in `state` began at.

    `trial` gets its number, the state to go on from in the first one after a loss, and the best trial before it.
    """
    saved = load(state, k=options.k, dim=dim)
    resumed_from = saved.iteration if saved else 0
    best = saved.best if saved else Best(np.empty((0, dim), np.float32), math.inf, 0)
    for number in range(saved.trial if saved else 0, options.n_init):
        found = trial(number, saved, best)
        saved = None
        if found.inertia < best.inertia:
            best = found
    return best, resumed_from


def note(
    done: Iteration,
    *,
    options: FitOptions,
    group: Collective,
    state: str | None,
    trial: int,
    best: Best,
    progress: Progress | None,
) -> None:
    """After an iteration: tell, and save when it is due."""
    if progress is not None:
        progress(done)
    due = done.number % options.checkpoint_every == 0 or done.stopped
    if state is not None and group.rank == 0 and due:
        save(state, Saved(trial, done.number, done.inertia, done.centroids.cpu().numpy(), best))


def given_centroids(given: np.ndarray, options: FitOptions, dim: int) -> np.ndarray:
    """First centroids that were given, float32 [k, dim]; raises InputError when they have another shape."""
    if given.shape != (options.k, dim):
        raise InputError(f"the first centroids are {list(given.shape)}, wanted are [{options.k}, {dim}]", where="init")
    return given.astype(np.float32)


def _first(points: Points, options: FitOptions, group: Collective, trial: int, rough: bool) -> Tensor:
    """The first centroids: seeded on all rows, or seeded on and fitted to a share of them.

    What is lost of a warm start is done again: it is short, and it comes to the same centroids.
    """
    if options.warm_start_fraction is None:
        return _seed(points, options, group, trial, rough)
    sample = drawn_share(points, options.warm_start_fraction, options.random_state)
    rows = int(group.sum(torch.tensor([len(sample)])))
    if rows < options.k:
        raise InputError(
            f"the {rows:,} rows it draws cannot make {options.k:,} clusters",
            where="warm_start_fraction",
            fix="Set it higher, or leave it out",
        )
    seeds = _seed(sample, options, group, trial, rough)
    labelled = Labelled(sample, options.k, rough=rough)
    done = lloyd(labelled, seeds, group, max_iter=options.max_iter, tol=options.tol)
    if group.rank == 0:
        log.info("kmeans: warm start on %s rows, %d iterations, inertia %.6g", f"{rows:,}", done.number, done.inertia)
    return done.centroids


def drawn_share(points: Points, fraction: float, seed: int) -> Points:
    """Each row with probability `fraction`, drawn by its number alone, so that ranks do not matter."""
    drawn = uniform(seed, _WARM_STREAM, points.numbers) < fraction
    cuts = np.cumsum([len(rows) for rows in points.parts])[:-1]
    kept = [rows[mask] for rows, mask in zip(points.parts, np.split(drawn, cuts), strict=True)]
    return replace(points, parts=[np.concatenate(kept)], numbers=points.numbers[drawn])


def _seed(points: Points, options: FitOptions, group: Collective, trial: int, rough: bool) -> Tensor:
    seed, k = options.random_state + trial, options.k
    if isinstance(options.init, Array):
        return torch.from_numpy(given_centroids(options.init.values, options, points.dim)).to(points.device)
    if options.init == "k-means||":
        return scalable_kmeans(points, k, group, seed=seed, oversampling=options.oversampling_factor, rough=rough)
    return random_rows(points, k, group, seed=seed)
