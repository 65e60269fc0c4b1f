"""Training data made ready: tokens, keys and passage lists in one folder of the cache, mapped by every rank.

    prepared = prepare(data, EncoderOptions(model=folder), contract, PrepareOptions())

The folder's name is a fingerprint of all that decides what is in it: tokenizer, prefixes, lengths, questions, corpora.
So the first process of a machine makes it, the others wait for it and map it, and the next run opens it at once. It can
be deleted whenever no run uses it.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raycurate.core.cache import cache_folder
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.manifest import package_versions
from raycurate.core.observe import get_logger
from raycurate.core.once import once
from raycurate.data.corpora.corpus import Corpus, gather
from raycurate.data.training.training import TrainingData
from raycurate.models.contract import EmbeddingContract
from raycurate.models.fetch import fetch_encoder
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import TokenBatch
from raycurate.training.batches.known_positives import KnownPositives, document_keys, question_keys, text_keys
from raycurate.training.batches.options import PassageOptions, TextOptions
from raycurate.training.batches.passages import DocumentLists, Passages, choose_passages
from raycurate.training.batches.teacher import Teacher, TeacherOptions
from raycurate.training.batches.tokens import CHUNK, TextTokens, check_lengths, open_tokens, padding_id, write_tokens

PREPARED_VERSION = 2

_log = get_logger(__name__)


class PrepareOptions(TextOptions):
    """What is made of the training data.

    What is longer than allowed is cut at the end. Instructions and a space stand before a corpus's questions and
    passages, nothing where its metadata has none, as in NeMo AutoModel. pad_token: see `tokens.padding_id`.
    data_cache: see `core.cache.cache_folder`. teacher: also its vectors of all questions and documents.
    """

    passages: PassageOptions = PassageOptions()
    teacher: TeacherOptions | None = None


class Prepared:
    """Opened training data: arrays mapped into memory. It travels to another process as its folder's name.

    Attributes:
        queries, documents: `TokenBatch` of all questions and of all documents that can come up.
        passages: which documents each question is trained with.
        corpus_of: int32 [n], the place of each question's corpus.
        question_keys: int64 [n]; document_keys, text_keys: int64 [documents]; known: `KnownPositives` of the questions.
        pad_id, positions: the id that pads a row; how many positions the model has, None without a limit.
        cut: how many questions and documents were longer than allowed.
        teacher_questions, teacher_documents: a teacher's vectors, float32 [n, D] and [documents, D]; None without one.

    Raises (when opened):
        InputError: the folder is not on this machine.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        root = Path(folder)
        if not (root / "meta.json").is_file():
            raise InputError(
                f"there are no prepared training data here ({socket.gethostname()})",
                where=folder,
                fix="Let every machine prepare them, or set RAYCURATE_CACHE to a folder that all machines share",
            )
        meta = json.loads((root / "meta.json").read_text())
        arrays = {p.stem: np.load(p, mmap_mode="r") for p in root.glob("*.npy")}
        self.queries: TokenBatch = open_tokens(root, "questions")
        self.documents: TokenBatch = open_tokens(root, "documents")
        positives, negatives = (
            DocumentLists(*(arrays[f"{name}_{part}"] for part in ("offsets", "members", "scores")))
            for name in ("positives", "negatives")
        )
        options = PassageOptions(**meta["passages"])
        self.passages = Passages(options, arrays["corpus_of_document"], arrays["row_of_document"], positives, negatives)
        self.corpus_of = arrays["corpus_of"]
        self.question_keys = arrays["question_keys"]
        self.document_keys, self.text_keys = arrays["document_keys"], arrays["text_keys"]
        self.known = KnownPositives(arrays["known_group"], arrays["known_offsets"], arrays["known_keys"])
        self.pad_id: int = meta["pad_id"]
        self.positions: int | None = meta["positions"]
        self.cut: dict[str, int] = meta["cut"]
        self.teacher_questions: np.ndarray | None = arrays.get("teacher_questions")
        self.teacher_documents: np.ndarray | None = arrays.get("teacher_documents")

    def __len__(self) -> int:
        """Questions."""
        return len(self.queries)

    def __reduce__(self) -> Any:
        return (Prepared, (self.folder,))

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The question_ids of `rows`."""
        return gather(self._question_ids, np.asarray(rows, np.int64)).to_pylist()

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens that a question costs: its own, and for each passage those of its longest."""
        lengths = self.documents.lengths
        longest = np.zeros(len(self), np.int64)
        for lists in (self.passages.positives, self.passages.negatives):
            full = lists.counts > 0
            if full.any():
                most = np.maximum.reduceat(lengths[lists.members], lists.offsets[:-1][full])
                longest[full] = np.maximum(longest[full], most)
        return self.queries.lengths + self.passages.options.n_passages * longest

    @cached_property
    def _question_ids(self) -> pa.ChunkedArray:
        with pa.memory_map(str(Path(self.folder) / "question_ids.arrow")) as source:
            return pa.ipc.open_file(source).read_all()["question_id"]


def prepare(
    data: TrainingData,
    model: EncoderOptions,
    contract: EmbeddingContract,
    options: PrepareOptions,
    *,
    processes: int | None = None,
) -> Prepared:
    """Training data ready to be batched, from the cache or made now.

    Args:
        model: whose tokenizer makes the tokens; its `role` and `prefix` are not asked.
        contract: the model's, with the prompts that the training is to put before questions and documents.
        processes: see `tokens.write_tokens`.

    Raises:
        ConfigError: lengths beyond the model's positions, no padding token; a teacher whose vectors are of another
            kind than the model's, or that has to be run where no Ray is connected.
        InputError: questions without passages (see `choose_passages`), a text without a token or without a teacher's
            vector.
        RaycurateError: the cache cannot be written.
    """
    lengths = (options.query_max_length, options.passage_max_length)
    positions = check_lengths(fetch_encoder(model), query_max_length=lengths[0], passage_max_length=lengths[1])
    pad_id = padding_id(model, options.pad_token)
    teacher = None if options.teacher is None else Teacher.of(options.teacher, contract)
    maker = _Maker(
        data=data,
        passages=choose_passages(data, options.passages),
        prefixes=_prefixes(data.corpora, contract, options.dataset_instructions),
        questions=TextTokens(model, contract, lengths[0]),
        documents=TextTokens(model, contract, lengths[1]),
        processes=processes,
    )
    chosen = options.passages.model_dump(exclude={"eval_negative_size"})
    meta = {"passages": chosen, "pad_id": pad_id, "positions": positions}
    versions = package_versions("tokenizers", "transformers")
    how = [PREPARED_VERSION, versions, contract.tokenizer, maker.prefixes, lengths, meta]
    how += [] if teacher is None else [teacher.identity]
    target = cache_folder(options.data_cache) / "tokens" / fingerprint([*how, _data_fingerprint(data)])
    with once(target) as temporary:
        if temporary is not None:
            cut = maker.write_texts(temporary)
            maker.write_arrays(temporary)
            if teacher is not None:
                teacher.write(temporary, data, maker.passages)
            (temporary / "meta.json").write_text(json.dumps(meta | {"cut": cut}))
    return Prepared(str(target))


def _prefixes(corpora: tuple[Corpus, ...], contract: EmbeddingContract, instructions: bool) -> list[tuple[str, str]]:
    """What is put before the questions and the documents of each corpus, literally."""
    if not instructions:
        return [(contract.prompt_for("query"), contract.prompt_for("document"))] * len(corpora)
    pairs = [(c.query_instruction, c.passage_instruction) for c in corpora]
    return [(f"{query} " if query else "", f"{passage} " if passage else "") for query, passage in pairs]


@dataclass(frozen=True)
class _Maker:
    """Writes the files of a prepared folder."""

    data: TrainingData
    passages: Passages
    prefixes: list[tuple[str, str]]
    questions: TextTokens
    documents: TextTokens
    processes: int | None

    def write_texts(self, folder: Path) -> dict[str, int]:
        """The tokens of all texts; how many questions and documents were cut."""
        counts = {"questions": len(self.data), "documents": len(self.passages.row_of)}
        _log.info("tokenizing {questions:,} questions and {documents:,} documents".format(**counts))
        cut = {}
        for name, texts, how in (
            ("questions", self._question_texts(), self.questions),
            ("documents", self._document_texts(), self.documents),
        ):
            cut[name] = write_tokens(folder, name, texts, how, count=counts[name], processes=self.processes)
            if cut[name]:
                _log.info("%s of %s %s were cut to %s tokens", cut[name], counts[name], name, how.max_length)
        return cut

    def _question_texts(self) -> Iterator[list[str]]:
        prefix_of = [query for query, _ in self.prefixes]
        for batch in self.data.table.select(["corpus", "question"]).to_batches(CHUNK):
            pairs = zip(batch["corpus"].to_pylist(), batch["question"].to_pylist(), strict=True)
            yield [prefix_of[place] + text for place, text in pairs]

    def _document_texts(self) -> Iterator[list[str]]:
        """Corpus by corpus, as the documents are numbered."""
        for place, corpus in enumerate(self.data.corpora):
            rows = self.passages.row_of[self.passages.corpus_of == place]
            for first in range(0, len(rows), CHUNK):
                yield [self.prefixes[place][1] + text for text in corpus.texts_of(rows[first : first + CHUNK])]

    def write_arrays(self, folder: Path) -> None:
        """Keys, passage lists and question ids."""
        data, passages = self.data, self.passages
        corpus_of = data.table["corpus"].to_numpy()
        questions = question_keys(data.corpora, corpus_of, data.table["question"])
        known = self._known_positives(questions, corpus_of)
        where = (data.corpora, passages.corpus_of, passages.row_of)
        arrays: dict[str, np.ndarray] = {
            "corpus_of": corpus_of,
            "corpus_of_document": passages.corpus_of,
            "row_of_document": passages.row_of,
            "question_keys": questions,
            "document_keys": document_keys(*where),
            "text_keys": text_keys(*where),
            "known_group": known.group,
            "known_offsets": known.offsets,
            "known_keys": known.keys,
        }
        for name, lists in (("positives", passages.positives), ("negatives", passages.negatives)):
            arrays |= {f"{name}_{part.name}": getattr(lists, part.name) for part in fields(lists)}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        ids = data.table.select(["question_id"])
        with pa.OSFile(str(folder / "question_ids.arrow"), "wb") as sink, pa.ipc.new_file(sink, ids.schema) as writer:
            writer.write_table(ids)

    def _known_positives(self, questions: np.ndarray, corpus_of: np.ndarray) -> KnownPositives:
        """Of all positives, also those that are never trained with."""
        positives = DocumentLists.of(self.data.table["pos"], self.data.table["pos_score"])
        where = (self.data.corpora, np.repeat(corpus_of, positives.counts), positives.members)
        return KnownPositives.of(questions, positives.offsets, document_keys(*where), text_keys(*where))


class _Hash:
    """A file that is written to and only remembers the sha256."""

    closed = False

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True


def _data_fingerprint(data: TrainingData) -> list[str]:
    """Of the questions and their lists, and of each corpus: its texts, or the name of its store, which is their own."""
    table = data.table.drop_columns(["origin"]).combine_chunks()
    found = [_digest(table)]
    for corpus in data.corpora:
        texts = _digest(pa.table({"id": corpus.ids, "text": corpus.texts})) if not corpus.store else corpus.store
        found.append(fingerprint([corpus.corpus_id, Path(texts).name, len(corpus)]))
    return found


def _digest(table: pa.Table) -> str:
    sink = _Hash()
    with pa.PythonFile(sink, "w") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return sink.digest.hexdigest()
