"""Corpus-ID JSON: one object with the folders of its corpora and rows that name documents by id.

The rows are streamed, one in memory at a time, because such files reach gigabytes. The mined and unrolled files that
this project writes have the same form and are read by the same code.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import ConfigError
from raycurate.core.storage import FileEntry
from raycurate.data.documents.parquet_schema import check_names
from raycurate.data.training.inline import strict_json
from raycurate.data.training.training_lines import JsonObjectReader, JsonStreamError
from raycurate.data.training.training_report import Problems
from raycurate.data.training.training_rows import BY_ID, RowsBuilder

_BATCH_ROWS = 4096


class CorpusIdFile(NamedTuple):
    """The rows of a file (`training_rows.RAW_SCHEMA`) and the corpora it names, as they can be opened from here."""

    rows: pa.Table
    corpora: list[str]


def read_corpus_id_json(entry: FileEntry, problems: Problems) -> CorpusIdFile:
    """Read a corpus-ID JSON file; what is wrong with it is noted in `problems`."""
    rows = RowsBuilder(BY_ID, problems)
    corpora: list[str] = []
    reader = JsonObjectReader(entry.path, "data")
    try:
        for member in reader:
            where = f"{entry.path}:{member.line}"
            if member.element >= 0:
                rows.add(member.value, member.line, f"{where} (data[{member.element}])")
            elif member.name == "corpus":
                corpora = list(_corpus_paths(member.value, entry.path, where, problems))
            elif member.name == "data":
                problems.add("wrong types", where, "'data' must be a list")
        for name in ("corpus", "data"):
            if reader.names.count(name) != 1:
                found = "no" if name not in reader.names else "more than one"
                problems.add("missing keys", entry.path, f"there is {found} '{name}'; a corpus-ID JSON has one of each")
    except JsonStreamError as error:
        problems.add("bad JSON", f"{entry.path}:{error.line}", f"{error}{_hint(reader.names)}")
    except (OSError, pa.ArrowException) as error:
        problems.add("unreadable files", entry.path, f"it cannot be read ({error})")
    return CorpusIdFile(rows.finish(), corpora)


def _hint(names: list[str]) -> str:
    return "" if {"corpus", "data"} & set(names) else " (inline rows, one a line, belong in a file named .jsonl)"


def _corpus_paths(value: Any, file: str, where: str, problems: Problems) -> Iterator[str]:
    for listed in value if isinstance(value, list) else [value]:
        path = listed.get("path") if isinstance(listed, Mapping) else None
        if not isinstance(path, str) or not path:
            problems.add("wrong types", where, "'corpus' must be {\"path\": folder}, or a list of such")
            continue
        yield resolve(path, file)


def resolve(path: str, file: str) -> str:
    """`path` as `file` means it: relative ones start from the file's folder."""
    if storage.is_remote(path):
        return path
    if posixpath.isabs(path):
        return posixpath.normpath(path)
    scheme, separator, inner = file.rpartition("://")
    return f"{scheme}{separator}{posixpath.normpath(posixpath.join(posixpath.dirname(inner), path))}"


def read_queries_parquet(entry: FileEntry, corpus_id: str, problems: Problems) -> pa.Table:
    """The rows of a hub sub-set's queries.parquet (question_id, question, corpus_id, pos_doc, neg_doc).

    Returns:
        `training_rows.RAW_SCHEMA`; `line` is the row's number from 0. A row without a corpus_id gets `corpus_id`.
    """
    rows = RowsBuilder(BY_ID, problems)
    number = 0
    try:
        found, inner = storage.filesystem(entry.path)
        with found.open_input_file(inner) as source:
            file = pq.ParquetFile(source)
            check_names(file.schema_arrow, entry.path)
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                for value in batch.to_pylist():
                    row = {"neg_doc": [], **value, "corpus_id": value.get("corpus_id") or corpus_id}
                    rows.add(row, number, f"{entry.path}:{number}")
                    number += 1
    except (OSError, pa.ArrowException) as error:
        problems.add("unreadable files", entry.path, f"it cannot be read ({error})")
    return rows.finish()


def write_corpus_id_json(
    path: str,
    corpus: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    rows: Iterable[Mapping[str, Any]],
    *,
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Write a corpus-ID JSON file, one row a line, as the rows come.

    Args:
        path: local, or a URI.
        corpus: `{"path": folder}`, relative to the file or absolute, or several.
        rows: objects with question_id, question, corpus_id, pos_doc and neg_doc.
        extra: further members of the object, put behind `data` (such as `mining`).

    Returns:
        The number of rows.

    Raises:
        InputError: something that JSON cannot carry (NaN, half a surrogate pair); nothing is written.
    """
    clash = {"corpus", "data"} & set(extra or {})
    if clash:
        raise ConfigError(f"extra members cannot be called {', '.join(sorted(clash))}", where=path)
    written = 0
    with storage.open_output(path) as stream:
        stream.write(b'{\n"corpus": ' + strict_json(corpus, f"{path}: corpus") + b',\n"data": [')
        for written, row in enumerate(rows, start=1):
            stream.write(b",\n" if written > 1 else b"\n")
            stream.write(strict_json(row, f"{path}: data[{written - 1}]"))
        stream.write(b"\n]")
        for name, value in (extra or {}).items():
            stream.write(b",\n" + strict_json(name, path) + b": " + strict_json(value, f"{path}: {name}"))
        stream.write(b"\n}\n")
    return written
