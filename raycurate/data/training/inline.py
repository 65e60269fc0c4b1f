"""Inline rows: every row carries the texts of its documents; a line of JSONL each, or the elements of a JSON array.

The documents of a file become a corpus like any other: each text once, named by the start of its sha256, in the order
of its first appearance, in an Arrow file of the cache. So a text that is a positive here and a negative there is one
document, and a text that is both for one question is found out.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.core.cache import cache_folder
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.hashing import hex_digest
from raycurate.core.once import Discard, once
from raycurate.core.storage import FileEntry
from raycurate.data.corpora.corpus import CORPUS_SCHEMA, Corpus
from raycurate.data.corpora.corpus_store import STORE_VERSION, load_store, save_index
from raycurate.data.documents.segments import kind_of
from raycurate.data.training.training_lines import json_elements, json_lines
from raycurate.data.training.training_report import Problems
from raycurate.data.training.training_rows import INLINE, DocumentName, RowsBuilder

_BATCH_TEXTS = 4096


def document_id(text: str) -> str:
    """The id of a document that has none: `d_` and the first 16 hex digits of the sha256 of its text."""
    return "d_" + hex_digest(text, 16)


def read_inline(entry: FileEntry, cache_dir: str | None, problems: Problems) -> tuple[pa.Table, Corpus | None]:
    """The rows of an inline JSONL file (`training_rows.RAW_SCHEMA`), and their documents.

    Args:
        entry: .jsonl, .jsonl.gz or .jsonl.zst, or .json with an array of the rows.
        cache_dir: see `core.cache.cache_folder`.
        problems: where to note what is wrong; the corpus is None when anything is.
    """
    folder = cache_folder(cache_dir) / "inline" / fingerprint([STORE_VERSION, entry.path, entry.size, entry.mtime_ns])
    before = problems.total
    with once(folder) as temporary:
        texts = None if temporary is None else _Texts(temporary)
        table = _read_rows(entry, document_id if texts is None else texts.add, problems)
        good = problems.total == before
        if texts is not None:
            texts.close()
            if not good:
                raise Discard
            texts.write_unique(entry.path)
    return table, load_store(folder, f"inline:{entry.path}", "", "", "") if good else None


def _read_rows(entry: FileEntry, name_document: DocumentName, problems: Problems) -> pa.Table:
    rows = RowsBuilder(INLINE, problems, name_document)
    if not entry.path.lower().endswith(".json"):
        for line, value in json_lines(entry, problems):
            rows.add(value, line, f"{entry.path}:{line}")
        return rows.finish()
    for number, (line, value) in enumerate(json_elements(entry, problems), 1):  # all of it may be one line
        rows.add(value, line, f"{entry.path}:{line} (row {number})")
    return rows.finish()


class _Texts:
    """All texts of a file in the order of reading, and what is left when each is kept once.

    Which texts are equal is decided by 128 bits of their sha256, 16 bytes each in memory, and not by a set of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names, self._checks = array("Q"), array("Q")
        self._batch: list[str] = []
        self._sink = pa.OSFile(str(folder / "all.arrow"), "wb")
        self._schema = pa.schema([pa.field("text", pa.large_string())])
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def add(self, text: str) -> str:
        """Take a text; its document id."""
        digest = hex_digest(text, 32)
        self._names.append(int(digest[:16], 16))
        self._checks.append(int(digest[16:], 16))
        self._batch.append(text)
        if len(self._batch) >= _BATCH_TEXTS:
            self._flush()
        return "d_" + digest[:16]

    def _flush(self) -> None:
        self._writer.write_batch(pa.record_batch([pa.array(self._batch, pa.large_string())], schema=self._schema))
        self._batch = []

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._sink.close()

    def write_unique(self, path: str) -> None:
        """Write the documents and their index; raises InputError when two texts have one id."""
        names, checks = np.array(self._names, np.uint64), np.array(self._checks, np.uint64)
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        if (checks[first][inverse] != checks).any():
            raise InputError("two different texts have the same 64 bits of sha256, by which they are named", where=path)
        keep = np.zeros(len(names), bool)
        keep[first] = True
        source = self._folder / "all.arrow"
        with (
            pa.memory_map(str(source)) as mapped,
            pa.OSFile(str(self._folder / "documents.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, CORPUS_SCHEMA) as writer,
        ):
            reader, row = pa.ipc.open_file(mapped), 0
            for i in range(reader.num_record_batches):
                texts = reader.get_batch(i).column(0)
                here = keep[row : row + len(texts)]
                ids = pa.array([f"d_{n:016x}" for n in names[row : row + len(texts)][here]], pa.string())
                writer.write_batch(pa.record_batch([ids, texts.filter(pa.array(here))], schema=CORPUS_SCHEMA))
                row += len(texts)
        source.unlink()
        with pa.memory_map(str(self._folder / "documents.arrow")) as mapped:
            save_index(self._folder, pa.ipc.open_file(mapped).read_all()["id"])


def write_inline_jsonl(path: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as inline JSONL, compressed when the name ends in .gz or .zst; how many rows comes back.

    Raises:
        InputError: a row that JSON cannot carry (NaN, half a surrogate pair, an unknown type); nothing is written.
    """
    compression = kind_of(path)[1]
    written = 0
    with storage.open_output(path) as stream:
        sink = pa.CompressedOutputStream(stream, compression) if compression else stream
        for written, row in enumerate(rows, start=1):
            sink.write(strict_json(row, f"{path}: row {written}") + b"\n")
        if sink is not stream:
            sink.close()
    return written


def strict_json(value: Any, where: str) -> bytes:
    """`value` as one line of JSON in UTF-8; raises InputError for what JSON cannot carry."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"it cannot be written as JSON ({error})", where=where) from None
