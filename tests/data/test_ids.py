"""Ids have one spelling, whatever type they are kept in."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from raycurate.data.documents.ids import common_id_type, id_strings, id_text, is_id_type

NOON = dt.datetime(2024, 1, 2, 12, 0, 0)
PARIS = dt.timezone(dt.timedelta(hours=1))
SPELLINGS: list[tuple[Any, pa.DataType, str | None]] = [
    ("doc-1", pa.string(), "doc-1"),
    ("größe", pa.large_string(), "größe"),
    ("x", pa.string_view(), "x"),
    ("x", pa.dictionary(pa.int32(), pa.string()), "x"),
    ("", pa.string(), None),
    (None, pa.int64(), None),
    (None, pa.null(), None),
    (7, pa.int8(), "7"),
    (2**64 - 1, pa.uint64(), "18446744073709551615"),
    (-7, pa.int64(), "-7"),
    (1.0, pa.float64(), "1"),
    (-0.0, pa.float64(), "0"),
    (1.5, pa.float64(), "1.5"),
    (0.1, pa.float64(), "0.1"),
    (1e-9, pa.float64(), "0.000000001"),
    (1e20, pa.float64(), "100000000000000000000"),
    (float("nan"), pa.float64(), None),
    (float("inf"), pa.float64(), None),
    (3.0, pa.float16(), "3"),
    (3.0, pa.float32(), "3"),
    (Decimal("42"), pa.decimal128(20, 0), "42"),
    (Decimal("42.00"), pa.decimal128(20, 2), "42"),
    (Decimal("100"), pa.decimal128(20, 0), "100"),
    (Decimal("2.50"), pa.decimal256(70, 2), "2.5"),
    (Decimal("1E-10"), pa.decimal128(20, 10), "0.0000000001"),
    (True, pa.bool_(), "true"),
    (b"doc-1", pa.binary(), "doc-1"),
    (b"doc-1", pa.large_binary(), "doc-1"),
    (b"\xff\x00", pa.binary(), "ff00"),
    (b"\x00\x07", pa.binary(2), "0007"),
    (b"", pa.binary(), None),
    (bytes(15) + b"\x07", pa.binary(16), "00000000-0000-0000-0000-000000000007"),
    (uuid.UUID(int=7), pa.uuid(), "00000000-0000-0000-0000-000000000007"),
    (dt.date(2024, 1, 2), pa.date32(), "2024-01-02"),
    (dt.date(2024, 1, 2), pa.date64(), "2024-01-02"),
    *((NOON, pa.timestamp(unit), "2024-01-02T12:00:00") for unit in ("s", "ms", "us", "ns")),
    (NOON.replace(microsecond=500_000), pa.timestamp("ns"), "2024-01-02T12:00:00.5"),
    (NOON.replace(tzinfo=PARIS), pa.timestamp("ms", "Europe/Paris"), "2024-01-02T11:00:00Z"),
    (dt.time(10, 0, 0), pa.time64("us"), "10:00:00"),
    (dt.time(10, 0, 0, 250_000), pa.time32("ms"), "10:00:00.25"),
]


@pytest.mark.parametrize(("value", "kind", "expected"), SPELLINGS, ids=[f"{k}-{v!r}" for v, k, _ in SPELLINGS])
def test_a_value_is_spelled_the_same_alone_and_in_a_column(value, kind, expected):
    column = pa.array([value, None, value], kind)
    spelled = id_strings(column)
    assert spelled.type == pa.string()
    assert spelled.to_pylist() == [expected, None, expected]
    assert id_strings(pa.chunked_array([column, column])).to_pylist() == 2 * [expected, None, expected]
    assert id_strings(column.slice(1)).to_pylist() == [None, expected]
    if not isinstance(value, bytes) or len(value) != 16:  # 16 bytes alone do not say that they are of fixed size
        assert id_text(value) == expected
    for found in column.to_pylist():  # and as whoever reads rows from Arrow has it
        assert id_text(found) == (None if found is None else expected) or kind == pa.binary(16)


def test_one_number_is_one_id_in_every_type_that_holds_it():
    rng = random.Random(0)
    numbers = [0, 1, *(rng.randrange(-(2**10), 2**10) for _ in range(50))]
    kinds = [pa.int16(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(12, 2)]
    expected = [str(number) for number in numbers]
    assert id_strings(pa.array(expected)).to_pylist() == expected
    for kind in kinds:
        values = [Decimal(n) for n in numbers] if pa.types.is_decimal(kind) else numbers
        assert id_strings(pa.array(values, kind)).to_pylist() == expected, kind
    # Beside a null pandas makes integers floats; beside a fraction Arrow's floats are no integers.
    assert id_strings(pa.array([*map(float, numbers), None, 0.5])).to_pylist() == [*expected, None, "0.5"]


def test_floats_of_32_bits_are_spelled_by_their_own_digits():
    assert id_strings(pa.array([0.1, 2.0], pa.float32())).to_pylist() == ["0.1", "2"]


def test_strings_that_are_not_utf8_stay_apart():
    raw = pa.array([b"a\xff", b"a\xfe", b"fine"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    assert id_strings(broken).to_pylist() == ["61ff", "61fe", "fine"]


@pytest.mark.parametrize("kind", [pa.list_(pa.int8()), pa.struct([("a", pa.int8())]), pa.duration("s")])
def test_what_cannot_be_an_id(kind):
    assert not is_id_type(kind)
    with pytest.raises(TypeError, match="cannot be an id"):
        id_strings(pa.nulls(1, kind))
    assert id_text([1]) is id_text({"a": 1}) is None


@pytest.mark.parametrize(
    ("kinds", "together"),
    [
        ([pa.int64()], pa.int64()),
        ([pa.int8(), pa.uint32(), pa.null()], pa.int64()),
        ([pa.dictionary(pa.int8(), pa.int32())], pa.int64()),
        ([pa.uint64(), pa.uint8()], pa.uint64()),
        ([pa.uint64(), pa.int8()], pa.string()),
        ([pa.int64(), pa.float64()], pa.string()),
        ([pa.int64(), pa.string()], pa.string()),
        ([pa.null()], pa.string()),
        ([], pa.string()),
    ],
)
def test_integers_stay_integers_where_all_agree(kinds, together):
    assert common_id_type(kinds) == together
