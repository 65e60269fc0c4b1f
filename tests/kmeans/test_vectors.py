"""Vectors in every spelling that Arrow has, against numpy; what is no vector is named, and decides nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.clustering.assignment import read_rows
from raycurate.clustering.inputs import open_embeddings
from raycurate.clustering.vectors import holds_vectors, unit_vectors
from raycurate.core.errors import InputError
from raycurate.stages.kmeans.config import VectorsOptions


def ray_tensors(rows: list[Any], numbers: pa.DataType) -> pa.Array:
    """What ray.data makes of a numpy batch: one type where all rows are alike, another where they are ragged."""
    from ray.data._internal.tensor_extensions.arrow import ArrowTensorArray

    arrays = [np.asarray(row, numbers.to_pandas_dtype()) for row in rows]
    if len({len(row) for row in arrays}) == 1:
        return ArrowTensorArray.from_numpy(np.stack(arrays))
    ragged = np.empty(len(arrays), object)
    ragged[:] = arrays
    return ArrowTensorArray.from_numpy(ragged)


def fixed_tensors(rows: list[Any], numbers: pa.DataType) -> pa.Array:
    kind = pa.fixed_shape_tensor(numbers, [len(rows[0])])
    return pa.ExtensionArray.from_storage(kind, pa.array(rows, kind.storage_type))


SPELLINGS: dict[str, Callable[[list[Any], pa.DataType], pa.Array]] = {
    "list": lambda rows, kind: pa.array(rows, pa.list_(kind)),
    "large_list": lambda rows, kind: pa.array(rows, pa.large_list(kind)),
    "fixed_size_list": lambda rows, kind: pa.array(rows, pa.list_(kind, len(rows[0]))),
    "list_view": lambda rows, kind: pa.array(rows, pa.list_view(kind)),
    "fixed_shape_tensor": fixed_tensors,
    "ray": ray_tensors,
    "ray, stored": lambda rows, kind: ray_tensors(rows, kind).storage,
}
NUMBERS = [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64(), pa.uint16()]


def exact_units(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.longdouble)
    return wide / np.sqrt((wide**2).sum(1, keepdims=True))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_any_spelling_of_an_array_is_that_array(spelling: str, numbers: pa.DataType) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        n, dim = int(random.integers(1, 40)), int(random.integers(1, 9))
        kind = np.dtype(numbers.to_pandas_dtype())
        rows = (random.uniform(1, 100, (n, dim)) * (1 if kind.kind == "u" else random.choice([-1, 1]))).astype(kind)
        column = SPELLINGS[spelling](list(rows), numbers)
        assert holds_vectors(column.type)
        start = int(random.integers(0, n))
        for part, expected in ((column, rows), (column.slice(start), rows[start:])):
            found = unit_vectors(part, None if seed % 2 else dim, where="x")
            assert found.rows_ND.dtype == np.float32 and not found.rejects
            np.testing.assert_allclose(found.rows_ND, exact_units(expected).astype(float), atol=2e-7)
            assert found.index_N.tolist() == list(range(len(expected)))


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_are_no_vectors_are_named_in_any_spelling(seed: int) -> None:
    """Nulls, other lengths (where the type allows them), zeros, NaN, infinity: anywhere, the first too."""
    random = np.random.default_rng(seed)
    dim = int(random.integers(2, 6))
    bad: dict[str, Any] = {
        "null_vector": None,
        "zero_vector": [0.0] * dim,
        "non_finite_vector": [float(random.choice([np.nan, np.inf, -np.inf])), *[1.0] * (dim - 1)],
    }
    ragged = {"wrong_dimension": [1.0] * int(random.choice([0, dim - 1, dim + 1]))}
    for spelling in ("list", "large_list", "fixed_size_list", "fixed_shape_tensor"):
        own = bad | (ragged if "list" in spelling and "fixed" not in spelling else {})
        reasons = [None] * 9 + list(own)
        order = random.permutation(len(reasons))
        if own.keys() & ragged.keys():  # the row that could mislead comes first
            order = np.concatenate([[len(reasons) - 1], order[order != len(reasons) - 1]])
        named = [reasons[i] for i in order]
        rows = [random.normal(size=dim).tolist() if name is None else own[name] for name in named]
        kind = {
            "list": pa.list_(pa.float64()),
            "large_list": pa.large_list(pa.float32()),
            "fixed_size_list": pa.list_(pa.float32(), dim),
            "fixed_shape_tensor": pa.fixed_shape_tensor(pa.float32(), [dim]),
        }[spelling]
        stored = pa.array(rows, getattr(kind, "storage_type", kind))
        column = pa.ExtensionArray.from_storage(kind, stored) if isinstance(kind, pa.BaseExtensionType) else stored
        found = unit_vectors(column, None, where="x")
        assert found.rejects == [(at, name) for at, name in enumerate(named) if name is not None]
        good = [row for row, name in zip(rows, named, strict=True) if name is None]
        np.testing.assert_allclose(found.rows_ND, exact_units(np.array(good)).astype(float), atol=2e-7)


def test_ragged_tensors_of_ray_and_other_odd_columns() -> None:
    found = unit_vectors(ray_tensors([[1.0], [3.0, 4.0], [0.0, 5.0]], pa.float64()), None, where="x")
    assert found.rejects == [(0, "wrong_dimension")]
    np.testing.assert_allclose(found.rows_ND, [[0.6, 0.8], [0.0, 1.0]], atol=1e-7)
    decimals = pa.array([[Decimal("3"), Decimal("4")], None], pa.list_(pa.decimal128(5, 2)))
    assert unit_vectors(decimals, None, where="x").rows_ND.tolist() == [[np.float32(0.6), np.float32(0.8)]]
    assert unit_vectors(pa.nulls(2), 3, where="x").rejects == [(0, "null_vector"), (1, "null_vector")]
    assert unit_vectors(pa.array([[], []]), None, where="x").rejects[0] == (0, "wrong_dimension")
    wide = pa.array([[3e300, 4e300], [3e-300, 4e-300], [3e40, 4e40]])
    np.testing.assert_allclose(unit_vectors(wide, 2, where="x").rows_ND, [[0.6, 0.8]] * 3, atol=1e-7)
    for column in (pa.array(["a"]), pa.array([["a"]]), pa.array([[[1.0]]]), pa.array([1.0]), pa.array([{"data": 1}])):
        with pytest.raises(InputError, match="not vectors"):
            unit_vectors(column, None, where="x")


# --- files ------------------------------------------------------------------------------------------


def options(path: Path, **other: Any) -> VectorsOptions:
    return VectorsOptions(input=str(path), **other)


def rows_of(opts: VectorsOptions) -> list[dict[str, Any]]:
    inputs = open_embeddings(opts)
    return [
        row for piece in inputs.pieces for row in read_rows(piece, opts, inputs.dimension, inputs.id_type).to_pylist()
    ]


@pytest.mark.parametrize("first", [[], [1.0], [1.0, 2.0, 3.0], None, [0.0, 0.0]], ids=str)
@pytest.mark.parametrize("filetype", ["parquet", "jsonl"])
def test_an_odd_first_vector_is_a_reject_and_not_the_dimension(tmp_path: Path, first: Any, filetype: str) -> None:
    rows = [{"id": "odd", "embeddings": first}, *({"id": f"d{i}", "embeddings": [1.0, i]} for i in range(3))]
    if filetype == "parquet":
        table = pa.table(
            {
                "id": [r["id"] for r in rows],
                "embeddings": pa.array([r["embeddings"] for r in rows], pa.list_(pa.float32())),
            }
        )
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opts = options(tmp_path, input_filetype=filetype)
    assert open_embeddings(opts).dimension == 2
    assert [row["id"] for row in rows_of(opts) if row["reject_reason"]] == ["odd"]


def test_a_file_without_a_vector_says_so(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["a"], "embeddings": pa.array([[]], pa.list_(pa.float32()))}), tmp_path / "a.parquet"
    )
    with pytest.raises(InputError, match="every vector is null or empty"):
        open_embeddings(options(tmp_path))
    (tmp_path / "b.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="hold no rows"):
        open_embeddings(options(tmp_path, input_filetype="jsonl"))
    with pytest.raises(InputError, match=r"no \.jsonl file.*set input_filetype=parquet"):
        open_embeddings(options(tmp_path / "a.parquet", input_filetype="jsonl"))


def test_json_lines_of_any_name_compressed_or_not_and_blank_lines(tmp_path: Path) -> None:
    lines = [{"id": 1, "embeddings": [1, 2]}, {"id": "x", "embeddings": [1.5, 2]}, {"id": 2.0, "embeddings": [0, 1]}]
    text = "\ufeff\n" + "\r\n \n".join(json.dumps(line) for line in lines) + "\n\n"
    (tmp_path / "A.JSONL").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.ndjson.zst").write_bytes(pa.Codec("zstd").compress(text.encode(), asbytes=True))
    (tmp_path / "d.jsonl").write_text("\n")
    (tmp_path / "e.jsonl").write_text("")
    rows = rows_of(options(tmp_path, input_filetype="jsonl"))
    assert [row["id"] for row in rows] == ["1", "x", "2"] * 3
    assert not any(row["reject_reason"] for row in rows)


def test_ids_are_integers_where_all_files_have_integers_else_one_spelling(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"id": pa.array([1, None], pa.int32()), "embeddings": vectors}), tmp_path / "A.PARQUET")
    pq.write_table(pa.table({"id": pa.array([3, 2**40]), "embeddings": vectors}), tmp_path / "b.parquet")
    opts = options(tmp_path)
    assert open_embeddings(opts).id_type == pa.int64()
    assert [(row["id"], row["reject_reason"]) for row in rows_of(opts)] == [
        (1, None),
        (None, "missing_id"),
        (3, None),
        (2**40, None),
    ]
    pq.write_table(pa.table({"id": [4.0, 4.5], "embeddings": vectors}), tmp_path / "c.parquet")
    assert [row["id"] for row in rows_of(opts)] == ["1", None, "3", str(2**40), "4", "4.5"]
    pq.write_table(pa.table({"id": [[1], [2]], "embeddings": vectors}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"'id' holds list<.*>, which cannot be an id"):
        open_embeddings(opts)


def test_the_small_inputs_that_went_wrong(shared_cases: Path) -> None:
    for name, count in {"blank": 6, "ids": 6, "gz": 6, "upper": 6}.items():
        rows = rows_of(options(shared_cases / "jsonl-embeddings" / name, input_filetype="jsonl"))
        assert len(rows) == count and not any(row["reject_reason"] for row in rows)
        assert all(isinstance(row["id"], str) for row in rows)
    tensors = rows_of(options(shared_cases / "tensor-columns"))
    assert len(tensors) == 12 and not any(row["reject_reason"] for row in tensors)
