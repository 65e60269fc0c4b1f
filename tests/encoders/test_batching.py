"""Micro-batches: each row once, within the budget, longest first. TokenBatch: ragged rows to Arrow and back."""

import numpy as np
import pyarrow as pa
import pytest

from raycurate.encoders.batching import micro_batches
from raycurate.models.tokenize import TokenBatch


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("sort", [True, False])
def test_every_row_once_and_no_batch_over_budget(padded, sort):
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    batches = micro_batches(lengths, 1000, 16, sort=sort, padded=padded)
    assert sorted(np.concatenate(batches)) == list(range(500))
    for rows in batches:
        cost = lengths[rows].max() * len(rows) if padded else lengths[rows].sum()
        assert len(rows) <= 16
        assert cost <= 1000 or len(rows) == 1
    flat = np.concatenate(batches)
    assert (np.diff(lengths[flat]) <= 0).all() if sort else (flat == np.arange(500)).all()


def test_by_hand():
    cut = [rows.tolist() for rows in micro_batches(np.array([3, 9, 2, 4]), 8, 10, padded=False)]
    assert cut == [[1], [3, 0], [2]]  # 9 alone over budget; 4 + 3 fit, and 2 more would make 9
    padded = [rows.tolist() for rows in micro_batches(np.array([3, 9, 2, 4]), 12, 10, padded=True)]
    assert padded == [[1], [3, 0, 2]]  # 3 rows x 4 tokens
    assert micro_batches(np.array([], np.int64), 8, 10, padded=True) == []


def test_token_batch_goes_to_arrow_and_back_without_copying_ids():
    batch = TokenBatch.from_lists([[1, 2, 3], [], [4]])
    column = batch.to_arrow()
    assert column.type == pa.list_(pa.int32())
    assert column.to_pylist() == [[1, 2, 3], [], [4]]
    back = TokenBatch.from_arrow(column)
    assert back.lengths.tolist() == [3, 0, 1]
    assert np.shares_memory(back.ids, batch.ids)


def test_token_batch_from_a_slice_and_from_chunks():
    column = pa.array([[9], [1, 2], [3], [4, 5]], pa.list_(pa.int32()))
    part = TokenBatch.from_arrow(column.slice(1, 2))
    assert [row.tolist() for row in part] == [[1, 2], [3]]
    chunked = TokenBatch.from_arrow(pa.chunked_array([column.slice(0, 2), column.slice(3)]))
    assert [row.tolist() for row in chunked] == [[9], [1, 2], [4, 5]]
    with pytest.raises(ValueError, match="1 rows of the token column are null"):
        TokenBatch.from_arrow(pa.array([[1], None], pa.list_(pa.int32())))
