"""Reading a bounded part of outputs that may be of any size, and saying which part it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.data.documents.documents import DocumentsOptions, list_documents, make_plan
from raycurate.data.documents.reading import read_segments
from raycurate.data.documents.segments import cut
from raycurate.report.runs import Run, StageOutput

SEED = 0
_DOCUMENT_BYTES = 48 << 20  # of documents that are read
_DOCUMENT_FILES = 4000
_PARQUET_FILES = 400  # that are opened for one figure
_SCANNED_BYTES = 256 << 20  # of Parquet that is searched for the rows of an example


@dataclass(frozen=True)
class Documents:
    """Documents of the run's corpus: id, title (may be null), text, those that can be used.

    `path`: where they were read; `whole`: whether that is all of it; `template`: how title and text become one text
    for the model; `texts`: id -> (title, text).
    """

    table: pa.Table
    path: str
    whole: bool
    template: str = "{title} {text}"
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.num_rows


def read_corpus(run: Run) -> Documents | None:
    """The corpus that was embedded, or a random part of it; None where the run does not say what it was.

    Raises:
        InputError: it is not there any more, or cannot be read.
    """
    embed = run.of("embed")
    options = _options(run, embed)
    if options is None:
        return None
    listing = list_documents(options)
    segments = cut(listing.files)
    whole = listing.total_bytes <= _DOCUMENT_BYTES and len(segments) <= _DOCUMENT_FILES
    if not whole:
        order = np.random.default_rng(SEED).permutation(len(segments))[:_DOCUMENT_FILES]
        segments = [segments[place] for place in order]
    tables, size = [], 0
    for table in read_segments(segments, make_plan(options, [], listing)):
        good = table.filter(pc.is_null(table["reject_reason"])).select(["id", "title", "text"])
        tables.append(good)
        size += good.nbytes
        if not whole and size > _DOCUMENT_BYTES:
            break
    if not tables:
        return None
    read = pa.concat_tables(tables)
    contract = (embed.manifest.contract if embed and embed.manifest else None) or {}
    rows = (row for batch in read.to_batches(max_chunksize=4096) for row in batch.to_pylist())
    texts = {row["id"]: (row["title"] or "", row["text"]) for row in rows}
    template = contract.get("document_template") or "{title} {text}"
    return Documents(read, ", ".join(_inputs(options)), whole, template, texts)


def _options(run: Run, embed: StageOutput | None) -> DocumentsOptions | None:
    """How the documents were read for embedding; without that stage, the sample corpus as it is."""
    if embed is not None:
        chosen = {name: embed.options[name] for name in DocumentsOptions.model_fields if name in embed.options}
        given = chosen.get("input") or []
        chosen["input"] = [embed.now(path) for path in ([given] if isinstance(given, str) else given)]
        return DocumentsOptions.parse({**chosen, "metadata_fields": [], "id_type": "text"}, where=embed.folder)
    corpus = run.of("sample-corpus")
    return (
        DocumentsOptions.parse({"input": [corpus.folder], "id_type": "text"}, where=corpus.folder) if corpus else None
    )


def _inputs(options: DocumentsOptions) -> list[str]:
    return [options.input] if isinstance(options.input, str) else options.input


def parquet_rows(paths: Sequence[str], columns: Sequence[str], limit: int) -> tuple[pa.Table | None, bool]:
    """About `limit` rows at most, of files chosen at random where there are many, and whether these are all.

    None where there is no file. Columns that a file does not have are an error.

    Raises:
        InputError: a file cannot be read.
    """
    chosen = list(paths)
    if len(chosen) > _PARQUET_FILES:
        order = np.random.default_rng(SEED).permutation(len(chosen))[:_PARQUET_FILES]
        chosen = [chosen[place] for place in sorted(order)]
    whole = len(chosen) == len(paths)
    tables, rows = [], 0
    for path in chosen:
        for batch in _batches(path, columns):
            tables.append(batch)
            rows += batch.num_rows
            if rows >= limit:
                return pa.concat_tables(tables).slice(0, limit), False
    return (pa.concat_tables(tables) if tables else None), whole


def _batches(path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    filesystem, inner = storage.filesystem(path)
    try:
        with filesystem.open_input_file(inner) as source:
            for batch in pq.ParquetFile(source).iter_batches(columns=list(columns)):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read as Parquet ({error})", where=path) from error


def random_rows(files: Mapping[str, int], columns: Sequence[str], wanted: int) -> pa.Table | None:
    """Random rows, as many from each file as its share of all rows asks for; of each, one row group is read.

    Args:
        files: path -> rows.
    """
    random = np.random.default_rng(SEED)
    named = [path for path, rows in files.items() if rows]
    total = sum(files[path] for path in named)
    if len(named) > _PARQUET_FILES:
        shares = np.array([files[path] for path in named], float) / total
        named = [named[i] for i in sorted(random.choice(len(named), _PARQUET_FILES, replace=False, p=shares))]
        total = sum(files[path] for path in named)
    tables = []
    for path in named:
        take = int(np.ceil(wanted * files[path] / total)) if total > wanted else files[path]
        tables.append(_from_groups(path, columns, take, random))
    if not tables:
        return None
    table = pa.concat_tables(tables)
    if table.num_rows <= wanted:
        return table
    return table.take(np.sort(random.choice(table.num_rows, wanted, replace=False)))


def _from_groups(path: str, columns: Sequence[str], take: int, random: np.random.Generator) -> pa.Table:
    filesystem, inner = storage.filesystem(path)
    try:
        with filesystem.open_input_file(inner) as source:
            file = pq.ParquetFile(source)
            tables, rows = [], 0
            # Groups are read until there are four times as many rows as are taken: neighbours in a file are alike.
            for group in random.permutation(file.num_row_groups):
                tables.append(file.read_row_group(int(group), columns=list(columns)))
                rows += tables[-1].num_rows
                if rows >= 4 * take:
                    break
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read as Parquet ({error})", where=path) from error
    table = pa.concat_tables(tables)
    return table.take(random.choice(rows, take, replace=False)) if rows > take else table


def find_rows(paths: Sequence[str], key: str, wanted: set[str], columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows whose `key` is wanted, by key; a Parquet corpus of more than 256 MB is not searched."""
    found: dict[str, dict[str, Any]] = {}
    if sum(entry.size for path in paths for entry in storage.list_files(path)) > _SCANNED_BYTES:
        return found
    values = pa.array(sorted(wanted), pa.string())
    for path in paths:
        for batch in _batches(path, [key, *columns]):
            hit = batch.filter(pc.is_in(batch[key].cast(pa.string()), values))
            found |= {row[key]: row for row in hit.to_pylist()}
        if len(found) == len(wanted):
            break
    return found


def first_lines(path: str, size: int) -> list[str]:
    """The whole lines among the first `size` bytes of a file."""
    filesystem, inner = storage.filesystem(path)
    try:
        with filesystem.open_input_stream(inner) as stream:
            data = stream.read(size)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read ({error})", where=path) from error
    lines = data.decode("utf-8", errors="replace").split("\n")
    return lines[:-1] if len(data) == size else lines


def read_json(path: str) -> Any:
    """A JSON file.

    Raises:
        InputError: it is not there, or is none.
    """
    try:
        return json.loads(storage.read_text(path))
    except ValueError as error:
        raise InputError(f"it is not JSON ({error})", where=path, fix="Run the stage that writes it again") from error
