"""Pieces of an embeddings folder: every row once, balanced, and unusable vectors named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.clustering.shards import pieces_of, read_piece, shares
from raycurate.clustering.vectors import unit_vectors
from raycurate.core import storage
from raycurate.core.errors import InputError


def write(path: Path, rows: np.ndarray, *, group: int, kind: str = "fixed") -> None:
    flat = pa.array(rows.astype(np.float32).ravel())
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    vectors = (
        pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
        if kind == "fixed"
        else pa.ListArray.from_arrays(offsets, flat)
    )
    pq.write_table(
        pa.table({"id": [str(i) for i in range(len(rows))], "embeddings": vectors}), path, row_group_size=group
    )


@pytest.mark.parametrize("kind", ["fixed", "list"])
@pytest.mark.parametrize("workers", [1, 2, 5, 30])
def test_every_row_once_in_order_and_balanced(tmp_path: Path, kind: str, workers: int) -> None:
    random = np.random.default_rng(0)
    data = [random.normal(size=(n, 8)) for n in (1000, 10, 700, 0, 300)]
    for i, rows in enumerate(data):
        write(tmp_path / f"{i}.parquet", rows, group=100, kind=kind)
    pieces = pieces_of(storage.list_files(str(tmp_path)), filetype="parquet", embedding_field="embeddings")
    dealt = shares(pieces, workers)
    assert [p for share in dealt for p in share] == pieces and len(dealt) == workers
    found = [read_piece(p, embedding_field="embeddings", dimension=8) for share in dealt for p in share]
    whole = np.concatenate(data)
    np.testing.assert_allclose(
        np.concatenate([f.rows_ND for f in found]), whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6
    )
    numbers = np.concatenate([p.number + f.index_N for p, f in zip(pieces, found, strict=True)])
    assert len(set(numbers.tolist())) == len(whole)
    if workers <= 5:
        sizes = [sum(p.size for p in share) for share in dealt]
        largest = max(p.size for p in pieces)
        assert max(sizes) - min(sizes) <= 2 * largest


def test_unusable_vectors_are_named() -> None:
    column = pa.array([[3.0, 4.0], None, [0.0, 0.0], [float("nan"), 1.0], [1.0], [float("inf"), 0.0], [0.0, 2.0]])
    found = unit_vectors(column, 2, where="x")
    np.testing.assert_allclose(found.rows_ND, [[0.6, 0.8], [0.0, 1.0]], atol=1e-6)
    assert found.index_N.tolist() == [0, 6]
    named = ["null_vector", "zero_vector", "non_finite_vector", "wrong_dimension", "non_finite_vector"]
    assert found.rejects == list(zip([1, 2, 3, 4, 5], named, strict=True))


def test_jsonl_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": i, "embeddings": [i + 1, 0.0]}) + "\n" for i in range(3))
    )
    [piece] = pieces_of(storage.list_files(str(tmp_path)), filetype="jsonl", embedding_field="embeddings")
    assert read_piece(piece, embedding_field="embeddings", dimension=None).rows_ND.tolist() == [[1, 0]] * 3
    (tmp_path / "a.jsonl").write_text('{"embeddings": [1]}\n{"embeddings": ')
    with pytest.raises(InputError, match="line 2"):
        read_piece(piece, embedding_field="embeddings", dimension=None)


def test_a_missing_column_or_a_column_of_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": [[1.0]], "text": ["a"]}), tmp_path / "a.parquet")
    files = storage.list_files(str(tmp_path))
    with pytest.raises(InputError, match="Did you mean 'embedding'"):
        pieces_of(files, filetype="parquet", embedding_field="embeddings")
    [piece] = pieces_of(files, filetype="parquet", embedding_field="text")
    with pytest.raises(InputError, match="holds string, not vectors"):
        read_piece(piece, embedding_field="text", dimension=None)
