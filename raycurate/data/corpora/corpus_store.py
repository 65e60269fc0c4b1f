"""Corpora as Arrow files: copied once from their folders, then mapped into memory by every reader.

A corpus folder (`corpus_files`) is copied batch by batch to an Arrow file in the cache. The copy is keyed by the
listing of the files that it was made from, so a changed corpus is a new copy and an unchanged one is opened at once.
Folders of the cache that no corpus needs any more can be deleted at any time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raycurate.core.cache import cache_folder
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.once import Discard, once
from raycurate.core.storage import FileEntry
from raycurate.data.corpora.corpus import CORPUS_SCHEMA, Corpus, IdIndex, gather
from raycurate.data.corpora.corpus_files import documents_of, read_metadata, train_files
from raycurate.data.training.training_report import Problems

STORE_VERSION = 1


def open_corpus(folder: str, *, cache_dir: str | None = None) -> Corpus:
    """The corpus of a folder; on first sight its documents are checked and copied to the cache.

    Args:
        folder: local, or a URI.
        cache_dir: where Arrow copies lie, see `core.cache.cache_folder`.

    Raises:
        InputError: what is wrong with it, all of it.
    """
    problems = Problems(f"the corpus {folder}")
    corpus = try_corpus(folder, cache_dir, problems)
    problems.raise_if_any()
    assert corpus is not None
    return corpus


def try_corpus(folder: str, cache_dir: str | None, problems: Problems) -> Corpus | None:
    """As `open_corpus`, but what is wrong is noted in `problems` and None comes back."""
    try:
        metadata = read_metadata(folder)
        store = build_store(train_files(folder), "corpora", cache_dir, problems)
    except InputError as error:
        problems.add("unusable corpora", error.where or folder, error.what)
        return None
    if store is None:
        return None
    instructions = (metadata.get("query_instruction", ""), metadata.get("passage_instruction", ""))
    return load_store(store, metadata["corpus_id"], folder, *instructions)


# --- the Arrow copy -----------------------------------------------------------------------------


def build_store(files: list[FileEntry], kind: str, cache_dir: str | None, problems: Problems) -> Path | None:
    """The folder of the Arrow copy of `files`, made if it is not there; None when something is wrong with them."""
    listing = [(e.path, e.size, e.mtime_ns) for e in files]
    folder = cache_folder(cache_dir) / kind / fingerprint([STORE_VERSION, listing])
    before = problems.total
    with once(folder) as temporary:
        if temporary is not None:
            origins = write_documents(temporary, files, problems)
            ids = _map(temporary)[0]
            _note_duplicates(ids, save_index(temporary, ids), origins, problems)
            if problems.total > before:
                raise Discard
    return folder if problems.total == before else None


def write_documents(temporary: Path, files: list[FileEntry], problems: Problems) -> list[tuple[int, str]]:
    """Write `documents.arrow`; (first row, path) of each file comes back."""
    origins, rows = [], 0
    with pa.OSFile(str(temporary / "documents.arrow"), "wb") as sink, pa.ipc.new_file(sink, CORPUS_SCHEMA) as writer:
        for entry in files:
            origins.append((rows, entry.path))
            try:
                for batch in documents_of(entry, problems):
                    writer.write_batch(batch)
                    rows += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                problems.add("unreadable files", entry.path, f"it cannot be read ({error})")
    return origins


def save_index(folder: Path, ids: pa.ChunkedArray) -> IdIndex:
    """Write the hash index of a store beside its documents."""
    index = IdIndex.of(ids)
    np.save(folder / "hashes.npy", index.hashes)
    np.save(folder / "rows.npy", index.rows)
    return index


def open_index(store: str) -> IdIndex:
    """The hash index of a store, mapped into memory."""
    hashes, rows = (np.load(Path(store) / name, mmap_mode="r") for name in ("hashes.npy", "rows.npy"))
    return IdIndex(hashes, rows)


def load_store(store: Path, corpus_id: str, path: str, query_instruction: str, passage_instruction: str) -> Corpus:
    """The corpus of a store, mapped into memory."""
    ids, texts = _map(store)
    return Corpus(corpus_id, path, ids, texts, query_instruction, passage_instruction, store=str(store))


def _map(store: Path) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    with pa.memory_map(str(store / "documents.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    return table["id"], table["text"]


def reopen(corpus_id: str, path: str, query_instruction: str, passage_instruction: str, store: str) -> Corpus:
    """A corpus that another process has opened: from the same store, or from its folder where there is no such store.

    Raises:
        InputError: neither is here.
    """
    if Path(store).is_dir():
        return load_store(Path(store), corpus_id, path, query_instruction, passage_instruction)
    if not path:
        raise InputError(
            "the documents of this inline file are in the cache of another machine",
            where=store,
            fix="Set RAYCURATE_CACHE to a folder that all machines share, or write the documents as a corpus folder",
        )
    return open_corpus(path)


def _note_duplicates(ids: pa.ChunkedArray, index: IdIndex, origins: list[tuple[int, str]], problems: Problems) -> None:
    """Note every id that stands more than once; equal hashes are next to each other in the index."""
    equal = np.flatnonzero(index.hashes[1:] == index.hashes[:-1])
    if not len(equal):
        return
    suspects = np.unique(np.concatenate([equal, equal + 1]))
    rows = np.sort(index.rows[suspects])
    starts = np.array([first for first, _ in origins])
    first_row: dict[str, int] = {}
    for row, name in zip(rows.tolist(), gather(ids, rows).to_pylist(), strict=True):
        if name not in first_row:
            first_row[name] = row
            continue
        places = []
        for r in (row, first_row[name]):
            file = int(np.searchsorted(starts, r, side="right")) - 1
            places.append(f"{origins[file][1]}: row {r - origins[file][0]}")
        problems.add("duplicate document ids", places[0], f"the document id {name!r} stands at {places[1]} too")
