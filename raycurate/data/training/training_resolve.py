"""From ids to row numbers, and what can be wrong with a question once its documents are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core.hashing import hash_strings
from raycurate.data.corpora.corpus import Corpus
from raycurate.data.documents.rows import excerpt
from raycurate.data.training.training_report import NAMED, Problems

_MINE = (
    "Mine them (raycurate mine input=... output=... model=...), or do without: n_passages=1 with loss=in_batch or "
    "cross_rank"
)
TABLE_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("corpus", pa.int32()),
        pa.field("pos", pa.list_(pa.int64())),
        pa.field("neg", pa.list_(pa.int64())),
        pa.field("pos_score", pa.list_(pa.float32())),
        pa.field("neg_score", pa.list_(pa.float32())),
        pa.field("origin", pa.string()),
    ]
)


class Opened(NamedTuple):
    """A corpus that rows may name: its place among all corpora, and itself; None when it cannot be used."""

    place: int
    corpus: Corpus | None


class Resolver:
    """Turns the raw rows of one file into rows of `TABLE_SCHEMA`, noting what does not fit.

    Args:
        path: the file, for messages.
        corpora: the corpora that the file names, by corpus_id.
        problems: where to note what is wrong.
        require_negatives: a question without negatives is a problem.
    """

    def __init__(
        self, path: str, corpora: Mapping[str, Opened], problems: Problems, *, require_negatives: bool
    ) -> None:
        self._path, self._corpora, self._problems = path, corpora, problems
        self._require_negatives = require_negatives
        self._unknown: dict[str, dict[str, str]] = {}
        self._strangers: dict[str, tuple[str, int]] = {}
        self._raw: pa.Table
        self._first = 0  # of the batch that is being resolved
        self._dropped: set[int] = set()

    def resolve(self, raw: pa.Table) -> pa.Table:
        """The rows, their documents as row numbers; -1 where there is none, which has been noted.

        Where rows are dropped, those without a fault.
        """
        self._raw = raw
        self._note_duplicate_questions(raw)
        batches = []
        for batch in raw.to_batches():
            batches.append(self._batch(batch))
            self._first += len(batch)
        self._note_gathered()
        table = pa.Table.from_batches(batches, TABLE_SCHEMA)
        if not self._dropped:
            return table
        keep = np.ones(len(table), bool)
        keep[sorted(self._dropped)] = False
        return table.filter(pa.array(keep))

    def _note_row(self, kind: str, number: int, where: str, what: str, *, fix: str | None = None) -> None:
        """A problem of the row of this number in the file's table, which goes where rows are dropped."""
        row = None
        if self._problems.drops_rows:
            self._dropped.add(number)
            row = {name: self._raw[name][number].as_py() for name in ("question_id", "question", "corpus_id")}
        self._problems.add_row(kind, where, what, key=f"{where} (row {number})", row=row, fix=fix)

    def _batch(self, raw: pa.RecordBatch) -> pa.RecordBatch:
        wheres = [f"{self._path}:{n}" for n in raw["line"].to_pylist()]
        places, named = self._corpora_of(raw["corpus_id"], wheres)
        pos = self._rows(raw["pos"], named, wheres)
        neg = self._rows(raw["neg"], named, wheres)
        self._note_contradictions(raw, wheres)
        if self._require_negatives:
            for i in np.flatnonzero(np.diff(neg.offsets.to_numpy()) == 0):
                what = "'neg_doc' is empty, negatives are needed"
                self._note_row("questions without negatives", self._first + int(i), wheres[i], what, fix=_MINE)
        columns = [raw["question_id"], raw["question"], pa.array(places, pa.int32()), pos, neg]
        columns += [raw["pos_score"], raw["neg_score"], pa.array(wheres, pa.string())]
        return pa.record_batch(columns, schema=TABLE_SCHEMA)

    def _corpora_of(self, corpus_ids: pa.StringArray, wheres: list[str]) -> tuple[np.ndarray, list[str]]:
        """int32 [n]: the place of each row's corpus, -1 for one that the file does not name; and the corpus_ids."""
        names = corpus_ids.to_pylist()
        for i, (name, where) in enumerate(zip(names, wheres, strict=True)):
            if name not in self._corpora:
                first, count = self._strangers.get(name, (where, 0))
                self._strangers[name] = (first, count + 1)
                if self._problems.drops_rows:
                    what = f"the corpus_id {name!r} is none of this file's corpora"
                    self._note_row("unknown corpora", self._first + i, where, what)
        places = [self._corpora[n].place if n in self._corpora else -1 for n in names]
        return np.array(places, np.int32), names

    def _rows(self, lists: pa.ListArray, named: list[str], wheres: list[str]) -> pa.ListArray:
        """list<int64>: the row of each document in its question's corpus."""
        values = lists.flatten()
        lengths = np.diff(lists.offsets.to_numpy())
        question = np.repeat(np.arange(len(lists)), lengths)
        rows = np.full(len(values), -1, np.int64)
        names = np.array(named, object)[question]
        for corpus_id in set(named) & self._corpora.keys():
            corpus = self._corpora[corpus_id].corpus
            if corpus is None:
                continue
            mine = np.flatnonzero(names == corpus_id)
            ids = values.take(pa.array(mine))
            rows[mine] = corpus.rows_of(ids)
            missing = np.flatnonzero(rows[mine] < 0)
            gone = self._unknown.setdefault(corpus_id, {})
            for i, name in zip(missing, ids.take(pa.array(missing)).to_pylist(), strict=True):
                row = int(question[mine[i]])
                gone.setdefault(name, wheres[row])
                if self._problems.drops_rows:
                    what = f"corpus {corpus_id!r} has no document {name!r}"
                    self._note_row("unknown document ids", self._first + row, wheres[row], what)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows))

    def _note_contradictions(self, raw: pa.RecordBatch, wheres: list[str]) -> None:
        """A document that is a positive and a negative of the same question; known without its corpus."""
        keys, questions = [], []
        for name in ("pos", "neg"):
            question = np.repeat(np.arange(len(raw)), np.diff(raw[name].offsets.to_numpy())).astype(np.uint64)
            hashes = hash_strings(raw[name].flatten())
            keys.append(hashes ^ (question * np.uint64(0x9E3779B97F4A7C15)))  # a hint; the names decide
            questions.append(question)
        names = raw["neg"].flatten()
        for i in np.flatnonzero(np.isin(keys[1], keys[0])).tolist():
            row, name = int(questions[1][i]), names[i].as_py()
            if name in raw["pos"][row].as_py():
                shown = self._shown(name, raw["corpus_id"][row].as_py())
                what = f"the document {shown} is both a positive and a negative of this question"
                self._note_row("contradictions", self._first + row, wheres[row], what)

    def _shown(self, name: str, corpus_id: str) -> str:
        """A document as the user knows it: by its id, or by its text where that was written inline."""
        opened = self._corpora.get(corpus_id)
        if opened is None or opened.corpus is None or opened.corpus.path:
            return repr(name)
        return repr(excerpt(opened.corpus.texts_of(opened.corpus.rows_of([name]))[0]))

    def _note_duplicate_questions(self, raw: pa.Table) -> None:
        ids = raw["question_id"].drop_null()
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if not len(twice):
            return
        there = pc.is_in(raw["question_id"], value_set=twice)
        again = raw.filter(there)
        numbers = np.flatnonzero(there.to_numpy()).tolist()
        first: dict[str, int] = {}
        for number, name, line in zip(
            numbers, again["question_id"].to_pylist(), again["line"].to_pylist(), strict=True
        ):
            if name in first:
                what = f"the question_id {name!r} stands at line {first[name]} too"
                self._note_row("duplicate question ids", number, f"{self._path}:{line}", what)
            else:
                first[name] = line

    def _note_gathered(self) -> None:
        if self._problems.drops_rows:  # each row has been told of
            return
        for corpus_id, (where, count) in self._strangers.items():
            known = ", ".join(map(repr, self._corpora)) or "none"
            what = f"the corpus_id {corpus_id!r} is none of this file's corpora ({known})"
            self._problems.add("unknown corpora", where, what + (f"; {count:,} rows name it" if count > 1 else ""))
        for corpus_id, gone in self._unknown.items():
            if gone:
                named = [f"{name!r} (line {where.rpartition(':')[2]})" for name, where in gone.items()]
                what = f"corpus {corpus_id!r} has no document {', '.join(named[:NAMED])}"
                what += f" and {len(gone) - NAMED:,} more" if len(gone) > NAMED else ""
                self._problems.add("unknown document ids", self._path, what, times=len(gone))
