"""Document rows: what a read gives, how rejects look, and how rows become Arrow tables of bounded size.

A row that cannot be used is never dropped and never an exception. It stays in the stream with a
`reject_reason`, so that it is written, counted and found again by the same machinery as every other row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raycurate.core.errors import InputError
from raycurate.core.redaction import hide_credentials
from raycurate.data.segments import Segment

BLOCK_ROWS = 4096
EXCERPT_CHARS = 200

REJECT_REASONS = {
    "null_text": "the text is null",
    "empty_text": "the text is blank",
    "missing_text": "a JSON object without the text field",
    "wrong_type": "the text is no string, or a Parquet file's columns differ in type from the first file's",
    "too_long": "more than max_chars characters; the text itself is not kept",
    "undecodable": "bytes that are not UTF-8",
    "invalid_json": "a line that is not JSON",
    "not_an_object": "a line of JSON that is not an object",
    "missing_id": "no value in the id field that was asked for",
    "unreadable_file": "a file, or a part of one, that cannot be read",
}

BASE_FIELDS = (
    pa.field("_row_key", pa.uint64()),
    pa.field("id", pa.string()),
    pa.field("text", pa.string()),
    pa.field("title", pa.string()),
    pa.field("source", pa.string()),
    pa.field("reject_reason", pa.string()),
    pa.field("reject_detail", pa.string()),
)
BASE_NAMES = tuple(f.name for f in BASE_FIELDS)


@dataclass(frozen=True)
class ReadPlan:
    """What every read task needs to know.

    `columns` are the metadata columns as (name, type); None passes through whatever a file has.
    """

    text_field: str = "text"
    title_field: str = "title"
    id_field: str | None = None
    columns: tuple[tuple[str, pa.DataType], ...] | None = ()
    max_chars: int = 1_000_000
    block_bytes: int = 1 << 20
    position_bits: int = 48
    metadata_as_text: bool = False
    """Parquet metadata become strings, as JSON Lines' do: for corpora of both."""

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of every table, or None when it depends on the files."""
        if self.columns is None:
            return None
        return pa.schema([*BASE_FIELDS, *(pa.field(n, t) for n, t in self.columns)])

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
    """One document or reject; `id` None for one made from the position."""

    position: int
    id: str | None
    text: str | None
    title: str | None = None
    source: str | None = None
    reason: str | None = None
    detail: str | None = None
    extra: Mapping[str, str | None] = {}


def unreadable(segment: Segment, position: int, error: Exception, where: str = "") -> Row:
    """The reject that stands for what follows in a segment."""
    end = "the end" if segment.end is None else f"byte {segment.end}"
    where = where or f"from byte {position} to {end}"
    return Row(position, None, None, reason="unreadable_file", detail=encodable(f"{where}: {error}"))


def generated_id(path: str, position: int) -> str:
    """20 hex digits of the sha256 of the source path, a NUL and the position."""
    return hashlib.sha256(f"{path}\0{position}".encode("utf-8", "surrogateescape")).hexdigest()[:20]


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


def text_problem(text: str, max_chars: int) -> str | None:
    """The reason for which a string cannot be a document's text, or None."""
    if len(text) > max_chars:
        return "too_long"
    if not text or text.isspace():
        return "empty_text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "undecodable"
    return None


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

    def add(self, file_index: int, path: str, row: Row) -> None:
        self.plan.check_position(row.position, path)
        self._count(row)
        values = (
            (file_index << self.plan.position_bits) + row.position,
            row.id if row.id is not None else generated_id(path, row.position),
            row.text,
            row.title,
            row.source or source_of(path),
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
            arrays = [pa.array(c, f.type) for c, f in zip(self._base, BASE_FIELDS, strict=True)]
            fields = list(BASE_FIELDS)
            wanted = self.plan.columns
            if wanted is None:
                wanted = tuple((name, pa.string()) for name in sorted(self._extra))
            for name, kind in wanted:
                found = self._extra.get(name)
                arrays.append(pa.array(found, pa.string()).cast(kind) if found else pa.nulls(rows, kind))
                fields.append(pa.field(name, kind))
            self._base, self._extra, self._bytes = [[] for _ in BASE_NAMES], {}, 0
            yield pa.Table.from_arrays(arrays, schema=pa.schema(fields))
