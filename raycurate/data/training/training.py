"""Training data: questions with positive and negative documents, read from every form into one Arrow table.

    data = read_training_data(["train.json", {"path": "hf://org/repo/subset", "num_samples": 5000}])

Documents stay in their corpora, which are Arrow files that every process of a machine maps into memory and
none copies; a question names its documents by row number. So a reader that trains for days looks up nothing by
id, and whatever is wrong with a file is found, all of it, before anything runs.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.observe import get_logger
from raycurate.core.storage import FileEntry
from raycurate.data.corpora.corpus import Corpus
from raycurate.data.corpora.corpus_files import check_metadata, read_metadata, write_corpus
from raycurate.data.corpora.corpus_id import read_corpus_id_json, read_queries_parquet, write_corpus_id_json
from raycurate.data.corpora.corpus_store import build_store, load_store, open_corpus, try_corpus
from raycurate.data.training.inline import document_id, read_inline, write_inline_jsonl
from raycurate.data.training.training_files import (
    SUBSET_CORPUS,
    SUBSET_METADATA,
    Form,
    SourceSpec,
    TrainingFile,
    find_files,
    parse_sources,
)
from raycurate.data.training.training_report import Problems, Rejected
from raycurate.data.training.training_resolve import TABLE_SCHEMA, Opened, Resolver

__all__ = [
    "TABLE_SCHEMA",
    "Corpus",
    "TrainingData",
    "document_id",
    "open_corpus",
    "read_training_data",
    "write_corpus",
    "write_corpus_id_json",
    "write_inline_jsonl",
]

_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Questions and the corpora that their documents are in.

    `table` has the columns of `TABLE_SCHEMA`: `corpus` is an index into `corpora`, `pos` and `neg` are row numbers of
    that corpus in file order, the scores are null where a file gives none, `origin` is "file:line". A question_id
    is unique within its file; those that were generated are unique among all.
    """

    corpora: tuple[Corpus, ...]
    table: pa.Table
    rejected: tuple[Rejected, ...] = ()
    """Rows that were left out, where that was asked for."""

    def __len__(self) -> int:
        return self.table.num_rows


def read_training_data(
    sources: SourceSpec,
    *,
    require_negatives: bool = False,
    cache_dir: str | None = None,
    seed: int = 42,
    on_bad_rows: Literal["error", "drop"] = "error",
) -> TrainingData:
    """Read and check training data of any form, or several mixed.

    Args:
        sources: a file, folder, URI or hf://org/repo/subset; `{"path", "num_samples"}` for a sample; or a list of them.
        require_negatives: a question without negatives is an error.
        cache_dir: where Arrow copies of the documents lie; see `core.cache.cache_folder`.
        seed: of the samples, which are drawn without replacement from each source by itself.
        on_bad_rows: `drop` leaves out rows that cannot be used, and has them in `rejected`; what is wrong with a file
            or a corpus as a whole is an error all the same.

    Raises:
        InputError: everything that is wrong, in all files; none of the rows can be used.
        ConfigError: a source that is none.
    """
    problems = Problems(drops_rows=on_bad_rows == "drop")
    reader = _Reader(cache_dir, problems, require_negatives)
    tables = []
    for source in parse_sources(sources):
        parts = [TABLE_SCHEMA.empty_table()]
        with _noting(problems, source.path):
            for file in find_files(source.path):
                with _noting(problems, file.entry.path):
                    parts.append(reader.read(file))
        tables.append(_sample(pa.concat_tables(parts), source.num_samples, source.path, seed))
    problems.raise_if_any()
    rejected = tuple(problems.rejected.values())
    return TrainingData(tuple(reader.corpora), _with_ids(pa.concat_tables(tables), reader.labels), rejected)


@contextmanager
def _noting(problems: Problems, path: str) -> Iterator[None]:
    """An InputError of the block becomes one problem among others."""
    try:
        yield
    except InputError as error:
        problems.add("unusable sources", error.where or path, error.what, fix=error.fix)


class _Reader:
    """Reads file after file, each corpus once."""

    def __init__(self, cache_dir: str | None, problems: Problems, require_negatives: bool) -> None:
        self._cache_dir, self._problems, self._require_negatives = cache_dir, problems, require_negatives
        self.corpora: list[Corpus] = []
        self.labels: dict[str, str] = {}
        self._opened: dict[str, tuple[str | None, Opened]] = {}
        self._path_of: dict[str, str] = {}

    def read(self, file: TrainingFile) -> pa.Table:
        """The rows of a file as `TABLE_SCHEMA`, question_id null where it has none."""
        before = self._problems.total
        self.labels[file.entry.path] = file.label
        parse = {Form.INLINE: self._inline, Form.CORPUS_ID: self._by_id, Form.SUBSET: self._subset}[file.form]
        raw, corpora = parse(file.entry)
        resolver = Resolver(file.entry.path, corpora, self._problems, require_negatives=self._require_negatives)
        table = resolver.resolve(raw)
        if not table.num_rows and self._problems.total == before:
            lost = any(origin.startswith(f"{file.entry.path}:") for origin in self._problems.rejected)
            what = "none of its rows can be used; on_bad_rows=error says why" if lost else "it holds no questions"
            self._problems.add("empty files", file.entry.path, what)
        return table

    def _inline(self, entry: FileEntry) -> tuple[pa.Table, dict[str, Opened]]:
        raw, corpus = read_inline(entry, self._cache_dir, self._problems)
        corpus_id = f"inline:{entry.path}"
        named = pa.repeat(pa.scalar(corpus_id), raw.num_rows)
        raw = raw.set_column(raw.schema.get_field_index("corpus_id"), "corpus_id", named)
        if entry.path not in self._opened:
            self._opened[entry.path] = (corpus_id, self._keep(entry.path, corpus))
        return raw, {corpus_id: self._opened[entry.path][1]}

    def _by_id(self, entry: FileEntry) -> tuple[pa.Table, dict[str, Opened]]:
        raw, folders = read_corpus_id_json(entry, self._problems)
        found = [self._open_folder(storage.normalise(folder), entry.path) for folder in folders]
        corpora = {name: opened for name, opened in found if name is not None}
        if any(name is None for name, _ in found):  # which id an unreadable one has is not known, so none is unknown
            named = pc.unique(raw["corpus_id"]).to_pylist()
            corpora = dict.fromkeys(named, Opened(-1, None)) | corpora
        return raw, corpora

    def _subset(self, entry: FileEntry) -> tuple[pa.Table, dict[str, Opened]]:
        folder = entry.path.rpartition("/")[0]
        metadata_path = storage.join(folder, SUBSET_METADATA)
        metadata = check_metadata(storage.read_bytes(metadata_path), metadata_path)
        if metadata.get("ids_only"):
            raise InputError(
                "this sub-set has ids only; its texts are restored by `raycurate prep --dataset`",
                where=folder,
            )
        corpus_id = metadata["corpus_id"]
        if folder not in self._opened:
            files = storage.list_files(storage.join(folder, SUBSET_CORPUS))
            store = build_store(files, "corpora", self._cache_dir, self._problems)
            instructions = (metadata.get("query_instruction", ""), metadata.get("passage_instruction", ""))
            corpus = load_store(store, corpus_id, folder, *instructions) if store is not None else None
            self._opened[folder] = (corpus_id, self._keep(folder, corpus))
        return read_queries_parquet(entry, corpus_id, self._problems), {corpus_id: self._opened[folder][1]}

    def _open_folder(self, folder: str, named_by: str) -> tuple[str | None, Opened]:
        """The corpus_id of a corpus folder, None when not even that can be read, and the corpus."""
        if folder not in self._opened:
            try:
                corpus_id = read_metadata(folder)["corpus_id"]
                corpus = try_corpus(folder, self._cache_dir, self._problems)
            except InputError as error:
                what = f"{error.what}; {named_by} names it as its corpus"
                fix = error.fix or "Put the folder there, or change its path, which starts from the folder of that file"
                self._problems.add("unusable corpora", error.where or folder, what, fix=fix)
                corpus_id = corpus = None
            self._opened[folder] = (corpus_id, self._keep(folder, corpus))
        return self._opened[folder]

    def _keep(self, path: str, corpus: Corpus | None) -> Opened:
        """Give a corpus its place; one corpus_id for two corpora is a problem."""
        if corpus is None:
            return Opened(-1, None)
        other = self._path_of.setdefault(corpus.corpus_id, path)
        if other != path:
            what = f"the corpus_id {corpus.corpus_id!r} is also that of {other}"
            self._problems.add("corpus ids with two paths", path, what)
        self.corpora.append(corpus)
        return Opened(len(self.corpora) - 1, corpus)


def _sample(table: pa.Table, wanted: int | None, path: str, seed: int) -> pa.Table:
    """`wanted` rows drawn without replacement; all, with a warning, when there are no more."""
    if wanted is None:
        return table
    if wanted >= table.num_rows:
        if wanted > table.num_rows:
            _log.warning("%s: num_samples is %d, it has %d questions: all are used", path, wanted, table.num_rows)
        return table
    return table.take(pa.array(random.Random(seed).sample(range(table.num_rows), wanted)))


def _with_ids(table: pa.Table, labels: dict[str, str]) -> pa.Table:
    """Every question with an id: for one without, its file's label and line, as much of the path as makes it unique."""
    missing = table["question_id"].is_null()
    if not pc.any(missing).as_py():
        return table
    given = set(table["question_id"].drop_null().to_pylist())
    origins = table["origin"].filter(missing).to_pylist()
    short = [f"{labels[path]}:{line}" for path, _, line in (o.rpartition(":") for o in origins)]
    times = Counter(short)
    made = []
    for origin, name in zip(origins, short, strict=True):
        choice = name if times[name] == 1 else origin
        number = 2
        while choice in given:  # the same file named twice, or a user's id that looks like ours
            choice = f"{origin}#{number}"
            number += 1
        given.add(choice)
        made.append(choice)
    filled = pc.replace_with_mask(table["question_id"].combine_chunks(), missing.combine_chunks(), pa.array(made))
    return table.set_column(0, TABLE_SCHEMA.field("question_id"), filled)
