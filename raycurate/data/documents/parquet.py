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
from raycurate.data.documents.ids import id_strings, is_id_type, is_string_like
from raycurate.data.documents.parquet_schema import plain_type, widen
from raycurate.data.documents.rows import (
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
from raycurate.data.documents.segments import PARQUET_ROW_BITS, PartitionValues, Segment

_MIN_BATCH_ROWS = 16


def read_parquet_segment(segment: Segment, plan: ReadPlan, done: DoneRows) -> Iterator[pa.Table | Row]:
    """The rows of the row groups that start in the segment; of one that cannot be read, a reject for each row."""
    failed_at = (1 << PARQUET_ROW_BITS) + segment.start  # beyond every row number
    try:
        found, inner = storage.filesystem(segment.path)
        with found.open_input_file(inner) as source:
            size = source.size()
            if segment.size and size != segment.size:
                raise OSError(f"it had {segment.size} bytes when it was listed and has {size} now")
            file = pq.ParquetFile(source)
            columns = _Columns.of(file.schema_arrow, plan, segment.values)
            for group, first_row in _row_groups(file.metadata, segment):
                yield from _read_group(file, group, first_row, _GroupReader(segment, plan, done, columns))
    except (OSError, pa.ArrowException) as error:
        if failed_at not in done:
            whole = not segment.start and segment.end is None
            where = "the whole file" if whole else f"the row groups from byte {segment.start} on"
            yield unreadable(segment, failed_at, error, where)._replace(extra=dict(segment.values))


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
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:  # the last two of times beyond Python's
        extra = dict(segment.values)
        for lost in np.setdiff1d(np.arange(row, last_row, dtype=np.uint64), done.between(row, last_row)):
            where = f"row {lost}, with rows {row} to {last_row - 1}"
            yield unreadable(segment, int(lost), error, where)._replace(extra=extra)


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
    present: tuple[str, ...]
    mismatch: str | None
    """Why the whole file is of the wrong type, when its metadata cannot become what they are elsewhere."""

    @staticmethod
    def of(schema: pa.Schema, plan: ReadPlan, values: PartitionValues) -> _Columns:
        def present(name: str | None) -> str | None:
            return name if name is not None and name in schema.names else None

        id_names = (plan.id_field,) if plan.id_field is not None else ("id", "_id")
        id_column = next((n for n in id_names if n in schema.names and is_id_type(schema.field(n).type)), None)
        extra = plan.columns
        if extra is None:
            passed = [f for f in schema if not plan.is_own_column(f.name, id_column)]
            extra = tuple((f.name, pa.string() if plan.metadata_as_text else plain_type(f.type)) for f in passed)
            folders = (name for name, _ in values if name not in schema.names)
            extra += tuple((name, pa.string()) for name in folders if not plan.is_own_column(name, id_column))
        text = present(plan.text_field)
        return _Columns(
            text=text,
            text_is_string=text is not None and _is_text(schema.field(text).type),
            title=present(plan.title_field),
            source=present("source"),
            id=id_column,
            extra=extra,
            present=tuple(schema.names),
            mismatch=_mismatch(schema, extra),
        )

    @property
    def names(self) -> list[str]:
        found = [self.text, self.title, self.source, self.id, *(n for n, _ in self.extra)]
        present = set(self.present)
        return list(dict.fromkeys(n for n in found if n is not None and n in present))


def _is_text(kind: pa.DataType) -> bool:
    return is_string_like(kind) or pa.types.is_null(kind)  # a column of nulls has no other type


def _mismatch(schema: pa.Schema, extra: tuple[tuple[str, pa.DataType], ...]) -> str | None:
    for name, wanted in extra:
        if name not in schema.names or pa.types.is_string(wanted):
            continue
        found = plain_type(schema.field(name).type)
        try:
            widen(pa.nulls(0, found), wanted)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return f"column '{name}' is {found}, in all files together it is {wanted}"
        except pa.ArrowInvalid:
            continue  # some values may fit
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
    text, cut = _texts(batch, plan, columns, verdict)
    own = id_strings(batch[columns.id]) if columns.id is not None else pa.nulls(batch.num_rows, pa.string())
    ids = _ids(own, positions, reader, text, verdict)
    extra = [_metadata(batch, name, kind, reader, verdict) for name, kind in columns.extra]
    arrays = [
        pa.array(plan.keys(reader.segment.file_index, positions)),
        ids,
        text,
        _optional_strings(batch, columns.title),
        pc.fill_null(_optional_strings(batch, columns.source), source_of(path)),
        pa.array(cut & np.array([reason is None for reason in verdict.reasons])),
        pa.array(verdict.reasons, pa.string()),
        pa.array(verdict.details, pa.string()),
    ]
    fields = [*plan.base_fields, *(pa.field(n, k) for n, k in columns.extra)]
    return pa.Table.from_arrays([*arrays, *extra], schema=pa.schema(fields))


def _ids(
    ids: pa.StringArray, positions: np.ndarray, reader: _GroupReader, text: pa.StringArray, verdict: _Verdict
) -> pa.Array:
    """The ids, of the plan's type; made where there is none and the user named no column, else the row is a reject."""
    plan = reader.plan
    made_up = pa.types.is_string(plan.id_type)
    if plan.id_field is not None or not made_up:
        verdict.reject(_mask(ids.is_null()), "missing_id", text)
    if not made_up:
        integers, bad = _cast_each(ids, plan.id_type)
        verdict.reject(bad, "wrong_type", text, f"the id is no {plan.id_type}")
        return integers
    if not ids.null_count:
        return ids
    known, file = ids.is_valid().to_pylist(), reader.segment.name or reader.segment.path
    made = [None if k else generated_id(file, int(p)) for k, p in zip(known, positions, strict=True)]
    return pc.coalesce(ids, pa.array(made, pa.string()))


def _texts(
    batch: pa.RecordBatch, plan: ReadPlan, columns: _Columns, verdict: _Verdict
) -> tuple[pa.StringArray, np.ndarray]:
    """The texts, null where there is none to keep, and which are beginnings; what is wrong goes into `verdict`."""
    rows = batch.num_rows
    nothing, everything, whole = pa.nulls(rows, pa.string()), np.ones(rows, bool), np.zeros(rows, bool)
    if columns.text is None:
        verdict.reject(everything, "missing_text", nothing, f"no column '{plan.text_field}'")
        return nothing, whole
    if not columns.text_is_string:
        kind = batch[columns.text].type
        verdict.reject(everything, "wrong_type", nothing, f"column '{plan.text_field}' is {kind}")
        return nothing, whole
    text, undecodable = _strings(batch[columns.text])
    if columns.mismatch is not None:
        verdict.reject(everything, "wrong_type", text, columns.mismatch)
    verdict.reject(undecodable, "undecodable", text)
    verdict.reject(_mask(text.is_null()), "null_text", text)
    verdict.reject(_mask(pc.equal(pc.utf8_trim_whitespace(text), "")), "empty_text", text)
    too_long = _mask(pc.greater(pc.utf8_length(text), plan.max_chars))
    if not too_long.any() and not undecodable.any():
        return text, whole
    dropped = undecodable
    if plan.over_long == "reject":
        verdict.reject(too_long, "too_long", text, f"more than {plan.max_chars} characters")
        dropped, too_long = undecodable | too_long, whole
    beginnings = pc.utf8_slice_codeunits(text, 0, plan.max_chars)
    verdict.reject(_mask(pc.equal(pc.utf8_trim_whitespace(beginnings), "")) & ~dropped, "empty_text", beginnings)
    text = pc.if_else(pa.array(too_long), beginnings, text)
    return pc.if_else(pa.array(~dropped), text, pa.scalar(None, pa.string())), too_long


def _mask(answers: pa.BooleanArray) -> np.ndarray:
    """A numpy mask of the rows for which the answer is yes; null is no."""
    return pc.fill_null(answers, False).to_numpy(zero_copy_only=False)


def _strings(column: pa.Array) -> tuple[pa.StringArray, np.ndarray]:
    """A column as strings, and a mask of the values that were not UTF-8 (their bad bytes are replaced)."""
    good = np.zeros(len(column), bool)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
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


def _metadata(batch: pa.RecordBatch, name: str, kind: pa.DataType, reader: _GroupReader, verdict: _Verdict) -> pa.Array:
    """A metadata column as `kind`; a value that cannot become it is null and its row rejected.

    What the folders say holds where the file has no such column.
    """
    rows = batch.num_rows
    if reader.columns.mismatch is not None:
        return pa.nulls(rows, kind)
    if name not in batch.schema.names:
        return _cast_each(pa.array([dict(reader.segment.values).get(name)] * rows, pa.string()), kind)[0]
    column = batch[name]
    if pa.types.is_string(kind):
        return _strings(column)[0]
    try:
        return widen(column, kind)
    except pa.ArrowException:
        widened, bad = _cast_each(column, kind)
    text = pa.nulls(rows, pa.string())
    verdict.reject(bad, "wrong_type", text, f"'{name}' cannot become {kind}, which it is in all files together")
    return widened


def _cast_each(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """The values as `kind`, null where one cannot become it, and a mask of those."""
    try:
        return widen(column, kind), np.zeros(len(column), bool)
    except pa.ArrowException:
        values = [_cast(column[i : i + 1], kind) for i in range(len(column))]
    bad = np.array([v is None for v in values], bool)
    return pa.concat_arrays([pa.nulls(1, kind) if v is None else v for v in values]), bad


def _cast(value: pa.Array, kind: pa.DataType) -> pa.Array | None:
    try:
        return widen(value, kind)
    except pa.ArrowException:
        return None
