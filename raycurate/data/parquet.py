"""Reading Parquet segments: whole columns at a time, a reject mask instead of a loop over rows.

A row group belongs to the segment in which its first byte lies, so the driver can cut a file without
opening it. Positions are row numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.data.rows import (
    BASE_FIELDS,
    BLOCK_ROWS,
    DoneRows,
    ReadPlan,
    Row,
    as_text,
    excerpt,
    generated_id,
    source_of,
    unreadable,
)
from raycurate.data.segments import PARQUET_ROW_BITS, Segment

_MIN_BATCH_ROWS = 16


def is_string_like(kind: pa.DataType) -> bool:
    """True for string, large_string, string_view and dictionaries of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_scalar_id(kind: pa.DataType) -> bool:
    """True for what can be written as an id: strings, integers, floats (dictionaries of them too)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_string_like(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type a metadata column comes out as: strings of all sorts as string, dictionaries as their values."""
    if is_string_like(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def read_schema(path: str) -> pa.Schema:
    """The Arrow schema of a Parquet file, from its footer.

    Raises:
        OSError, pa.ArrowException: the file cannot be read as Parquet.
    """
    found, inner = storage.filesystem(path)
    with found.open_input_file(inner) as file:
        return pq.ParquetFile(file).schema_arrow


def read_parquet_segment(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[pa.Table | Row]:
    """The rows of the row groups that start in the segment; a Row for each piece that cannot be read."""
    failed_at = (1 << PARQUET_ROW_BITS) + segment.start  # beyond every row number
    try:
        found, inner = storage.filesystem(segment.path)
        with found.open_input_file(inner) as source:
            size = source.size()
            if segment.size and size != segment.size:
                raise OSError(f"it had {segment.size} bytes when it was listed and has {size} now")
            file = pq.ParquetFile(source)
            columns = _Columns.of(file.schema_arrow, plan)
            for group, first_row in _row_groups(file.metadata, segment):
                yield from _read_group(file, group, first_row, _GroupReader(segment, plan, done, columns))
    except (OSError, pa.ArrowException) as error:
        if failed_at not in done:
            yield unreadable(segment, failed_at, error)


def _row_groups(metadata: pq.FileMetaData, segment: Segment) -> Iterator[tuple[int, int]]:
    """(row group, number of its first row) of the row groups that start in the segment."""
    first_row = 0
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        column = described.column(0)
        offsets = [column.data_page_offset, column.dictionary_page_offset]
        start = min(o for o in offsets if o)
        if start >= segment.start and (segment.end is None or start < segment.end):
            yield group, first_row
        first_row += described.num_rows


@dataclass(frozen=True)
class _GroupReader:
    segment: Segment
    plan: ReadPlan
    done: DoneRows
    columns: _Columns


def _read_group(file: pq.ParquetFile, group: int, first_row: int, reader: _GroupReader) -> Iterator[pa.Table | Row]:
    segment, plan, done = reader.segment, reader.plan, reader.done
    described = file.metadata.row_group(group)
    last_row = first_row + described.num_rows
    if len(done.between(first_row, last_row)) >= described.num_rows:
        return
    row_bytes = max(1, described.total_byte_size // max(described.num_rows, 1))
    batch_rows = min(BLOCK_ROWS, max(_MIN_BATCH_ROWS, plan.block_bytes // row_bytes))
    row = first_row
    try:
        for batch in file.iter_batches(batch_rows, [group], reader.columns.names, use_threads=False):
            positions = np.arange(row, row + batch.num_rows, dtype=np.uint64)
            keep = ~done.mask(positions)
            if keep.any():
                table = _documents(batch, positions, reader)
                yield table if keep.all() else table.filter(pa.array(keep))
            row += batch.num_rows
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if not len(done.between(row, row + 1)):
            yield unreadable(segment, row, error, f"rows {row} to {last_row - 1}")


# --- columns ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Which of a file's columns are read, and as what."""

    text: str | None
    text_is_string: bool
    title: str | None
    source: str | None
    id: str | None
    extra: tuple[tuple[str, pa.DataType], ...]
    mismatch: str | None
    """Why the whole file is of the wrong type, when its metadata cannot become what they are elsewhere."""

    @staticmethod
    def of(schema: pa.Schema, plan: ReadPlan) -> _Columns:
        def present(name: str | None) -> str | None:
            return name if name is not None and name in schema.names else None

        id_names = (plan.id_field,) if plan.id_field is not None else ("id", "_id")
        id_column = next((n for n in id_names if n in schema.names and is_scalar_id(schema.field(n).type)), None)
        extra = plan.columns
        if extra is None:
            passed = [f for f in schema if not plan.is_own_column(f.name, id_column)]
            extra = tuple((f.name, pa.string() if plan.metadata_as_text else plain_type(f.type)) for f in passed)
        text = present(plan.text_field)
        return _Columns(
            text=text,
            text_is_string=text is not None and is_string_like(schema.field(text).type),
            title=present(plan.title_field),
            source=present("source"),
            id=id_column,
            extra=extra,
            mismatch=_mismatch(schema, extra),
        )

    @property
    def names(self) -> list[str]:
        found = [self.text, self.title, self.source, self.id, *(n for n, _ in self.extra)]
        return list(dict.fromkeys(n for n in found if n is not None))


def _mismatch(schema: pa.Schema, extra: tuple[tuple[str, pa.DataType], ...]) -> str | None:
    for name, wanted in extra:
        if name not in schema.names or pa.types.is_string(wanted):
            continue
        found = plain_type(schema.field(name).type)
        try:
            pa.nulls(0, found).cast(wanted)
        except pa.ArrowNotImplementedError:
            return f"column '{name}' is {found}, in the first file it is {wanted}"
    return None


class _Verdict:
    """Why which rows of a batch are rejected; the first reason that applies to a row stays."""

    def __init__(self, positions: np.ndarray) -> None:
        self._positions = positions
        self.reasons: list[str | None] = [None] * len(positions)
        self.details: list[str | None] = [None] * len(positions)

    def reject(self, mask: np.ndarray, reason: str, text: pa.Array, why: str = "") -> None:
        for i in np.flatnonzero(mask):
            if self.reasons[i] is None:
                parts = [f"row {self._positions[i]}", why, excerpt(text[int(i)].as_py() or "")]
                self.reasons[i], self.details[i] = reason, ": ".join(p for p in parts if p)


def _documents(batch: pa.RecordBatch, positions: np.ndarray, reader: _GroupReader) -> pa.Table:
    """The output rows of one batch of a file."""
    plan, columns, path = reader.plan, reader.columns, reader.segment.path
    plan.check_position(int(positions[-1]), path)
    verdict = _Verdict(positions)
    text = _texts(batch, plan, columns, verdict)
    ids = _optional_strings(batch, columns.id)
    if plan.id_field is not None:
        verdict.reject(_mask(ids.is_null()), "missing_id", text)
    if ids.null_count:
        known = ids.is_valid().to_pylist()
        made = [None if k else generated_id(path, int(p)) for k, p in zip(known, positions, strict=True)]
        ids = pc.coalesce(ids, pa.array(made, pa.string()))
    extra = [_metadata(batch, name, kind, columns, verdict) for name, kind in columns.extra]
    arrays = [
        pa.array(plan.keys(reader.segment.file_index, positions)),
        ids,
        text,
        _optional_strings(batch, columns.title),
        pc.fill_null(_optional_strings(batch, columns.source), source_of(path)),
        pa.array(verdict.reasons, pa.string()),
        pa.array(verdict.details, pa.string()),
    ]
    fields = [*BASE_FIELDS, *(pa.field(n, k) for n, k in columns.extra)]
    return pa.Table.from_arrays([*arrays, *extra], schema=pa.schema(fields))


def _texts(batch: pa.RecordBatch, plan: ReadPlan, columns: _Columns, verdict: _Verdict) -> pa.StringArray:
    """The texts, null where there is none to keep; what is wrong with them goes into `verdict`."""
    rows = batch.num_rows
    nothing, everything = pa.nulls(rows, pa.string()), np.ones(rows, bool)
    if columns.text is None:
        verdict.reject(everything, "missing_text", nothing, f"no column '{plan.text_field}'")
        return nothing
    if not columns.text_is_string:
        kind = batch[columns.text].type
        verdict.reject(everything, "wrong_type", nothing, f"column '{plan.text_field}' is {kind}")
        return nothing
    text, undecodable = _strings(batch[columns.text])
    if columns.mismatch is not None:
        verdict.reject(everything, "wrong_type", text, columns.mismatch)
    verdict.reject(undecodable, "undecodable", text)
    verdict.reject(_mask(text.is_null()), "null_text", text)
    verdict.reject(_mask(pc.equal(pc.utf8_trim_whitespace(text), "")), "empty_text", text)
    too_long = _mask(pc.greater(pc.utf8_length(text), plan.max_chars))
    verdict.reject(too_long, "too_long", text, f"more than {plan.max_chars} characters")
    dropped = too_long | undecodable
    return pc.if_else(pa.array(~dropped), text, pa.scalar(None, pa.string())) if dropped.any() else text


def _mask(answers: pa.BooleanArray) -> np.ndarray:
    """A numpy mask of the rows for which the answer is yes; null is no."""
    return pc.fill_null(answers, False).to_numpy(zero_copy_only=False)


def _strings(column: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """A column as strings, and a mask of the values that were not UTF-8 (their bad bytes are replaced)."""
    good = np.zeros(len(column), bool)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return column.cast(pa.string()), good
    if not is_string_like(column.type):
        return pa.array([as_text(v) for v in column.to_pylist()], pa.string()), good
    strings = column.cast(pa.string())
    try:
        strings.validate(full=True)
        return strings, good
    except pa.ArrowInvalid:
        raw = strings.cast(pa.binary()).to_pylist()
    decoded = [None if r is None else r.decode("utf-8", "replace") for r in raw]
    bad = [d is not None and d.encode() != r for d, r in zip(decoded, raw, strict=True)]
    return pa.array(decoded, pa.string()), np.array(bad, bool)


def _optional_strings(batch: pa.RecordBatch, name: str | None) -> pa.StringArray:
    """A column as strings, "" as null; nulls when there is no such column."""
    if name is None:
        return pa.nulls(batch.num_rows, pa.string())
    strings = _strings(batch[name])[0]
    return pc.if_else(pc.equal(strings, ""), pa.scalar(None, pa.string()), strings)


def _metadata(batch: pa.RecordBatch, name: str, kind: pa.DataType, columns: _Columns, verdict: _Verdict) -> pa.Array:
    """A metadata column as `kind`; a value that cannot become it is null and its row rejected."""
    if name not in batch.schema.names or columns.mismatch is not None:
        return pa.nulls(batch.num_rows, kind)
    column = batch[name]
    if pa.types.is_string(kind):
        return _strings(column)[0]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        values = [_cast(column[i : i + 1], kind) for i in range(len(column))]
    bad = np.array([v is None for v in values])
    text = pa.nulls(len(column), pa.string())
    verdict.reject(bad, "wrong_type", text, f"'{name}' cannot become {kind}, which it is in the first file")
    return pa.concat_arrays([pa.nulls(1, kind) if v is None else v for v in values])


def _cast(value: pa.Array, kind: pa.DataType) -> pa.Array | None:
    try:
        return value.cast(kind)
    except pa.ArrowInvalid:
        return None
