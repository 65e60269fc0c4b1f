"""Corpus folders as files: their metadata, which of their files make the split "train", and the documents in those.

A corpus folder holds `merlin_metadata.json` and what `datasets.load_dataset(folder)["train"]` reads as id and text:
Parquet, Arrow or JSON Lines. Documents come as checked batches; what is wrong with them is noted and reading goes on.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import OutputFile
from raycurate.core.storage import FileEntry
from raycurate.data.corpora.corpus import CORPUS_SCHEMA
from raycurate.data.documents.ids import id_strings, id_text, is_id_type, is_string_like
from raycurate.data.documents.parquet_schema import check_names
from raycurate.data.training.training_lines import json_lines
from raycurate.data.training.training_report import Problems

METADATA = "merlin_metadata.json"
CORPUS_CLASS = "TextQADataset"
BATCH_ROWS = 16_384

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_READERS = (".parquet", ".arrow", ".jsonl", ".jsonl.gz", ".jsonl.zst")


def read_metadata(folder: str) -> dict[str, Any]:
    """`merlin_metadata.json` of a corpus folder, checked.

    Raises:
        InputError: there is no such folder or file, or it is not what it must be.
    """
    path = storage.join(folder, METADATA)
    if not storage.is_dir(folder):
        raise InputError("there is no such corpus folder", where=folder)
    if not storage.exists(path):
        raise InputError(f"the corpus folder has no {METADATA}", where=folder)
    return check_metadata(storage.read_bytes(path), path)


def check_metadata(data: bytes, path: str) -> dict[str, Any]:
    """The content of a metadata file; `class` may be left out, any class but TextQADataset is refused.

    Raises:
        InputError: no JSON object, no corpus_id, values that are no strings.
    """
    try:
        found = json.loads(data)
    except ValueError as error:
        raise InputError(f"it is not JSON ({error})", where=path) from None
    if not isinstance(found, dict) or not isinstance(found.get("corpus_id"), str) or not found["corpus_id"]:
        raise InputError("it must be an object with a 'corpus_id' that is a string", where=path)
    for name in ("query_instruction", "passage_instruction"):
        if not isinstance(found.get(name, ""), str):
            raise InputError(f"'{name}' must be a string", where=path)
    if found.get("class", CORPUS_CLASS) != CORPUS_CLASS:
        raise InputError(f"corpora of class {found['class']!r} cannot be read, only {CORPUS_CLASS}", where=path)
    return found


def train_files(folder: str) -> list[FileEntry]:
    """The files of a corpus folder that make its split "train", sorted by path.

    As `datasets.load_dataset` does: where names of files or sub-folders mark splits, those of train; else all.

    Raises:
        InputError: none, or files of several formats.
    """
    root = storage.normalise(folder)
    entries = [e for e in storage.list_files(folder) if _format(e.path) and not _hidden(e.path[len(root) :])]
    splits = {e.path: _split_of(e.path[len(root) :]) for e in entries}
    if any(splits.values()):
        entries = [e for e in entries if splits[e.path] == "train"]
    if not entries:
        raise InputError(
            f"the corpus folder has no training documents ({', '.join(_READERS)})",
            where=folder,
            fix="Name the file train.parquet",
        )
    formats = sorted({_format(e.path).partition(".")[0] for e in entries})
    if len(formats) > 1:
        raise InputError(f"the corpus folder mixes files of several formats: {', '.join(formats)}", where=folder)
    return entries


def _format(path: str) -> str:
    """`parquet`, `arrow`, `jsonl`, `jsonl.gz`, `jsonl.zst`, or "" for what is no file of documents."""
    name = posixpath.basename(storage.without_options(path)).lower()
    return next((suffix[1:] for suffix in _READERS if name.endswith(suffix)), "")


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/") if part)


def _split_of(path: str) -> str | None:
    for split, words in _SPLIT_WORDS.items():
        if re.search(rf"(^|[-._ /0-9])({'|'.join(words)})([-._ /0-9]|$)", path):
            return split
    return None


# --- documents of one file ----------------------------------------------------------------------


def documents_of(entry: FileEntry, problems: Problems) -> Iterator[pa.RecordBatch]:
    """Checked batches of `CORPUS_SCHEMA`."""
    kind = _format(entry.path)
    if kind.startswith("jsonl"):
        yield from _jsonl_documents(entry, problems)
        return
    row = 0
    for batch in _parquet_batches(entry) if kind == "parquet" else _arrow_batches(entry):
        columns = _checked_columns(batch, entry.path, problems)
        if columns is None:
            return
        checked = pa.record_batch(columns, schema=CORPUS_SCHEMA)
        _note_blank(checked, entry.path, row, problems)
        yield checked
        row += batch.num_rows


def _parquet_batches(entry: FileEntry) -> Iterator[pa.RecordBatch]:
    found, inner = storage.filesystem(entry.path)
    with found.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        check_names(file.schema_arrow, entry.path)
        names = [n for n in ("id", "text") if n in file.schema_arrow.names]
        yield from file.iter_batches(BATCH_ROWS, columns=names, use_threads=False)


def _arrow_batches(entry: FileEntry) -> Iterator[pa.RecordBatch]:
    found, inner = storage.filesystem(entry.path)
    with found.open_input_file(inner) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:  # what the datasets library writes
            yield from pa.ipc.open_stream(source)


def _checked_columns(batch: pa.RecordBatch, path: str, problems: Problems) -> list[pa.Array] | None:
    for name, fits in (("id", is_id_type), ("text", is_string_like)):
        if name not in batch.schema.names:
            hint = (
                "; texts of a corpus with ids only are restored by `raycurate prep --dataset`" if name == "text" else ""
            )
            problems.add("wrong columns", path, f"there is no column '{name}' ({', '.join(batch.schema.names)}){hint}")
        elif not fits(batch.schema.field(name).type):
            problems.add("wrong columns", path, f"column '{name}' is {batch.schema.field(name).type}")
        else:
            continue
        return None
    text = batch["text"]
    text = text.dictionary_decode() if pa.types.is_dictionary(text.type) else text
    return [id_strings(batch["id"]), text.cast(CORPUS_SCHEMA.field("text").type)]


def _jsonl_documents(entry: FileEntry, problems: Problems) -> Iterator[pa.RecordBatch]:
    ids: list[str] = []
    texts: list[str] = []

    def batch() -> pa.RecordBatch:
        return pa.record_batch([pa.array(ids, pa.string()), pa.array(texts, pa.large_string())], schema=CORPUS_SCHEMA)

    for line, value in json_lines(entry, problems):
        where = f"{entry.path}:{line}"
        own = value.get("id") if isinstance(value, dict) else None
        found = "" if own == "" else id_text(own)
        text = value.get("text") if isinstance(value, dict) else None
        if found is None or not isinstance(text, str):
            problems.add("bad documents", where, "it must be an object with 'id' and 'text'")
            continue
        if not text.strip() or not found:
            problems.add("empty documents", where, f"the document {own!r} has no {'text' if found else 'id'}")
        ids.append(found)
        texts.append(text)
        if len(ids) >= BATCH_ROWS:
            yield batch()
            ids, texts = [], []
    yield batch()


def _note_blank(batch: pa.RecordBatch, path: str, first: int, problems: Problems) -> None:
    """Note ids and texts that are null or blank."""
    for name in ("id", "text"):
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(batch[name]), ""), True).to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(blank):
            shown = batch["id"][int(i)].as_py()
            problems.add("empty documents", f"{path}: row {first + int(i)}", f"its '{name}' is empty (id {shown!r})")


# --- writing ------------------------------------------------------------------------------------


def write_corpus(
    folder: str,
    corpus_id: str,
    table: pa.Table | Iterable[pa.RecordBatch],
    *,
    query_instruction: str = "",
    passage_instruction: str = "",
    extra: Mapping[str, Any] | None = None,
) -> list[OutputFile]:
    """Write a corpus folder: `train.parquet` (id, text) and `merlin_metadata.json`.

    Args:
        folder: local, or a URI.
        corpus_id: what training files name it by.
        table: columns id and text (others are left out), whole or as batches.
        query_instruction: put in the metadata when it is not empty, as is `passage_instruction`.
        extra: further members of the metadata.

    Returns:
        The files, their paths relative to `folder`.
    """
    batches = table.to_batches(max_chunksize=BATCH_ROWS) if isinstance(table, pa.Table) else table
    schema = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.string())])
    rows = 0
    data = storage.join(folder, "train.parquet")
    with storage.open_output(data) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for batch in batches:
            columns = [batch.column(batch.schema.get_field_index(n)).cast(pa.string()) for n in ("id", "text")]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            rows += batch.num_rows
    metadata: dict[str, Any] = {"corpus_id": corpus_id, "class": CORPUS_CLASS}
    metadata |= {"query_instruction": query_instruction} if query_instruction else {}
    metadata |= {"passage_instruction": passage_instruction} if passage_instruction else {}
    path = storage.join(folder, METADATA)
    metadata |= extra or {}
    storage.write_text(path, json.dumps(metadata, ensure_ascii=False, indent=2) + "\n")
    sizes = [storage.list_files(p)[0].size for p in (data, path)]
    return [OutputFile(path="train.parquet", size=sizes[0], rows=rows), OutputFile(path=METADATA, size=sizes[1])]
