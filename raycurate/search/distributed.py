"""Search on Ray: documents dealt to workers, queries through the object store, hits merged block by block.

Each task searches a share of the documents, one shard in memory at a time, for a range of queries, and keeps only their
k best so far. The shares' hits of one block of queries are merged by a task, and handed out in order; the driver holds
one block's. Where there are few documents and many queries, the queries are dealt instead. Tasks depend on nothing but
their arguments: one whose worker dies is run again by Ray with the same result, two searches at once wait for each
other's CPUs but not for ever, and Ray's idle processes are used again, so that only the first search waits for imports.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurate.core.errors import ConfigError, InputError, RaycurateError
from raycurate.search.hits import MOST_DOCUMENTS, Hits, Limits
from raycurate.search.shards import Piece, VectorShards
from raycurate.search.worker import Engine, Exact, Job, search_share

if TYPE_CHECKING:
    import ray

    from raycurate.ray_runtime.cluster import ActorGroupOptions
    from raycurate.search.token_shards import TokenShards

log = logging.getLogger(__name__)
_BLOCK = 1024  # queries of one product, if what is handed out is smaller: products of few rows are slow
_AHEAD = 2  # ranges in work beyond the one that is handed out, for each worker where the queries are dealt
_LEAST_ROWS = 16_384  # documents of a share; with fewer, queries are dealt
_RETRIES = 5  # of a task whose worker died


@dataclass(frozen=True)
class Workers:
    """How many tasks work at once, and what each reserves. remote_args: further options of the tasks."""

    count: int
    cpus: float
    gpus: float
    remote_args: dict[str, Any]


def search(
    queries_QD: np.ndarray | ray.ObjectRef,
    documents: VectorShards,
    k: int,
    *,
    limits: Limits | None = None,
    query_block: int = 1024,
    workers: int | None = None,
    device: str = "auto",
    options: ActorGroupOptions | None = None,
    engine: Engine | None = None,
) -> Iterator[tuple[int, Hits]]:
    """The k best documents of each query by inner product, exactly; needs a running Ray.

    Args:
        queries_QD: float32 [Q, D], or a reference to it in the object store.
        documents: what is searched; workers on other nodes must be able to read its paths.
        limits: what may not be returned.
        query_block: queries that are handed out at a time.
        workers: shares of the documents (or of the queries); None: as many as the cluster has CPUs (GPUs for
            device=cuda), or as there is work for.
        device: auto (CUDA where the cluster has GPUs), cpu or cuda.
        options: what each task asks of its node (one CPU and one thread, or one GPU, by default).
        engine: how a worker searches a piece; None: exactly.

    Returns:
        (number of the block's first query, hits of the block) in order. What is still in work when the iterator is
        closed is cancelled.

    Raises:
        InputError: vectors that are not finite or that differ in dimension.
        CapacityError: the cluster has no place for the workers.
        ConfigError: Ray is not running, or a device that is not known.
        RaycurateError: the worker of a task died again and again.
    """
    import ray

    from raycurate.ray_runtime.cluster import require_ray

    require_ray("search")
    if k < 1 or query_block < 1:
        raise ValueError(f"k={k}, query_block={query_block}")
    reference = queries_QD if isinstance(queries_QD, ray.ObjectRef) else ray.put(np.asarray(queries_QD, np.float32))
    queries = _check(_shape(queries_QD), documents, limits)
    if not queries:
        return iter(())
    block = query_block * max(1, _BLOCK // query_block)
    place = plan_workers(workers, device, options)
    found = launch(reference, queries, documents, k, limits=limits, block=block, place=place, engine=engine or Exact())
    return _cut(found, query_block)


def launch(
    reference: ray.ObjectRef,
    queries: int,
    documents: VectorShards | TokenShards,
    k: int,
    *,
    limits: Limits | None,
    block: int,
    place: Workers,
    engine: Engine,
) -> Generator[tuple[int, Hits], None, None]:
    """Search for the `queries` at `reference` in blocks: what does not depend on what a query and a document are."""
    shares = _shares(documents, place.count, queries, block)
    place = replace(place, count=min(place.count, max(len(shares), -(-queries // block))))
    return _stream(_Run(documents, k, block, queries, shares, place, engine), reference, limits)


@dataclass(frozen=True)
class _Run:
    documents: VectorShards | TokenShards
    k: int
    block: int
    queries: int
    shares: list[tuple[Piece, ...]]
    workers: Workers
    engine: Engine

    def ranges(self) -> list[tuple[int, int]]:
        """Queries first .. stop of each round of calls; shorter ones where the queries are dealt."""
        blocks = -(-self.queries // self.block)
        most = max(1, self.engine.queries_at_once // self.block)
        if len(self.shares) == 1:
            most = min(most, -(-blocks // self.workers.count))
        size = most * self.block
        return [(at, min(at + size, self.queries)) for at in range(0, self.queries, size)]


@dataclass(frozen=True)
class _Ahead:
    """A block of queries in work: its first, its merged hits, and the shares' hits that those come from."""

    first: int
    merged: ray.ObjectRef
    parts: tuple[ray.ObjectRef, ...]


def _stream(run: _Run, queries: ray.ObjectRef, limits: Limits | None) -> Generator[tuple[int, Hits], None, None]:
    import ray

    from raycurate.ray_runtime.cluster import environment_versions, remote_task

    device, threads = "cuda" if run.workers.gpus else "cpu", max(1, int(run.workers.cpus))
    versions = environment_versions()
    given = ray.put(limits), ray.put(run.engine)
    merge = remote_task(_merge, name="SearchMerge", num_cpus=0)
    ahead: deque[_Ahead] = deque()
    dealt = len(run.shares) == 1  # the queries are
    try:
        ranges = run.ranges()
        for first, stop in ranges:
            calls = []
            for pieces in run.shares:
                job = Job(versions, device, threads, run.documents, pieces, first, stop, run.block, run.k)
                found = _task(run.workers, len(job.blocks)).remote(job, queries, *given)
                calls.append(found if isinstance(found, list) else [found])
            for at, parts in zip(range(first, stop, run.block), zip(*calls, strict=True), strict=True):
                ahead.append(_Ahead(at, merge.remote(run.k, given[1], *parts), parts))
            del calls, parts
            waiting = _AHEAD * (run.workers.count if dealt else 1) * len(range(*ranges[0], run.block))
            while len(ahead) > waiting:
                yield _next(ahead)
        while ahead:
            yield _next(ahead)
    finally:
        for left in ahead:
            for reference in (left.merged, *left.parts):
                ray.cancel(reference)


def _cut(blocks: Generator[tuple[int, Hits], None, None], size: int) -> Iterator[tuple[int, Hits]]:
    """The same in blocks of `size` queries."""
    with closing(blocks):
        for first, hits in blocks:
            for at in range(0, len(hits.dropped_Q), size):
                part = slice(at, at + size)
                yield first + at, Hits(hits.rows_QK[part], hits.scores_QK[part], hits.dropped_Q[part])


def _next(ahead: deque[_Ahead]) -> tuple[int, Hits]:
    import ray

    from raycurate.ray_runtime.cluster import raise_user_error

    block = ahead.popleft()
    try:
        return block.first, ray.get(block.merged)
    except ray.exceptions.RayError as error:
        raise_user_error(error)
        if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.OutOfMemoryError):
            raise RaycurateError(
                f"the worker of a task died {_RETRIES + 1} times ({error})",
                where="search",
                fix="Look at its log; if its node ran out of memory, use smaller shards or fewer workers",
            ) from error
        raise


def _merge(k: int, engine: Engine, *parts: tuple[np.ndarray, np.ndarray]) -> Hits:
    dropped_Q = np.stack([dropped_Q for _, dropped_Q in parts]).sum(0)
    return Hits.of(engine.merge([keys_QK for keys_QK, _ in parts], k), dropped_Q)


def _task(workers: Workers, returns: int) -> Any:
    """`search_share` as a Ray task with what it reserves."""
    import ray

    remote = ray.remote(max_calls=0)(search_share)  # 0: a process that used a GPU lives on
    reserved = {"num_cpus": workers.cpus, "num_gpus": workers.gpus, "max_retries": _RETRIES, "name": "Search"}
    return remote.options(**workers.remote_args, **reserved, num_returns=returns)


def plan_workers(wanted: int | None, device: str, options: ActorGroupOptions | None) -> Workers:
    """As the arguments of `search` ask for them; raises CapacityError and ConfigError as it does."""
    from raycurate.ray_runtime.capacity import asked_gpus
    from raycurate.ray_runtime.cluster import OperatorDemand, capacity, check_plan

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={device}; it is one of auto, cpu, cuda", where="search")
    given = options.ray_remote_args() if options is not None else {}
    here = capacity()
    cpus = float(given.pop("num_cpus", 1.0))
    gpus = float(given.pop("num_gpus", 1.0 if device == "cuda" or (device == "auto" and here.live.gpu >= 1) else 0.0))
    asked_gpus(here, device, {"num_gpus": options and options.num_gpus}, where="search")
    places = here.live.gpu / gpus if gpus else here.live.cpu / cpus if cpus else 1
    count = wanted or max(1, int(places))
    demand = OperatorDemand(
        "Search",
        count,
        cpus,
        num_gpus=gpus,
        kind="tasks",
        resources=given.get("resources") or {},
        label_selector=given.get("label_selector") or {},
    )
    check_plan([demand], here)
    return Workers(count, cpus, gpus, given)


def _shares(documents: VectorShards | TokenShards, workers: int, queries: int, block: int) -> list[tuple[Piece, ...]]:
    """Documents by worker; one share of all where the queries are dealt."""
    total = len(documents)
    enough_queries = -(-queries // block) >= workers
    count = 1 if enough_queries and total < workers * _LEAST_ROWS else min(workers, total)
    edges = np.linspace(0, total, count + 1).astype(int).tolist()
    return [tuple(documents.pieces(lo, hi)) for lo, hi in pairwise(edges)]


def _shape(queries_QD: np.ndarray | ray.ObjectRef) -> tuple[int, ...]:
    import ray

    from raycurate.ray_runtime.cluster import remote_task

    if not isinstance(queries_QD, ray.ObjectRef):
        return np.shape(queries_QD)
    found: tuple[int, ...] = ray.get(remote_task(_shape_of, name="SearchShape", num_cpus=0).remote(queries_QD))
    return found


def _shape_of(queries_QD: np.ndarray) -> tuple[int, ...]:
    return np.shape(queries_QD)


def _check(shape: tuple[int, ...], documents: VectorShards, limits: Limits | None) -> int:
    """How many queries there are."""
    if len(shape) != 2:
        raise ValueError(f"queries of shape {shape}")
    if shape[1] != documents.dimension:
        raise InputError(
            f"queries have {shape[1]} dimensions, documents {documents.dimension}",
            where="search",
            fix="Embed both with the same model",
        )
    if len(documents) > MOST_DOCUMENTS:
        raise InputError(f"{len(documents):,} documents; {MOST_DOCUMENTS:,} can be numbered", where="search")
    if limits is not None:
        limits.check(shape[0], len(documents))
    return shape[0]


def pair_scores(queries_QD: np.ndarray, documents: VectorShards, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores of given pairs, in this process: the same numbers that `search` gives on a CPU.

    Args:
        queries_QD: float32 [Q, D].
        offsets: int64 [Q + 1]; query q is scored with documents rows[offsets[q] : offsets[q + 1]].
        rows: int64 [P], document numbers.

    Returns:
        float32 [P].

    Raises:
        InputError: vectors of other dimensions, or a file that cannot be read.
        ValueError: documents that there are not.
    """
    import torch

    from raycurate.search.prepared import score_pairs

    rows = np.asarray(rows, np.int64)
    limits = Limits(None, np.asarray(offsets, np.int64), rows)
    _check(np.shape(queries_QD), documents, limits)
    queries = torch.from_numpy(np.require(queries_QD, np.float32, ["C", "W"]))
    query_P = np.repeat(np.arange(len(queries)), np.diff(limits.excluded_offsets))
    scores_P = np.empty(len(rows), np.float32)
    for piece in documents.pieces(0, len(documents)):
        here = np.flatnonzero((rows >= piece.first) & (rows < piece.first + len(piece)))
        if len(here):
            pairs = torch.from_numpy(query_P[here]), torch.from_numpy(rows[here] - piece.first)
            scores_P[here] = score_pairs(queries, torch.from_numpy(documents.read(piece)), *pairs).numpy()
    return scores_P
