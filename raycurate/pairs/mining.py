"""Mining hard negatives: every question's nearest documents that are not too near, exactly, over the whole corpus.

For each corpus: its documents and questions get vectors (from the cache where they are there), positives are scored,
which gives each question its bound; then one exact search finds the best candidates below the bound. Several models
each bound the candidates and their rankings are fused; a teacher ranks and bounds what the search found. A candidate
that was dropped is never used, not even to fill up.

Equal questions share their positives, in whatever rows they stand, and a copy of a positive is no negative: texts are
equal but for case and white space. Documents are numbered in the order of their ids here, so that equal scores are
ordered by id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.observe import get_logger
from raycurate.data.documents.same_text import folded_column
from raycurate.data.training.training import Corpus, TrainingData
from raycurate.encoders.cache import Embedded, Texts, embed_texts, text_keys
from raycurate.pairs.mine_options import MineOptions
from raycurate.pairs.negatives import bounds, fused, generator, in_window, least

if TYPE_CHECKING:
    from raycurate.pairs.teacher import Teacher
    from raycurate.search import Hits, Limits

log = get_logger(__name__)


@dataclass(frozen=True)
class Scored:
    """A document of a question: its row in the corpus, its score, and the teacher's where there is one."""

    row: int
    score: float
    teacher_score: float | None = None


@dataclass
class MinedQuestion:
    """A question with its scored positives and its negatives, best first.

    bound: the score above which candidates were dropped; inf without one. dropped: how many those are, of the first
    model; by_models, by_teacher, from_file: candidates that a further model's or the teacher's bound dropped, and the
    file's own negatives that were dropped.
    """

    at: int  # row of the training data's table
    positives: list[Scored]
    negatives: list[Scored]
    bound: float
    dropped: int
    excluded: int
    by_models: int = 0
    by_teacher: int = 0
    from_file: int = 0
    ranking: list[Scored] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """One corpus with vectors: of each model the documents' (in order of id) and the questions'.

    order: row in the corpus of each numbered document; number: the number of each row. at: rows of the table.
    recalls: of the approximate searches, where there were such.
    """

    corpus: Corpus
    order: np.ndarray
    number: np.ndarray
    at: np.ndarray
    documents: list[Embedded]
    questions: list[Embedded]
    recalls: list[float] = field(default_factory=list)


def embedded_corpora(data: TrainingData, options: MineOptions, *, work: str, cache: str) -> Iterator[Ready]:
    """Each corpus that has questions, with the vectors of both, laid out below `work`; needs a running Ray."""
    corpus_Q = data.table["corpus"].to_numpy()
    for index, corpus in enumerate(data.corpora):
        at = np.flatnonzero(corpus_Q == index)
        if not len(at):
            continue
        order = pc.sort_indices(corpus.ids).to_numpy().astype(np.int64)
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        asked = data.table["question"].take(pa.array(at))
        documents, questions = [], []
        for place, model in enumerate(options.models):
            given = [Texts("documents", corpus.texts, "document", order), Texts("queries", asked, "query")]
            folder = storage.join(work, f"corpus-{index}", f"model-{place}")
            found = embed_texts(given, model, options.encoder_of(model), cache=cache, folder=folder, unit=None)
            log.info(
                "mine: %s: %s of %s documents and %s of %s questions embedded anew",
                model,
                f"{found[0].fresh:,}",
                f"{len(order):,}",
                f"{found[1].fresh:,}",
                f"{len(at):,}",
            )
            documents.append(found[0])
            questions.append(found[1])
        yield Ready(corpus, order, number, at, documents, questions)


def mine(
    data: TrainingData, ready: Ready, options: MineOptions, held_out: pa.Array, teacher: Teacher | None = None
) -> Iterator[MinedQuestion]:
    """The questions of one corpus, in the table's order.

    Args:
        held_out: keys of texts that must not become negatives of any question.
    """
    keys = same_keys(ready.corpus.texts).take(pa.array(ready.order))
    apart = np.flatnonzero(pc.is_in(keys, value_set=held_out).to_numpy(zero_copy_only=False))
    twins, asked = _Twins(keys), _Asked(data, ready)
    first = 0
    for path, rows in zip(ready.questions[0].vectors.paths, ready.questions[0].vectors.rows, strict=True):
        part = slice(first, first + rows)
        names = [q.vectors.paths[ready.questions[0].vectors.paths.index(path)] for q in ready.questions]
        shard = _Shard(data, ready, options, part, [load_vectors(name) for name in names])
        yield from shard.mine(twins, asked, apart, teacher)
        first += rows


def load_vectors(path: str) -> np.ndarray:
    """A file of vectors as it was laid out, float32 [rows, D]."""
    import io

    return np.load(io.BytesIO(storage.read_bytes(path)))


class _Asked:
    """The questions of a corpus: their keys, and all positives of those that stand in several rows."""

    def __init__(self, data: TrainingData, ready: Ready) -> None:
        table = data.table.take(pa.array(ready.at))
        self.keys = same_keys(table["question"])
        self._code = self.keys.dictionary_encode().indices.to_numpy()
        again = np.flatnonzero(np.bincount(self._code)[self._code] > 1) if len(self._code) else np.empty(0, np.int64)
        self._positives: dict[int, list[int]] = {}
        for row, listed in zip(again.tolist(), table["pos"].take(pa.array(again)).to_pylist(), strict=True):
            self._positives.setdefault(int(self._code[row]), []).extend(ready.number[listed].tolist())

    def with_others(self, row: int, own: np.ndarray) -> np.ndarray:
        """A question's own positives, and after them those that it has in other rows."""
        others = self._positives.get(int(self._code[row]), [])
        return np.array(list(dict.fromkeys([*own.tolist(), *others])), np.int64)


class _Twins:
    """Documents with the same text, by number."""

    def __init__(self, keys: pa.Array) -> None:
        code = keys.dictionary_encode().indices.to_numpy()
        self._code = code
        self._by_code = np.argsort(code, kind="stable")
        self._starts = np.searchsorted(code[self._by_code], np.arange(int(code.max()) + 2 if len(code) else 1))
        self._keys = keys

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """All documents with a text that one of these has, sorted."""
        codes = np.unique(self._code[numbers])
        return np.sort(np.concatenate([self._by_code[self._starts[c] : self._starts[c + 1]] for c in codes]))

    def with_keys(self, keys: pa.Array) -> np.ndarray:
        """The number of a document with each key, -1 where there is none."""
        return pc.fill_null(pc.index_in(keys, value_set=self._keys), -1).to_numpy()


class _Shard:
    """A part of one corpus's questions: vectors of each model, positives and file negatives by document number."""

    def __init__(
        self, data: TrainingData, ready: Ready, options: MineOptions, part: slice, queries: list[np.ndarray]
    ) -> None:
        self.ready, self.options, self.queries = ready, options, queries
        self.table = data.table.take(pa.array(ready.at[part]))
        self.at = ready.at[part]
        self.part = part
        self.own = self._numbers("pos")

    def _numbers(self, column: str) -> list[np.ndarray]:
        """Document numbers of each question's list, in its order, each once."""
        listed = self.table[column].combine_chunks()
        flat = self.ready.number[listed.flatten().to_numpy()]
        offsets = np.concatenate([[0], np.cumsum(listed.value_lengths().fill_null(0).to_numpy())])
        return [flat[lo:hi][np.sort(np.unique(flat[lo:hi], return_index=True)[1])] for lo, hi in _pairs(offsets)]

    def mine(self, twins: _Twins, asked: _Asked, apart: np.ndarray, teacher: Teacher | None) -> Iterator[MinedQuestion]:
        from raycurate.search import Limits

        options = self.options
        self.positives = [asked.with_others(self.part.start + row, own) for row, own in enumerate(self.own)]
        excluded = self._excluded(twins, asked.keys[self.part.start : self.part.stop])
        listed = self._numbers("neg") if options.use_negatives_from_file else [np.empty(0, np.int64)] * len(self.at)
        self.file = [file[~np.isin(file, barred)] for file, barred in zip(listed, excluded, strict=True)]
        self._starts = _offsets(self.positives), _offsets(self.file)
        offsets = self._starts[0]
        every = slice(0, len(self.at))
        scores = [self._scores(m, every, self.positives) for m in range(len(self.queries))]
        kind, margin = options.hard_neg_margin_type, options.margin
        bound_MQ = np.stack([bounds(least(s, offsets), kind, margin) for s in scores])
        barred = [np.union1d(e, f) for e, f in zip(excluded, self.file, strict=True)]
        file_scores = [self._scores(m, every, self.file) for m in range(len(self.queries))]
        offset_Q, row_E = _offsets(barred), _flat(barred)
        streams = [self._search(m, Limits(bound_MQ[m], offset_Q, row_E, apart)) for m in range(len(self.queries))]
        for blocks in zip(*streams, strict=True):
            hits = [found for _, found in blocks]
            part = slice(blocks[0][0], blocks[0][0] + len(hits[0].rows_QK))
            outcomes = [
                self._outcome(at, [scores[0], file_scores, bound_MQ], excluded[at], int(hits[0].dropped_Q[q]))
                for q, at in enumerate(range(part.start, part.stop))
            ]
            self._add_candidates(outcomes, part, hits, bound_MQ)
            if teacher is not None:
                self._taught(outcomes, teacher)
            yield from map(self._chosen, outcomes)

    def _excluded(self, twins: _Twins, keys: pa.Array) -> list[np.ndarray]:
        """Of each question: its positives, what has the text of one, and a document that is the question."""
        same_N = twins.with_keys(keys)
        listed = []
        for own, same in zip(self.positives, same_N.tolist(), strict=True):
            listed.append(twins.of(own if same < 0 else np.append(own, same)))
        return listed

    def _scores(self, model: int, part: slice, documents: list[np.ndarray]) -> np.ndarray:
        from raycurate.search import pair_scores

        vectors = self.ready.documents[model].vectors
        return pair_scores(self.queries[model][part], vectors, _offsets(documents), _flat(documents))

    def _search(self, model: int, limits: Limits) -> Iterator[tuple[int, Hits]]:
        """The best documents by one model, in blocks of questions."""
        from raycurate.search import search
        from raycurate.search.approximate import search_approximately

        queries_QD, documents = self.queries[model], self.ready.documents[model].vectors
        options, depth = self.options, min(self.options.depth, len(documents))
        block = options.mining_batch_size
        if not options.approximate:
            return search(queries_QD, documents, depth, limits=limits, query_block=block)
        found = search_approximately(queries_QD, documents, depth, limits=limits, query_block=block)
        log.info(
            "mine: the approximate search finds %.2f%% of the exact (%d questions)", 100 * found.recall, found.sampled
        )
        self.ready.recalls.append(found.recall)
        return found.blocks

    def _outcome(self, at: int, scores: list[Any], excluded: np.ndarray, dropped: int) -> _Outcome:
        """A question with its scored positives and the file's own negatives that are not above a bound."""
        positive_P, file_MP, bound_MQ = scores
        known, file = self.positives[at], self.file[at]
        first, begin = self._starts[0][at], self._starts[1][at]
        below = np.ones(len(file), bool)
        for m, values in enumerate(file_MP):
            below &= values[begin : begin + len(file)] <= bound_MQ[m][at]
        return _Outcome(
            at,
            _scored(known, positive_P[first : first + len(known)]),
            _scored(file[below], file_MP[0][begin : begin + len(file)][below]),
            [],
            MinedQuestion(
                int(self.at[at]),
                [],
                [],
                float(bound_MQ[0][at]),
                dropped,
                len(excluded) - len(self.own[at]),
                from_file=int((~below).sum()),
            ),
        )

    def _add_candidates(self, outcomes: list[_Outcome], part: slice, hits: list[Hits], bound_MQ: np.ndarray) -> None:
        """What the search found: one model's ranking as it is, several fused and held to each model's bound."""
        if len(hits) == 1:
            for outcome, rows_K, scores_K in zip(outcomes, hits[0].rows_QK, hits[0].scores_QK, strict=True):
                outcome.candidates = _scored(rows_K[rows_K >= 0], scores_K[rows_K >= 0])
            return
        mixed = [
            np.array(fused([found.rows_QK[q][found.rows_QK[q] >= 0].tolist() for found in hits]), np.int64)
            for q in range(len(outcomes))
        ]
        offsets = _offsets(mixed)
        score_MP = [self._scores(m, part, mixed) for m in range(len(hits))]
        for q, outcome in enumerate(outcomes):
            span = slice(offsets[q], offsets[q + 1])
            below = np.logical_and.reduce([s[span] <= bound_MQ[m][outcome.at] for m, s in enumerate(score_MP)])
            outcome.candidates = _scored(mixed[q][below], score_MP[0][span][below])
            outcome.mined.by_models = int((~below).sum())

    def _taught(self, outcomes: list[_Outcome], teacher: Teacher) -> None:
        """The teacher's scores: candidates above its bound are dropped, the others ranked by it."""
        options, corpus, order = self.options, self.ready.corpus, self.ready.order
        lists = [[*o.positives, *o.file, *o.candidates[: options.teacher_depth]] for o in outcomes]
        questions = self.table["question"]
        asked = [questions[o.at].as_py() for o, listed in zip(outcomes, lists, strict=True) for _ in listed]
        texts = corpus.texts_of(order[[s.row for listed in lists for s in listed]])
        values = iter(teacher.scores(asked, texts).tolist())
        for outcome, listed in zip(outcomes, lists, strict=True):
            scored = [Scored(s.row, s.score, next(values)) for s in listed]
            kept, files = len(outcome.positives), len(outcome.file)
            outcome.positives = scored[:kept]
            own = np.array([s.teacher_score for s in outcome.positives], np.float32)
            [bound] = bounds(own.min(keepdims=True), options.hard_neg_margin_type, options.margin)
            below = [s for s in scored[kept:] if s.teacher_score is not None and s.teacher_score <= bound]
            outcome.mined.by_teacher = len(scored) - kept - len(below)
            given = {s.row for s in scored[kept : kept + files]}
            outcome.file = [s for s in below if s.row in given]
            rest = [s for s in below if s.row not in given]
            outcome.candidates = sorted(rest, key=lambda s: (-(s.teacher_score or 0.0), s.row))

    def _chosen(self, outcome: _Outcome) -> MinedQuestion:
        """The file's own first, then those of the window; rows are the corpus's from here on."""
        options, mined = self.options, outcome.mined
        draw = None
        if options.strategy == "random":
            draw = generator(options.seed, self.table["question_id"][outcome.at].as_py())
        kept = outcome.file[: options.hard_negatives_to_mine]
        window = in_window(
            range(len(outcome.candidates)),
            options.hard_negatives_to_mine - len(kept),
            range_min=options.range_min,
            range_max=options.range_max,
            draw=draw,
        )
        mined.positives = self._rows(outcome.positives[: len(self.own[outcome.at])])
        mined.negatives = self._rows([*kept, *(outcome.candidates[i] for i in window)])
        mined.ranking = self._rows(outcome.candidates)
        return mined

    def _rows(self, found: list[Scored]) -> list[Scored]:
        return [Scored(int(self.ready.order[s.row]), s.score, s.teacher_score) for s in found]


@dataclass
class _Outcome:
    """A question on its way: `at` is its place in the shard, documents are numbers, not rows.

    positives: its own, and after them those of its other rows.
    """

    at: int
    positives: list[Scored]
    file: list[Scored]
    candidates: list[Scored]
    mined: MinedQuestion


def same_keys(texts: pa.ChunkedArray) -> pa.Array:
    """A key of each text that it shares with the texts that are equal to it but for case and white space."""
    return text_keys(folded_column(texts))


def held_out_keys(texts: list[pa.ChunkedArray]) -> pa.Array:
    """Keys of all these texts."""
    found = [same_keys(part) for part in texts]
    return pc.unique(pa.concat_arrays(found)) if found else pa.array([], pa.string())


def _scored(numbers: np.ndarray, scores: np.ndarray) -> list[Scored]:
    return [Scored(number, score) for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)]


def _offsets(lists: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in lists])]).astype(np.int64)


def _flat(lists: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(lists).astype(np.int64) if lists else np.empty(0, np.int64)


def _pairs(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    return pairwise(offsets.tolist())
