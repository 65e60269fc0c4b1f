"""The Ray task that searches a share of the documents for a range of queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raycurate.search.hits import Limits, best_of
from raycurate.search.shards import Piece, VectorShards

if TYPE_CHECKING:
    import torch

    from raycurate.search.prepared import Buffers
    from raycurate.search.token_shards import TokenShards


@dataclass(frozen=True)
class Job:
    """One task: documents `pieces`, for queries first .. stop, in blocks.

    versions: the driver's `environment_versions()`. device: cpu or cuda. threads: that a product may use on a CPU.
    """

    versions: Mapping[str, str]
    device: str
    threads: int
    documents: VectorShards | TokenShards
    pieces: tuple[Piece, ...]
    first: int
    stop: int
    block: int
    k: int

    @property
    def blocks(self) -> list[slice]:
        return [slice(at, min(at + self.block, self.stop)) for at in range(self.first, self.stop, self.block)]


@dataclass(frozen=True)
class Place:
    """Where a worker computes. buffers: its work memory."""

    device: torch.device
    buffers: Buffers


class Block(Protocol):
    """The state of one block of queries: `TopK`, or something that has the same three."""

    @property
    def keys_QK(self) -> np.ndarray:
        """uint64 [B, k], or what the engine's `merge` takes."""
        ...

    @property
    def dropped_Q(self) -> np.ndarray: ...

    def add(self, documents: Any) -> None: ...


class Engine(Protocol):
    """How a piece of the documents is searched; sent to every worker, so it is small or holds references.

    Documents are what `read` of the shards gives; queries, a slice of what the search was given.

    queries_at_once: for so many a worker prepares its pieces once and keeps their state in memory.
    """

    queries_at_once: int

    def prepare(self, documents_MD: Any, piece: Piece, place: Place, *, where: str) -> Any:
        """What every block of queries then adds; a worker holds one at a time."""
        ...

    def block(self, queries_QD: Any, k: int, limits: Limits | None, place: Place, *, where: str) -> Block:
        """The state of some queries before any document is added."""
        ...

    def merge(self, parts: list[np.ndarray], k: int) -> np.ndarray:
        """uint64 [B, k], of the `keys_QK` that the shares of the documents have for one block."""
        return best_of(np.concatenate(parts, axis=1), k)


class Exact(Engine):
    """The engine that finds the true k best."""

    queries_at_once = 16_384

    def prepare(self, documents_MD: np.ndarray, piece: Piece, place: Place, *, where: str) -> Any:
        from raycurate.models.devices import bfloat16_is_faster
        from raycurate.search.prepared import Documents

        rough = bfloat16_is_faster(place.device)
        return Documents.of(documents_MD, piece.first, place.device, rough=rough, where=where, buffers=place.buffers)

    def block(self, queries_QD: np.ndarray, k: int, limits: Limits | None, place: Place, *, where: str) -> Block:
        from raycurate.search.topk import TopK

        return TopK(queries_QD, k, limits=limits, device=place.device, buffers=place.buffers, where=where)


def search_share(job: Job, queries_QD: Any, limits: Limits | None, engine: Engine) -> Any:
    """What a task does: (keys uint64 [B, k], dropped int64 [B]) of each block: a tuple of them, or the one alone."""
    import torch

    from raycurate.core.malloc import reuse_freed_memory
    from raycurate.ray_runtime.cluster import check_environment
    from raycurate.search.prepared import Buffers

    check_environment(job.versions, "search")
    reuse_freed_memory()
    if job.device == "cpu":
        torch.set_num_threads(job.threads)
    place = Place(torch.device(job.device), Buffers())
    blocks = []
    for part in job.blocks:
        own = None if limits is None else limits[part]
        where = f"queries, from query {part.start:,}"
        blocks.append(engine.block(queries_QD[part], job.k, own, place, where=where))
    for piece in job.pieces:
        path = job.documents.paths[piece.shard]
        where = f"{path}, from row {piece.lo:,}" if piece.lo else path
        prepared = engine.prepare(job.documents.read(piece), piece, place, where=where)
        for block in blocks:
            block.add(prepared)
        del prepared  # before the next is read: one at a time
    found = tuple((block.keys_QK, block.dropped_Q) for block in blocks)
    return found if len(found) > 1 else found[0]
