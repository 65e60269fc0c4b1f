"""Several Parquet files are one table: types over all files, compared with what pyarrow makes of them."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError
from raycurate.core.storage import list_files
from raycurate.data.corpora.corpus_files import documents_of
from raycurate.data.corpora.corpus_id import read_queries_parquet
from raycurate.data.documents.documents import DocumentsOptions, list_documents, make_plan
from raycurate.data.training.sdg import read_sdg
from raycurate.data.training.training_report import Problems
from tests.data.test_listing import read

MOMENT = dt.datetime(2024, 2, 29, 12, 30, 15)


def random_type(rng: random.Random, depth: int = 0) -> pa.DataType:
    """A type from one of four families, whose members have a type that holds both; nested ones too."""
    family = rng.randrange(4 if depth > 1 else 6)
    if family == 0:
        return rng.choice([pa.null(), pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()])
    if family == 1:
        return rng.choice([pa.null(), pa.string(), pa.large_string(), pa.string_view()][: 4 if not depth else 2])
    if family == 2:
        return rng.choice([pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")])
    if family == 3:
        return rng.choice([pa.null(), pa.bool_()])
    if family == 4:
        return pa.list_(random_type(rng, depth + 1))
    names = rng.sample(["a", "b", "c"], rng.randint(1, 3))
    return pa.struct([pa.field(name, random_type(rng, depth + 1)) for name in names])


def random_value(rng: random.Random, kind: pa.DataType) -> Any:
    if pa.types.is_null(kind) or rng.random() < 0.2:
        return None
    if pa.types.is_integer(kind):
        return rng.randrange(-100, 100)
    if pa.types.is_floating(kind):
        return rng.randrange(-1000, 1000) / 8
    if pa.types.is_timestamp(kind):
        return MOMENT + dt.timedelta(seconds=rng.randrange(10**6))
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_list(kind):
        return [random_value(rng, kind.value_type) for _ in range(rng.randrange(4))]
    if pa.types.is_struct(kind):
        return {field.name: random_value(rng, field.type) for field in kind}
    return f"value {rng.randrange(10)}"


def random_files(rng: random.Random, folder, columns: list[str]) -> list[pa.Table]:
    """Tables of a few rows, none in some, with some of the columns each, in any order; written to a file each."""
    tables = []
    for number in range(rng.randint(2, 4)):
        rows = rng.choice([0, 1, 3, 5])
        data = {"text": pa.array([f"text {number} {i}" for i in range(rows)], pa.string())}
        names = [name for name in columns if rng.random() < 0.8]
        for name in rng.sample(names, len(names)):
            kind = random_type(rng)
            data[name] = pa.array([random_value(rng, kind) for _ in range(rows)], kind)
        path = folder / f"{number}.parquet"
        pq.write_table(pa.table(data), path, row_group_size=2)
        tables.append(pq.ParquetFile(path).read())  # Parquet has no seconds
    return tables


def unified(tables: list[pa.Table], name: str) -> pa.DataType | None:
    """pyarrow's own type of a column over these tables, None where it has none. Strings of all sorts are one."""
    plain = {pa.large_string(): pa.string(), pa.string_view(): pa.string()}
    kinds = [table.schema.field(name).type for table in tables if name in table.column_names]
    schemas = [pa.schema([pa.field(name, plain.get(kind, kind))]) for kind in kinds]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type if schemas else None
    except pa.ArrowException:
        return None


@pytest.mark.parametrize("seed", range(60))
def test_random_files_are_read_as_pyarrow_unifies_them(tmp_path, seed):
    rng = random.Random(seed)
    columns = ["m", "n", "o"]
    tables = [table for table in random_files(rng, tmp_path, columns) if table.num_rows]
    present = [name for name in columns if any(name in table.column_names for table in tables)]
    if not tables:
        return
    found = read(str(tmp_path), present)
    assert found["reject_reason"].null_count == found.num_rows == sum(table.num_rows for table in tables)
    for name in present:
        values = [v for t in tables for v in (t[name].to_pylist() if name in t.column_names else [None] * t.num_rows)]
        expected = unified(tables, name)
        if expected is None:  # nothing holds both: as text, with nothing dropped
            assert found[name].type == pa.string()
            assert [v is None for v in found[name].to_pylist()] == [v is None for v in values]
        else:
            assert found[name].type == (pa.string() if pa.types.is_null(expected) else expected)
            assert found[name].to_pylist() == pa.array(values, expected).to_pylist()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (pa.array([1], pa.int64()), pa.array(["1999"]), ["1", "1999"]),
        (pa.array([True]), pa.array([2.5]), ["true", "2.5"]),
        (pa.array([["x"]]), pa.array(["x"]), ['["x"]', "x"]),
        (pa.array([1], pa.int32()), pa.array([Decimal("2.50")]), ["1", "2.50"]),
        (pa.array([MOMENT], pa.timestamp("us", "UTC")), pa.array([MOMENT]), None),
    ],
)
def test_types_that_nothing_holds_together_come_out_as_text(tmp_path, caplog, first, second, expected):
    pq.write_table(pa.table({"text": ["a"], "m": first}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "m": second}), tmp_path / "b.parquet")
    with caplog.at_level("WARNING", logger="raycurate"):
        found = read(str(tmp_path), ["m"])
    assert found["m"].type == pa.string()
    assert None not in found["m"].to_pylist()
    if expected is not None:
        assert found["m"].to_pylist() == expected


def test_a_value_that_the_wider_type_cannot_hold_is_a_reject(tmp_path):
    beyond = pa.array([2**53, 0], pa.timestamp("ms"))  # no nanoseconds reach that far
    pq.write_table(pa.table({"text": ["far", "near"], "when": beyond}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["now"], "when": pa.array([MOMENT], pa.timestamp("ns"))}), tmp_path / "b.parquet")
    rows = read(str(tmp_path), ["when"])
    assert rows["reject_reason"].to_pylist() == ["wrong_type", None, None]


# --- ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([pa.array([3, 5])], pa.int64()),
        ([pa.array([3, 5], pa.int8()), pa.array([7], pa.uint32())], pa.int64()),
        ([pa.array([3], pa.uint64())], pa.uint64()),
        ([pa.array([3, 5]), pa.array(["7"])], pa.string()),
        ([pa.array([3.0, 5.0])], pa.string()),
        ([pa.array([3, None])], pa.string()),  # one is made up, and that is text
        ([pa.array([3]), None], pa.string()),
        ([pa.array([3]), pa.array([], pa.null())], pa.int64()),
    ],
)
def test_integer_ids_stay_integers_where_all_ids_can_be(tmp_path, files, kind):
    for number, ids in enumerate(files):
        rows = 1 if ids is None else len(ids)
        data = {"text": pa.array(["x"] * rows, pa.string())} | ({} if ids is None else {"id": ids})
        pq.write_table(pa.table(data), tmp_path / f"{number}.parquet")
    found = read(str(tmp_path))
    assert found.schema.field("id").type == kind
    assert found["id"].null_count == 0
    given = [value for ids in files if ids is not None for value in ids.to_pylist()]
    as_text = [str(value).removesuffix(".0") for value in given if value is not None]
    assert [str(value) for value in found["id"].to_pylist() if len(str(value)) < 20] == as_text
    assert read(str(tmp_path), id_type="text").schema.field("id").type == pa.string()


def test_an_integer_id_field_with_nulls_keeps_integers_and_rejects_those_rows(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "key": pa.array([1, None], pa.int32())}), tmp_path / "a.parquet")
    rows = read(str(tmp_path), id_field="key")
    assert (rows["id"].to_pylist(), rows["reject_reason"].to_pylist()) == ([1, None], [None, "missing_id"])
    assert rows.schema.field("id").type == pa.int64()


def test_beside_other_files_ids_are_text(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "id": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"id": 2, "text": "b"}')
    assert read(str(tmp_path))["id"].to_pylist() == ["1", "2"]
    assert read(str(tmp_path), id_type="integer")["id"].to_pylist() == [1, 2]


# --- what is refused before any work ------------------------------------------------------------


def test_files_without_rows_decide_nothing_and_one_good_file_is_enough(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [5]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["fine"], "lang": ["en"]}), tmp_path / "c.parquet")
    rows = read(str(tmp_path), ["lang"])
    assert rows["reject_reason"].to_pylist() == ["wrong_type", None]
    (tmp_path / "c.parquet").unlink()
    with pytest.raises(InputError, match="holds int64, not text"):
        read(str(tmp_path))


@pytest.mark.parametrize("name", ["id", "text", "title", "lang"])
def test_a_column_that_stands_twice_is_named_wherever_it_is(tmp_path, name):
    pq.write_table(pa.table({"text": ["fine"]}), tmp_path / "a.parquet")
    schema = pa.schema([("text", pa.string()), (name, pa.string()), (name, pa.string())])
    twice = pa.Table.from_arrays([pa.array(["x"])] * 3, schema=schema)
    pq.write_table(twice, tmp_path / "b.parquet")
    options = DocumentsOptions(input=str(tmp_path))
    with pytest.raises(InputError, match=rf"b\.parquet: the column '{name}' stands"):
        make_plan(options, [], list_documents(options))


def test_every_reader_of_parquet_names_a_column_that_stands_twice(tmp_path):
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("text", pa.string())])
    twice = pa.Table.from_arrays([pa.array(["x"])] * 3, schema=schema)
    path = tmp_path / "train.parquet"
    pq.write_table(twice, path)
    [entry] = list_files(str(path))
    readers = [
        lambda: list(read_sdg(str(path))),
        lambda: list(documents_of(entry, Problems("the corpus"))),
        lambda: read_queries_parquet(entry, "c", Problems("the queries")),
        lambda: read(str(path)),
    ]
    for reader in readers:
        with pytest.raises(InputError, match=r"train\.parquet: the column 'text' stands 2 times"):
            reader()
