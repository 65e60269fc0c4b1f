"""What training asks of the other ranks: gathered rows with gradients, exact sums, and when gradients are synchronised.

The gather is an autograd.Function of our own over the public collectives. torch.distributed.nn.functional.all_gather
is deprecated, and what it points to, torch.distributed._functional_collectives, is a private module whose names
changed again in torch 2.13; neither takes ranks with different numbers of rows. Its backward is a sum: a rank's rows
take part in every rank's loss, so their gradient is the sum of what all ranks found for them.

Without a process group there is one rank, and everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from raycurate.training.loss.losses import Vectors
from raycurate.training.model.multi_vector import MultiVectors


def world(group: ProcessGroup | None = None) -> tuple[int, int]:
    """(rank, number of ranks) of the group; (0, 1) where torch.distributed was not started."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def sum_over_ranks(values: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The element-wise sum over all ranks, detached, equal on every rank."""
    return _reduced(values, dist.ReduceOp.SUM, group)


def max_over_ranks(values: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The element-wise maximum over all ranks, detached, equal on every rank."""
    return _reduced(values, dist.ReduceOp.MAX, group)


def _reduced(values: Tensor, how: Any, group: ProcessGroup | None) -> Tensor:
    total = values.detach().clone()
    if world(group)[1] > 1:
        dist.all_reduce(total, how, group=group)
    return total


def row_counts(rows: int, device: torch.device, group: ProcessGroup | None = None) -> list[int]:
    """How many rows each rank has, in order of rank; every rank must call it."""
    rank, ranks = world(group)
    counts = torch.zeros(ranks, dtype=torch.int64, device=device)
    counts[rank] = rows
    return sum_over_ranks(counts, group).tolist()


def gather_rows(rows: Tensor, counts: list[int] | None = None, group: ProcessGroup | None = None) -> Tensor:
    """All ranks' rows [n_r, ...], one rank after the other, with gradients flowing back to the rank they came from.

    Args:
        rows: on the group's device; all axes but the first are equal on all ranks.
        counts: n_r of every rank, as `row_counts` gives; None: asked here, by one more collective.
    """
    if world(group)[1] == 1:
        return rows
    return _Gather.apply(rows, counts or row_counts(len(rows), rows.device, group), group)


def gather_vectors(vectors: Vectors, counts: list[int] | None = None, group: ProcessGroup | None = None) -> Vectors:
    """As `gather_rows`, for either kind of vectors; multi-vectors are padded to the longest of any rank."""
    if isinstance(vectors, Tensor):
        return gather_rows(vectors, counts, group)
    if world(group)[1] == 1:
        return vectors
    here = vectors.mask_NT.shape[1]
    missing = int(max_over_ranks(torch.tensor([here], device=vectors.mask_NT.device), group)) - here
    values = nn.functional.pad(vectors.vectors_NTD, (0, 0, 0, missing))
    real = nn.functional.pad(vectors.mask_NT, (0, missing))
    return MultiVectors(gather_rows(values, counts, group), gather_rows(real, counts, group))


class _Gather(torch.autograd.Function):
    """All-gather of rows; backward is a reduce-scatter (sum). Ranks pad to the longest, as the collectives demand."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group = counts, group
        most = max(counts)
        padded = rows.new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows
        out = rows.new_empty((len(counts) * most, *rows.shape[1:]))
        dist.all_gather_single(out, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(out.split(most), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        most = max(ctx.counts)
        padded = gradient.new_zeros((len(ctx.counts), most, *gradient.shape[1:]))
        for place, part in zip(padded, gradient.split(ctx.counts), strict=True):
            place[: len(part)] = part
        own = gradient.new_empty((most, *gradient.shape[1:]))
        dist.reduce_scatter_single(own, padded.flatten(0, 1), group=ctx.group)
        return own[: ctx.counts[world(ctx.group)[0]]], None, None


@contextmanager
def gradient_sync(model: nn.Module, on: bool) -> Iterator[None]:
    """Whether backward passes in this block bring the gradients of all ranks together, for DDP and FSDP2 alike.

    With `on=False` gradients pile up on each rank (under FSDP2 whole, not sharded, which costs their memory) until
    a block with `on=True`. The forward must be inside the block too: DDP decides there. Other models: no effect.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        if on:
            yield
        else:
            with model.no_sync():
                yield
        return
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_requires_gradient_sync(on, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_requires_gradient_sync(True, recurse=False)
