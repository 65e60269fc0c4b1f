"""The data-preparation step of the llama-embed-nemotron-8b recipe, for nvidia/embed-nemotron-dataset-v1.

    prepare_nemotron("nvidia/embed-nemotron-dataset-v1", "./embed_nemotron_dataset_v1")

The data set has a folder a sub-set (fourteen of them: FEVER, HotpotQA, MIRACL, ...), each with corpus.parquet (id,
text), queries.parquet (question_id, question, corpus_id, pos_doc, neg_doc) and dataset_metadata.json (corpus_id,
instructions, ids_only). Where a licence forbids to hand texts on, `ids_only` is true, there is no text, and `question`
holds an id: `d_17` is document 17 and `q_5` question 5 of the original data set, counted from 0 in its own order.
source_config.json says which that is, in one of two ways (`loader_config`):

    mteb     source_repo's config "corpus" (split "corpus") and config "queries" (split "queries"), column text of each
    column   source_repo, `subset` if given, `split`; columns `query_column` and `document_column`

That is the layout that NeMo AutoModel's own preparation script reads; anything else is an error here, never a guess.
What comes out is what that script writes, SUBSET/corpus/{train.parquet, merlin_metadata.json} and SUBSET/SUBSET.json,
but for two things: the corpus is named relative to the JSON file, so that the folder can be moved, and what cannot be
trained on (blank texts, a negative that is a positive too) is left out, counted and kept in SUBSET/rejects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import ConfigError, InputError, nearest
from raycurate.core.hub import DATASET, snapshot
from raycurate.core.manifest import (
    REJECTS,
    STAGING,
    Manifest,
    OutputFile,
    StageKey,
    commit,
    listing_fingerprint,
    one_writer,
    package_versions,
)
from raycurate.core.observe import get_logger
from raycurate.data.corpora.corpus_files import BATCH_ROWS, check_metadata, write_corpus
from raycurate.data.corpora.corpus_id import write_corpus_id_json
from raycurate.data.training.inline import write_inline_jsonl
from raycurate.data.training.nemotron_sources import SOURCE_CONFIG, SourceTexts, open_source
from raycurate.data.training.training import read_training_data
from raycurate.data.training.training_files import SUBSET_CORPUS, SUBSET_METADATA, SUBSET_QUERIES

ALGORITHM_VERSION = 1

_INSTRUCTIONS = ("query_instruction", "passage_instruction")
_FILES = (SUBSET_CORPUS, SUBSET_QUERIES, SUBSET_METADATA, SOURCE_CONFIG)
_log = get_logger(__name__)


@dataclass(frozen=True)
class Subset:
    """A prepared sub-set: its training file and what is in it.

    `left_out` counts what was not taken over, by reason; `restored` says that the texts came from another data set.
    """

    name: str
    path: str
    questions: int
    documents: int
    restored: bool
    left_out: Mapping[str, int]
    skipped: bool


@dataclass(frozen=True)
class NemotronData:
    """All sub-sets, as `read_training_data(result.sources)` reads them."""

    output: str
    subsets: tuple[Subset, ...]

    @property
    def sources(self) -> list[str]:
        return [s.path for s in self.subsets]

    def summary(self) -> str:
        """A line a sub-set, and the totals."""
        lines = [f"{'sub-set':<28} {'questions':>11} {'documents':>11}  texts"]
        for s in self.subsets:
            notes = ["restored" if s.restored else "own"] + (["done before"] if s.skipped else [])
            notes += [f"{count:,} {reason}" for reason, count in s.left_out.items()]
            lines.append(f"{s.name:<28} {s.questions:>11,} {s.documents:>11,}  {', '.join(notes)}")
        questions, documents = (sum(getattr(s, n) for s in self.subsets) for n in ("questions", "documents"))
        lines.append(f"{len(self.subsets)} sub-sets{'':<18} {questions:>11,} {documents:>11,}\noutput {self.output}")
        return "\n".join(lines)


def prepare_nemotron(
    dataset: str,
    download_path: str,
    *,
    subsets: Sequence[str] | None = None,
    cache_dir: str | None = None,
    overwrite: bool = False,
) -> NemotronData:
    """Download the data set, restore what it has only ids of, and write it as training data.

    A sub-set that is done already (its manifest says so) is skipped, so a run that was cut off goes on.

    Args:
        dataset: `org/name` on the hub (with `@revision` if need be), or a local folder of that layout.
        download_path: where the sub-sets are written.
        subsets: only these; all by default.
        cache_dir: where Arrow copies lie, see `core.cache.cache_folder`, and where original data sets are put, in
            `datasets` below it; without it those go to the datasets library's own cache.
        overwrite: replace sub-sets that were made from something else.

    Raises:
        InputError: the hub cannot be reached, the layout is not the one above, or what was written cannot be read.
        MissingDependencyError: a sub-set has ids only and the package `datasets` is not installed.
    """
    root = _locate(dataset)
    found = _subset_names(root)
    for name in subsets or ():
        if name not in found:
            close = nearest(name, found)
            hint = f"Did you mean '{close}'?" if close else f"Sub-sets: {', '.join(found)}"
            raise ConfigError(f"there is no sub-set '{name}'", where=dataset, fix=hint)
    output = storage.normalise(download_path)
    done = []
    for name in subsets or found:
        _log.info("preparing %s", name)
        done.append(_prepare(name, f"{root}/{name}", storage.join(output, name), cache_dir, overwrite=overwrite))
    return NemotronData(output, tuple(done))


def _locate(dataset: str) -> str:
    """The local folder of the data set."""
    if Path(dataset).expanduser().is_dir():
        return storage.normalise(dataset)
    name, _, revision = dataset.removeprefix("hf://").removeprefix("datasets/").partition("@")
    if dataset.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError("there is no such folder, and a data set of the hub is named org/name", where=dataset)
    return snapshot(name, [f"*/{file}" for file in _FILES], kind=DATASET, revision=revision or None)


def _subset_names(root: str) -> list[str]:
    suffix = f"/{SUBSET_CORPUS}"
    paths = [e.path[len(root) + 1 :] for e in storage.list_files(root)]
    names = sorted(p.removesuffix(suffix) for p in paths if p.endswith(suffix) and p.count("/") == 1)
    if not names:
        raise InputError(f"no folder in it has a {SUBSET_CORPUS}", where=root)
    return names


def _prepare(name: str, folder: str, output: str, cache_dir: str | None, *, overwrite: bool) -> Subset:
    files = [e for e in storage.list_files(folder, recursive=False) if e.path.rpartition("/")[2] in _FILES]
    missing = {SUBSET_CORPUS, SUBSET_QUERIES, SUBSET_METADATA} - {e.path.rpartition("/")[2] for e in files}
    if missing:
        raise InputError(f"the sub-set has no {', '.join(sorted(missing))}", where=folder)
    metadata_path = storage.join(folder, SUBSET_METADATA)
    metadata = check_metadata(storage.read_bytes(metadata_path), metadata_path)
    key = StageKey(
        stage="nemotron",
        algorithm_version=ALGORITHM_VERSION,
        input_fingerprint=listing_fingerprint(files),
        options={"subset": name},
    )
    path = storage.join(output, f"{name}.json")
    with one_writer(output, key, overwrite=overwrite) as done:
        manifest, skipped = done, done is not None
        if manifest is None:
            storage.make_dir(storage.join(output, STAGING))  # so that what a cut-off run leaves is known as its own
            sources = storage.join(cache_dir, "datasets") if cache_dir else None
            texts = open_source(folder, sources) if metadata.get("ids_only") else None
            writer = _Writer(folder, output, metadata, texts)
            written = [*writer.corpus(), *writer.questions(path), *writer.rejects()]
            read_training_data(path, cache_dir=cache_dir)  # whatever is wrong is found now, not when training starts
            versions = package_versions("raycurate", "datasets")
            counts, rejects = dict(writer.counts), dict(writer.left_out)
            manifest = Manifest(
                key=key, inputs=[folder], files=written, counts=counts, rejects=rejects, versions=versions
            )
            commit(output, manifest)
    restored = bool(metadata.get("ids_only"))
    counts = manifest.counts
    return Subset(name, path, counts["questions"], counts["documents"], restored, manifest.rejects, skipped)


class _Writer:
    """Writes one sub-set; `counts` and `left_out` fill as it does.

    Args:
        folder: of the sub-set as it was downloaded.
        output: where it is written.
        metadata: its dataset_metadata.json.
        texts: the original's texts for a sub-set with ids only, else None.
    """

    def __init__(self, folder: str, output: str, metadata: Mapping[str, Any], texts: SourceTexts | None) -> None:
        self._folder, self._output, self._metadata, self._texts = folder, output, metadata, texts
        self.counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self._rejects: list[dict[str, Any]] = []
        self._blank: set[str] = set()
        self._question_ids: set[str] = set()

    def corpus(self) -> list[OutputFile]:
        """Write the documents that have a text."""
        kept = {k: v for k, v in self._metadata.items() if k not in ("corpus_id", "class", *_INSTRUCTIONS)}
        instructions = {k: self._metadata.get(k, "") for k in _INSTRUCTIONS}
        files = write_corpus(
            storage.join(self._output, "corpus"),
            self._metadata["corpus_id"],
            self._documents(),
            **instructions,
            extra=kept | {"ids_only": False},
        )
        return [f.model_copy(update={"path": f"corpus/{f.path}"}) for f in files]

    def _documents(self) -> Iterator[pa.RecordBatch]:
        path = storage.join(self._folder, SUBSET_CORPUS)
        wanted = ["id"] if self._texts else ["id", "text"]
        for batch in _batches(path, wanted):
            ids = batch["id"].cast(pa.string())
            texts = self._texts.documents.lookup(ids, path) if self._texts else batch["text"].cast(pa.large_string())
            blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
            for name in ids.filter(blank).to_pylist():
                self._blank.add(name)
                self._leave_out("blank documents", document=name)
            whole = pa.record_batch([ids, texts], names=["id", "text"]).filter(pc.invert(blank))
            self.counts["documents"] += whole.num_rows
            yield whole

    def questions(self, path: str) -> list[OutputFile]:
        """Write the training file; needs `corpus` to have run."""
        rows = write_corpus_id_json(path, {"path": "./corpus"}, self._rows())
        self.counts["questions"] = rows
        return [OutputFile(path=path.rpartition("/")[2], size=storage.list_files(path)[0].size, rows=rows)]

    def _rows(self) -> Iterator[dict[str, Any]]:
        path, number = storage.join(self._folder, SUBSET_QUERIES), 0
        for batch in _batches(path, ["question", "pos_doc"]):
            questions = batch["question"]
            if self._texts:
                questions = self._texts.questions.lookup(questions, path)
            for row, question in zip(batch.to_pylist(), questions.to_pylist(), strict=True):
                found = self._row(row, question, number)
                number += 1
                if found is not None:
                    yield found

    def _row(self, row: Mapping[str, Any], question: str | None, number: int) -> dict[str, Any] | None:
        """A row of the training file, or None for a question that cannot be trained on."""
        given = row.get("question_id")
        name = f"{self._folder.rpartition('/')[2]}:{number}" if given is None else str(given)
        positives, negatives = (_ids(row.get(key)) for key in ("pos_doc", "neg_doc"))
        kept = [d for d in positives if d not in self._blank]
        reason = None
        if not question or not question.strip():
            reason = "blank questions"
        elif not kept:
            reason = "questions without a positive"
        elif name in self._question_ids:
            reason = "repeated question ids"
        if reason is not None:
            self._leave_out(reason, question_id=name, question=question, row=number)
            return None
        self._question_ids.add(name)
        chosen = []
        for document in negatives:
            if document in self._blank:
                self._leave_out("blank negatives", question_id=name, document=document)
            elif document in kept:
                self._leave_out("negatives that are positives", question_id=name, document=document)
            else:
                chosen.append(document)
        return {
            "question_id": name,
            "question": question,
            "corpus_id": row.get("corpus_id") or self._metadata["corpus_id"],
            "pos_doc": [{"id": d} for d in kept],
            "neg_doc": [{"id": d} for d in chosen],
        }

    def _leave_out(self, reason: str, **what: Any) -> None:
        self.left_out[reason] += 1
        self._rejects.append({"reason": reason, **what})

    def rejects(self) -> list[OutputFile]:
        """Write what was left out, with the reasons; no file when that is nothing."""
        if not self._rejects:
            return []
        path = storage.join(self._output, REJECTS, "left_out.jsonl")
        rows = write_inline_jsonl(path, self._rejects)
        return [OutputFile(path=f"{REJECTS}/left_out.jsonl", size=storage.list_files(path)[0].size, rows=rows)]


def _ids(documents: Any) -> list[str]:
    listed = documents if isinstance(documents, list) else [] if documents is None else [documents]
    return [str(d["id"] if isinstance(d, Mapping) else d) for d in listed]


def _batches(path: str, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of a Parquet file that has at least the columns `wanted`."""
    found, inner = storage.filesystem(path)
    try:
        with found.open_input_file(inner) as source:
            file = pq.ParquetFile(source)
            missing = [n for n in wanted if n not in file.schema_arrow.names]
            if missing:
                columns = ", ".join(file.schema_arrow.names)
                raise InputError(f"there is no column '{missing[0]}'; columns: {columns}", where=path)
            yield from file.iter_batches(BATCH_ROWS, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read ({error})", where=path) from error
