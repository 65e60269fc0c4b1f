"""What k-means asks of the group it runs in: sums and gathered rows, equal on every rank afterwards."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Collective(Protocol):
    """Rank, size, and two collectives; every rank must make the same calls in the same order."""

    rank: int
    size: int

    def sum(self, tensor: Tensor) -> Tensor: ...

    def gather(self, rows: Tensor) -> Tensor: ...


class Alone:
    """A group of one."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, rows: Tensor) -> Tensor:
        return rows


class TorchGroup:
    """torch.distributed's default group (Gloo on CPU, NCCL on CUDA).

    Results come back on the device they were given on.
    """

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        total = tensor.to(self._device, copy=True)
        self._dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, rows: Tensor) -> Tensor:
        """All ranks' rows [n_r, ...] one after the other, in order of rank; n_r may differ."""
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        counts = self.sum(counts)
        most = int(counts.max())
        padded = torch.zeros((most, *rows.shape[1:]), dtype=rows.dtype, device=self._device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts.tolist(), strict=True)]).to(rows.device)
