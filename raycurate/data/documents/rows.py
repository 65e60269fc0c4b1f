"""Document rows: what a read gives, how rejects look, and how rows become Arrow tables of bounded size.

A row that cannot be used is never dropped and never an exception. It stays in the stream with a
`reject_reason`, so that it is written, counted and found again by the same machinery as every other row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from raycurate.core.errors import InputError
from raycurate.core.hashing import hex_digest
from raycurate.core.redaction import hide_credentials
from raycurate.data.documents.segments import Segment

BLOCK_ROWS = 4096
EXCERPT_CHARS = 200

REJECT_REASONS = {
    "null_text": "the text is null",
    "empty_text": "the text is blank",
    "missing_text": "a JSON object without the text field",
    "wrong_type": "the text is no string, or another value cannot become what its column is in all files together",
    "too_long": "more than max_chars characters with over_long=reject, or a line too long to be held; its text is gone",
    "undecodable": "bytes that are not UTF-8",
    "invalid_json": "a line that is not JSON, or says a key twice",
    "not_an_object": "JSON that is not an object",
    "missing_id": "no value in the id field that was asked for",
    "unreadable_file": "a file, or a part of one, that cannot be read; of a Parquet row group, each row",
}
OverLong = Literal["truncate", "reject"]
TEXT_CUT = "text_cut"
"""Column of rows: true where the text was longer than max_chars and is its beginning."""

BASE_FIELDS = (
    pa.field("_row_key", pa.uint64()),
    pa.field("id", pa.string()),
    pa.field("text", pa.string()),
    pa.field("title", pa.string()),
    pa.field("source", pa.string()),
    pa.field(TEXT_CUT, pa.bool_()),
    pa.field("reject_reason", pa.string()),
    pa.field("reject_detail", pa.string()),
)
_TEXT = pa.string()
BASE_NAMES = tuple(f.name for f in BASE_FIELDS)


@dataclass(frozen=True)
class ReadPlan:
    """What every read task needs to know.

    `columns` are the metadata columns as (name, type); None passes through whatever a file has. `id_type` is string,
    int64 or uint64 (ids.py).
    """

    text_field: str = "text"
    title_field: str = "title"
    id_field: str | None = None
    columns: tuple[tuple[str, pa.DataType], ...] | None = ()
    id_type: pa.DataType = _TEXT
    max_chars: int = 1_000_000
    over_long: OverLong = "truncate"
    block_bytes: int = 1 << 20
    position_bits: int = 48
    metadata_as_text: bool = False
    """Parquet metadata become strings, as JSON Lines' do: for corpora of both."""

    @property
    def base_fields(self) -> list[pa.Field]:
        """Our own columns, the id of its type."""
        return [f.with_type(self.id_type) if f.name == "id" else f for f in BASE_FIELDS]

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of every table, or None when it depends on the files."""
        if self.columns is None:
            return None
        return pa.schema([*self.base_fields, *(pa.field(n, t) for n, t in self.columns)])

    def keys(self, file_index: int, positions: np.ndarray) -> np.ndarray:
        """`_row_key` of rows of one file, uint64 [n]."""
        return np.uint64(file_index << self.position_bits) + positions.astype(np.uint64)

    def key_range(self, file_index: int, start: int, end: int | None) -> tuple[int, int]:
        """The keys [low, high) of the positions [start, end) of one file."""
        base = file_index << self.position_bits
        return base + start, base + ((1 << self.position_bits) if end is None else end)

    def check_position(self, position: int, path: str) -> None:
        """Raise InputError when `position` is beyond what keys can tell apart."""
        if position >> self.position_bits:
            raise InputError(
                f"position {position} does not fit in the {self.position_bits} bits kept for positions",
                where=path,
                fix="The file grew after it was listed, or is compressed beyond belief; list it again, or cut it",
            )

    def is_own_column(self, name: str, id_column: str | None) -> bool:
        """True for a file's column that is, or would collide with, one of ours."""
        return name in BASE_NAMES or name in (self.text_field, self.title_field) or name == id_column


class Row(NamedTuple):
    """One document or reject; `id` None for one made from the position. cut: whether the text is a beginning."""

    position: int
    id: str | None
    text: str | None
    title: str | None = None
    source: str | None = None
    reason: str | None = None
    detail: str | None = None
    extra: Mapping[str, str | None] = {}
    cut: bool = False


def unreadable(segment: Segment, position: int, error: Exception, where: str = "") -> Row:
    """The reject that stands for what follows in a segment."""
    end = "the end" if segment.end is None else f"byte {segment.end}"
    where = where or f"from byte {position} to {end}"
    return Row(position, None, None, reason="unreadable_file", detail=encodable(f"{where}: {error}"))


def generated_id(name: str, position: int) -> str:
    """20 hex digits of the sha256 of a file's name, which is relative to the input's root, a NUL and the position."""
    return hex_digest(f"{name}\0{position}".encode("utf-8", "surrogateescape"), 20)


def excerpt(text: str | bytes) -> str:
    """The first characters of offending text, fit to be shown in a report."""
    if isinstance(text, bytes):
        text = text[: 4 * EXCERPT_CHARS].decode("utf-8", "replace")
    return encodable(text[:EXCERPT_CHARS])


def encodable(text: str) -> str:
    """`text` with lone surrogates, which JSON can smuggle in and UTF-8 cannot carry, replaced by `?`."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()


def source_of(path: str) -> str:
    """A file's path as its rows carry it, without the credentials that a URL may hold."""
    return encodable(hide_credentials(path))


def as_text(value: Any) -> str | None:
    """A metadata value as a string: strings as they are, null as null, what JSON has no type for as `str` says it."""
    if value is None:
        return None
    if isinstance(value, bool | int | float | list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return encodable(str(value))


def text_problem(text: str) -> str | None:
    """The reason for which a string cannot be a document's text, whatever its length, or None."""
    if not text or text.isspace():
        return "empty_text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "undecodable"
    return None


def _fits(text: str, kind: pa.DataType) -> bool:
    """Whether an id is a whole number of an integer type, written as one writes it."""
    if re.fullmatch(r"0|-?[1-9][0-9]{0,19}", text) is None:
        return False
    low, high = (0, 2**64) if pa.types.is_uint64(kind) else (-(2**63), 2**63)
    return low <= int(text) < high


class DoneRows:
    """Which positions of one file have been committed by an earlier attempt.

    Positions are asked for in rising order, so a cursor over the sorted keys is enough: no set is built,
    whatever the size of the corpus.
    """

    def __init__(self, plan: ReadPlan, file_index: int, done: np.ndarray | None) -> None:
        low, high = plan.key_range(file_index, 0, None)
        keys = np.empty(0, np.uint64) if done is None else done
        first = np.searchsorted(keys, np.uint64(low), side="left")
        last = np.searchsorted(keys, np.uint64(high - 1), side="right")
        self._positions = keys[first:last] - np.uint64(low)
        self._next = 0

    def __contains__(self, position: int) -> bool:
        positions = self._positions
        while self._next < len(positions) and positions[self._next] < position:
            self._next += 1
        return self._next < len(positions) and int(positions[self._next]) == position

    def mask(self, positions: np.ndarray) -> np.ndarray:
        """bool [n]: which of `positions` are done."""
        return np.isin(positions, self.between(int(positions[0]), int(positions[-1]) + 1), assume_unique=True)

    def between(self, start: int, end: int) -> np.ndarray:
        """The done positions in [start, end), sorted."""
        first, last = np.searchsorted(self._positions, np.array([start, end], np.uint64))
        return self._positions[first:last]


@dataclass
class TableBuilder:
    """Gathers rows, of one file after another, into tables of about `block_bytes`."""

    plan: ReadPlan
    _base: list[list[Any]] = field(default_factory=lambda: [[] for _ in BASE_NAMES])
    _extra: dict[str, list[str | None]] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, segment: Segment, row: Row) -> None:
        self.plan.check_position(row.position, segment.path)
        row = self._with_id(segment, row)
        self._count(row)
        values = (
            (segment.file_index << self.plan.position_bits) + row.position,
            row.id,
            row.text,
            row.title,
            row.source or source_of(segment.path),
            row.cut,
            row.reason,
            row.detail,
        )
        for column, value in zip(self._base, values, strict=True):
            column.append(value)
        rows = len(self._base[0])
        for name in row.extra.keys() - self._extra.keys():
            self._extra[name] = [None] * (rows - 1)
        for name, column in self._extra.items():
            column.append(row.extra.get(name))

    def _with_id(self, segment: Segment, row: Row) -> Row:
        """The row with an id of its own, or as a reject where its id must be an integer and is none."""
        if pa.types.is_string(self.plan.id_type):
            made = generated_id(segment.name or segment.path, row.position)
            return row if row.id is not None else row._replace(id=made)
        if row.id is not None and _fits(row.id, self.plan.id_type):
            return row
        why = "no id" if row.id is None else f"the id {excerpt(row.id)!r} is no {self.plan.id_type}"
        reason = row.reason or ("missing_id" if row.id is None else "wrong_type")
        return row._replace(id=None, reason=reason, detail=row.detail or f"position {row.position}: {why}")

    def _count(self, row: Row) -> None:
        self._bytes += len(row.text or "") + len(row.title or "") + 64
        self._bytes += sum(len(v) for v in row.extra.values() if v)

    @property
    def full(self) -> bool:
        return self._bytes >= self.plan.block_bytes or len(self._base[0]) >= BLOCK_ROWS

    def flush(self) -> Iterator[pa.Table]:
        """What was gathered, as one table; nothing when there is nothing."""
        rows = len(self._base[0])
        if rows:
            fields = self.plan.base_fields
            if not pa.types.is_string(self.plan.id_type):
                ids = BASE_NAMES.index("id")
                self._base[ids] = [None if value is None else int(value) for value in self._base[ids]]
            arrays = [pa.array(c, f.type) for c, f in zip(self._base, fields, strict=True)]
            wanted = self.plan.columns
            if wanted is None:
                wanted = tuple((name, pa.string()) for name in sorted(self._extra))
            for name, kind in wanted:
                found = self._extra.get(name)
                arrays.append(pa.array(found, pa.string()).cast(kind) if found else pa.nulls(rows, kind))
                fields.append(pa.field(name, kind))
            self._base, self._extra, self._bytes = [[] for _ in BASE_NAMES], {}, 0
            yield pa.Table.from_arrays(arrays, schema=pa.schema(fields))
