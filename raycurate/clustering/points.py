"""A rank's share of the points: some host arrays, seen as one numbered list and read in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Points:
    """Float32 rows [n, dim] in host memory.

    parts: arrays (memory-mapped ones too) that follow each other. numbers: int64 [n], each row's number in the
    whole data set, which no two ranks share. device: where chunks are computed on. chunk: most rows on the
    device at once.
    """

    parts: list[np.ndarray]
    numbers: np.ndarray
    device: torch.device
    chunk: int

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def dim(self) -> int:
        return int(self.parts[0].shape[1])

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(index of its first row in this rank's share, rows on the device) for each chunk."""
        start = 0
        for part in self.parts:
            for at in range(0, len(part), self.chunk):
                rows = np.ascontiguousarray(part[at : at + self.chunk], np.float32)
                yield start + at, torch.from_numpy(rows).to(self.device)
            start += len(part)

    def rows(self, indices: np.ndarray) -> Tensor:
        """The rows at these indices of this rank's share, on the device."""
        out = np.empty((len(indices), self.dim), np.float32)
        start = 0
        for part in self.parts:
            here = (indices >= start) & (indices < start + len(part))
            out[here] = part[indices[here] - start]
            start += len(part)
        return torch.from_numpy(out).to(self.device)


def uniform(seed: int, stream: int, numbers: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1) for the rows with these numbers, from random stream `stream`.

    A function of seed, stream and number alone (splitmix64 [Steele et al. 2014] as a counter-based generator), so
    that what is drawn does not depend on how rows are spread over processes.
    """
    with np.errstate(over="ignore"):
        base = _mixed(np.array([seed], np.uint64) + _STEP * np.uint64(stream + 1))
        values = _mixed(base + _STEP * (numbers.astype(np.uint64) + np.uint64(1)))
    return (values >> np.uint64(11)) * 2.0**-53


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
