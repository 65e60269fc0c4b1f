"""Reading segments of text and JSON Lines files: plain functions, no Ray, so that each rule can be tested by itself.

`read_segments` is what a read task runs. Memory is bounded by one chunk, one line and one block, also for
files of any size; bytes are split on b"\\n" and nothing else, so that a form feed or a U+2028 inside a
document's text does not break its line in two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.data.markup import MarkupError, html_document, rst_document
from raycurate.data.parquet import read_parquet_segment
from raycurate.data.rows import (
    DoneRows,
    ReadPlan,
    Row,
    TableBuilder,
    as_text,
    encodable,
    excerpt,
    text_problem,
    unreadable,
)
from raycurate.data.segments import Kind, Segment

CHUNK_BYTES = 4 << 20
COMPRESSED_CHUNK_BYTES = 64 << 10
"""Smaller, because a read that meets damage gives nothing: this much, at most, of what was whole is lost."""

LINE_SLACK_BYTES = 64 << 20
"""How much a JSON line may hold beside the longest text allowed before it is rejected without being held."""

_BOM = b"\xef\xbb\xbf"


def read_segments(segments: Iterable[Segment], plan: ReadPlan, done: np.ndarray | None = None) -> Iterator[pa.Table]:
    """All rows that start in `segments` and are not done, as tables of about `plan.block_bytes`.

    Args:
        segments: pieces of files, see `raycurate.data.segments`.
        plan: fields, columns and limits.
        done: sorted uint64 `_row_key`s of rows to leave out, or None.
    """
    builder = TableBuilder(plan)
    for segment in segments:
        done_rows = DoneRows(plan, segment.file_index, done)
        if segment.kind is Kind.PARQUET:
            pieces: Iterator[Row | pa.Table] = read_parquet_segment(segment, plan, done_rows)
        else:
            pieces = read_rows(segment, plan, done_rows)
        for piece in pieces:
            if isinstance(piece, pa.Table):
                yield piece
                continue
            builder.add(segment.file_index, segment.path, piece)
            if builder.full:
                yield from builder.flush()
    yield from builder.flush()


def read_rows(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[Row]:
    """The rows of a text or JSON Lines segment; what cannot be read gives a row that says so."""
    if segment.kind is Kind.JSONL:
        yield from _read_jsonl(segment, plan, done)
    elif 0 not in done:
        yield _read_text(segment, plan)


@contextmanager
def open_segment(segment: Segment) -> Iterator[BinaryIO]:
    """The bytes of the segment's file from `segment.start` on, decompressed.

    Raises:
        OSError: the file cannot be read, or is not the size it had when it was listed.
    """
    found, inner = storage.filesystem(segment.path)
    if segment.compression:
        with found.open_input_stream(inner, compression=segment.compression) as stream:
            yield stream
        return
    with found.open_input_file(inner) as file:
        size = file.size()
        if segment.size and size != segment.size:
            raise OSError(f"it had {segment.size} bytes when it was listed and has {size} now")
        file.seek(segment.start)
        yield file


# --- text ---------------------------------------------------------------------------------------


def _read_text(segment: Segment, plan: ReadPlan) -> Row:
    limit = 4 * plan.max_chars + len(_BOM)  # no UTF-8 character is longer than 4 bytes
    try:
        with open_segment(segment) as stream:
            data = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as error:
        return unreadable(segment, 0, error)
    if len(data) > limit:
        return Row(0, None, None, reason="too_long", detail=f"file of {segment.size} bytes: {excerpt(data)}")
    data = data.removeprefix(_BOM)
    try:
        text, title = data.decode("utf-8").replace("\r\n", "\n"), None
        if segment.kind is Kind.HTML:
            text, title = html_document(text)
        elif segment.kind is Kind.RST:
            text, title = rst_document(text)
    except UnicodeDecodeError as error:
        return Row(0, None, None, reason="undecodable", detail=f"byte {error.start}: {excerpt(data)}")
    except MarkupError as error:
        return unreadable(segment, 0, error)
    reason = text_problem(text, plan.max_chars)
    if reason is None:
        return Row(0, None, text, title)
    kept = None if reason == "too_long" else text
    return Row(0, None, kept, title, reason=reason, detail=f"{len(text)} characters: {excerpt(text)}")


# --- JSON Lines ---------------------------------------------------------------------------------


def _read_jsonl(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[Row]:
    lines = Lines(segment, plan.max_chars * 12 + LINE_SLACK_BYTES)  # \ud83d\ude00 is one character in 12 bytes
    try:
        for offset, line, length in lines:
            if offset in done:
                continue
            if length > len(line):
                detail = f"line at byte {offset}: {length} bytes: {excerpt(line)}"
                yield Row(offset, None, None, reason="too_long", detail=detail)
                continue
            content = line.removeprefix(_BOM) if offset == 0 else line
            if content and not content.isspace():
                yield json_row(content, offset, plan)
    except (OSError, pa.ArrowException) as error:
        if lines.position not in done:
            yield unreadable(segment, lines.position, error)


class Lines:
    """The lines that start in a segment, each as (offset, bytes without the newline, length).

    Of a line longer than `limit` only the first bytes come, with its true length. `position` is where the
    next line starts, for the message when reading fails.
    """

    def __init__(self, segment: Segment, limit: int, chunk_bytes: int = 0) -> None:
        self._segment, self._limit = segment, limit
        self._chunk_bytes = chunk_bytes or (COMPRESSED_CHUNK_BYTES if segment.compression else CHUNK_BYTES)
        self.position = segment.start

    def __iter__(self) -> Iterator[tuple[int, bytes, int]]:
        start, end = self._segment.start, self._segment.end
        # A line starts at `start` when the byte before it ends one: read from that byte, drop what it ends.
        skipping = start > 0
        position = start - skipping
        line = _Line(self._limit)
        with open_segment(replace(self._segment, start=position)) as stream:
            while chunk := stream.read(self._chunk_bytes):
                *ended, rest = chunk.split(b"\n")
                for part in ended:
                    line.add(part)
                    data, length = line.take()
                    offset, position = position, position + length + 1
                    self.position = position
                    if not skipping:
                        yield offset, data, length
                    skipping = False
                    if end is not None and position >= end:
                        return
                line.add(rest)
                if skipping and end is not None and position + line.length >= end:
                    return  # the whole segment lies inside a line that started before it
        if line.length and not skipping:
            yield position, *line.take()


class _Line:
    """A line that is being put together, of which no more than about `limit` bytes are held."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self.length = 0

    def add(self, part: bytes) -> None:
        if self.length <= self._limit:
            self._parts.append(part)
        self.length += len(part)

    def take(self) -> tuple[bytes, int]:
        data, length = b"".join(self._parts), self.length
        self._parts, self.length = [], 0
        return (data if length <= self._limit else data[:1024]), length


def json_row(line: bytes, offset: int, plan: ReadPlan) -> Row:
    """The row of one line of JSON Lines that starts at byte `offset`."""
    try:
        value = json.loads(line.decode("utf-8"))
        if isinstance(value, dict):
            return _object_row(value, line, offset, plan)
        reason, why = "not_an_object", type(value).__name__
    except UnicodeDecodeError as error:
        reason, why = "undecodable", f"byte {error.start} of the line"
    except json.JSONDecodeError as error:
        reason, why = "invalid_json", f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets without end
        reason, why = "invalid_json", str(error)
    return Row(offset, None, None, reason=reason, detail=f"line at byte {offset}: {why}: {excerpt(line)}")


def _object_row(value: dict[str, Any], line: bytes, offset: int, plan: ReadPlan) -> Row:
    id_column, own_id = _json_id(value, plan)
    text, reason, why = _json_text(value, plan)
    if reason is None and plan.id_field is not None and own_id is None:
        reason, why = "missing_id", f"no '{plan.id_field}'"
    return Row(
        offset,
        own_id,
        text,
        title=as_text(value.get(plan.title_field)) or None,
        source=as_text(value.get("source")) or None,
        reason=reason,
        detail=None if reason is None else f"line at byte {offset}: {why}: {excerpt(line)}",
        extra=_json_extra(value, plan, id_column),
    )


def _json_text(value: dict[str, Any], plan: ReadPlan) -> tuple[str | None, str | None, str]:
    """(text to keep, reason why it is rejected or None, what to say about it)"""
    name = plan.text_field
    if name not in value:
        return None, "missing_text", f"no '{name}'"
    text = value[name]
    if text is None:
        return None, "null_text", f"'{name}' is null"
    if not isinstance(text, str):
        return None, "wrong_type", f"'{name}' is a {type(text).__name__}"
    reason = text_problem(text, plan.max_chars)
    if reason == "too_long":
        return None, reason, f"{len(text)} characters"
    return encodable(text), reason, f"'{name}'"


def _json_id(value: dict[str, Any], plan: ReadPlan) -> tuple[str | None, str | None]:
    """The column that holds the id, and the id as a string; None for what is not there or no scalar."""
    names = (plan.id_field,) if plan.id_field is not None else ("id", "_id")
    column = next((n for n in names if n in value), None)
    found = value.get(column) if column is not None else None
    if isinstance(found, bool) or not isinstance(found, str | int | float) or found == "":
        return column, None
    return column, encodable(str(found))


def _json_extra(value: dict[str, Any], plan: ReadPlan, id_column: str | None) -> dict[str, str | None]:
    if plan.columns is not None:
        return {name: as_text(value.get(name)) for name, _ in plan.columns}
    return {encodable(n): as_text(v) for n, v in value.items() if not plan.is_own_column(n, id_column)}
