"""Reading segments of text and JSON files: plain functions, no Ray, so that each rule can be tested by itself.

`read_segments` is what a read task runs. Memory is bounded by one chunk, one line and one block, also for
files of any size; bytes are split on b"\\n" and nothing else, so that a form feed or a U+2028 inside a
document's text does not break its line in two.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.data.documents.ids import id_text
from raycurate.data.documents.json_values import DECODER, SNIFFED_BYTES, JsonValuesError, holds_lines, json_values
from raycurate.data.documents.markup import MarkupError, html_document, rst_document
from raycurate.data.documents.parquet import read_parquet_segment
from raycurate.data.documents.rows import (
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
from raycurate.data.documents.segments import Kind, Segment

CHUNK_BYTES = 4 << 20
COMPRESSED_CHUNK_BYTES = 64 << 10
"""Smaller, because a read that meets damage gives nothing: this much, at most, of what was whole is lost."""

MARKUP_SLACK_BYTES = 16 << 20
"""How much markup a page may hold beside the longest text allowed; what lies beyond is over-long."""

LINE_SLACK_BYTES = 64 << 20
"""How much a JSON line may hold beside the longest text allowed before it is rejected without being held."""

_BOM = b"\xef\xbb\xbf"


def read_segments(segments: Iterable[Segment], plan: ReadPlan, done: np.ndarray | None = None) -> Iterator[pa.Table]:
    """All rows that start in `segments` and are not done, as tables of about `plan.block_bytes`.

    Args:
        segments: pieces of files, see `raycurate.data.documents.segments`.
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
            builder.add(segment, piece)
            if builder.full:
                yield from builder.flush()
    yield from builder.flush()


def read_rows(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[Row]:
    """The rows of a text or JSON Lines segment; what cannot be read gives a row that says so."""
    if segment.kind is Kind.JSONL:
        yield from _read_jsonl(segment, plan, done)
    elif segment.kind is Kind.JSON:
        yield from _read_json(segment, plan, done)
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
    # No UTF-8 character is longer than 4 bytes; how much of a page is markup nobody knows.
    limit = 4 * plan.max_chars + len(_BOM) + (0 if segment.kind is Kind.TEXT else MARKUP_SLACK_BYTES)
    extra = dict(segment.values)
    try:
        with open_segment(segment) as stream:
            data = stream.read(limit + 1)
    except (OSError, pa.ArrowException) as error:
        return unreadable(segment, 0, error)._replace(extra=extra)
    cut = len(data) > limit
    if cut and plan.over_long == "reject":
        too_long = f"file of {segment.size} bytes: {excerpt(data)}"
        return Row(0, None, None, reason="too_long", detail=too_long, extra=extra)
    title: str | None = None
    try:
        # Of a character that the limit went through, the first bytes are left out.
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:limit].removeprefix(_BOM), final=not cut)
        text = text.replace("\r\n", "\n")
        if segment.kind is Kind.HTML:
            text, title = html_document(text)
        elif segment.kind is Kind.RST:
            text, title = rst_document(text)
    except UnicodeDecodeError as error:
        return Row(0, None, None, reason="undecodable", detail=f"byte {error.start}: {excerpt(data)}", extra=extra)
    except MarkupError as error:
        return unreadable(segment, 0, error)._replace(extra=extra)
    kept, reason = _checked(text, plan)
    detail = None if reason is None else f"{len(text)} characters: {excerpt(text)}"
    cut = reason is None and (cut or len(text) > plan.max_chars)
    return Row(0, None, kept, title, reason=reason, detail=detail, extra=extra, cut=cut)


def _checked(text: str, plan: ReadPlan) -> tuple[str | None, str | None]:
    """(text to keep, reason why it is rejected or None): at most max_chars characters."""
    if len(text) > plan.max_chars and plan.over_long == "reject":
        return None, "too_long"
    text = text[: plan.max_chars]
    return encodable(text), text_problem(text)


# --- JSON ---------------------------------------------------------------------------------------


def _line_limit(plan: ReadPlan) -> int:
    return plan.max_chars * 12 + LINE_SLACK_BYTES  # \ud83d\ude00 is one character in 12 bytes


def _read_json(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[Row]:
    """The rows of a .json file, which may be JSON Lines, an array, or objects one after the other."""
    rows, position = _JsonRows(segment, plan), 0
    try:
        with open_segment(segment) as stream:
            if holds_lines(stream.read(SNIFFED_BYTES).removeprefix(_BOM)):
                yield from _read_jsonl(segment, plan, done)
                return
        with open_segment(segment) as stream:
            for offset, value, text in json_values(stream, _line_limit(plan)):
                if offset not in done:
                    yield rows.of_value(value, offset, text, what="value")
                position = offset + 1
    except JsonValuesError as error:
        if error.offset not in done:
            yield rows.reject(error.offset, "invalid_json", f"from byte {error.offset} to the end: {error}")
    except (OSError, pa.ArrowException) as error:
        if position not in done:
            yield unreadable(segment, position, error)._replace(extra=dict(segment.values))


def _read_jsonl(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[Row]:
    lines, rows = Lines(segment, _line_limit(plan)), _JsonRows(segment, plan)
    try:
        for offset, line, length in lines:
            if offset in done:
                continue
            if length > len(line):
                yield rows.reject(offset, "too_long", f"line at byte {offset}: {length} bytes: {excerpt(line)}")
                continue
            content = line.removeprefix(_BOM) if offset == 0 else line
            if content and not content.isspace():
                yield rows.of_line(content, offset)
    except (OSError, pa.ArrowException) as error:
        if lines.position not in done:
            yield unreadable(segment, lines.position, error)._replace(extra=dict(segment.values))


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


@dataclass(frozen=True)
class _JsonRows:
    """Makes rows of JSON values."""

    segment: Segment
    plan: ReadPlan

    def reject(self, offset: int, reason: str, detail: str) -> Row:
        extra = dict(self.segment.values)
        return Row(offset, None, None, reason=reason, detail=encodable(detail), extra=extra)

    def of_line(self, line: bytes, offset: int) -> Row:
        """The row of one line of JSON Lines that starts at byte `offset`."""
        try:
            return self.of_value(DECODER.decode(line.decode("utf-8")), offset, line, what="line")
        except UnicodeDecodeError as error:
            reason, why = "undecodable", f"byte {error.start} of the line"
        except json.JSONDecodeError as error:
            reason, why = "invalid_json", f"{error.msg} at character {error.pos}"
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets without end
            reason, why = "invalid_json", str(error)
        return self.reject(offset, reason, f"line at byte {offset}: {why}: {excerpt(line)}")

    def of_value(self, value: Any, offset: int, shown: str | bytes, *, what: str) -> Row:
        """The row of a value. shown, what: how it is written and what it is, for what is said of a reject."""
        where, plan = f"{what} at byte {offset}", self.plan
        if not isinstance(value, dict):
            return self.reject(offset, "not_an_object", f"{where}: {type(value).__name__}: {excerpt(shown)}")
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
            detail=None if reason is None else f"{where}: {why}: {excerpt(shown)}",
            extra=self._extra(value, id_column),
            cut=reason is None and len(value[plan.text_field]) > plan.max_chars,
        )

    def _extra(self, value: dict[str, Any], id_column: str | None) -> dict[str, str | None]:
        """The metadata; what the folders say holds where the row itself says nothing."""
        folders, plan = dict(self.segment.values), self.plan
        if plan.columns is not None:
            return {name: as_text(value[name]) if name in value else folders.get(name) for name, _ in plan.columns}
        own = {encodable(n): as_text(v) for n, v in value.items() if not plan.is_own_column(n, id_column)}
        return folders | own


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
    kept, reason = _checked(text, plan)
    return kept, reason, f"{len(text)} characters" if reason == "too_long" else f"'{name}'"


def _json_id(value: dict[str, Any], plan: ReadPlan) -> tuple[str | None, str | None]:
    """The column that holds the id, and the id as text; None for what is not there or cannot be an id."""
    names = (plan.id_field,) if plan.id_field is not None else ("id", "_id")
    column = next((n for n in names if n in value), None)
    return column, None if column is None else id_text(value[column])
