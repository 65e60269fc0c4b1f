"""Cutting rows into micro-batches by tokens, so that every one costs about the same.

A count of rows says nothing about cost: 512 tweets fit where 512 pages do not. Rows are sorted by
length, longest first, so that padding is little and the largest batch (peak memory) comes first: a batch
that is too big fails in the first second, not in the last hour.
"""

from __future__ import annotations

import numpy as np


def micro_batches(
    lengths: np.ndarray, batch_tokens: int, batch_size: int, *, sort: bool = True, padded: bool
) -> list[np.ndarray]:
    """Row indices of each micro-batch; every row is in exactly one.

    Args:
        lengths: tokens in each row, [n].
        batch_tokens: most tokens in a batch; a longer row is a batch of its own.
        batch_size: most rows in a batch.
        sort: longest first (stable); else the order given.
        padded: a batch costs rows x longest row (True) or the sum of its rows (False).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable") if sort else np.arange(len(lengths))
    batches: list[np.ndarray] = []
    start, longest, total = 0, 0, 0
    for end, length in enumerate(lengths[order]):
        longest, total = max(longest, int(length)), total + int(length)
        cost = longest * (end - start + 1) if padded else total
        if end > start and (cost > batch_tokens or end - start >= batch_size):
            batches.append(order[start:end])
            start, longest, total = end, int(length), int(length)
    if len(order):
        batches.append(order[start:])
    return batches
