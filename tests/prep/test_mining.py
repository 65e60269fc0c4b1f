"""Mining against its definition, written down plainly in numpy."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.data.training.training import TABLE_SCHEMA, Corpus, TrainingData
from raycurate.encoders.cache import Embedded, text_keys
from raycurate.pairs.mine_options import MineOptions
from raycurate.pairs.mining import MinedQuestion, Ready, held_out_keys, mine
from raycurate.pairs.negatives import bounds, fused, generator
from raycurate.pairs.teacher import Teacher
from raycurate.search import VectorShards

DOCUMENTS, QUESTIONS, DIM = 150, 40, 12


def same(text: str) -> str:
    return " ".join(text.lower().split())


def spelled(text: str, random: np.random.Generator) -> str:
    """The text with another case or other white space, or as it is."""
    return [text, text.upper(), f" {text}\n", text.replace(" ", "  "), text.title()][random.integers(0, 5)]


class Setup:
    """A corpus with repeated texts, questions with one to three positives, and random vectors of two models.

    The scores lie on both sides of 0; some documents are other documents' copies, one is a question's own text.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        random = np.random.default_rng(seed)
        names = [f"d{number}" for number in random.permutation(DOCUMENTS)]
        self.texts = [f"text {number}" for number in range(DOCUMENTS)]
        for copy, original in random.integers(0, DOCUMENTS, (10, 2)):
            self.texts[copy] = spelled(self.texts[original], random)
        self.questions = [f"question {number}?" for number in range(QUESTIONS)]
        for again in range(30, 36):  # the same questions in other rows, with other positives
            self.questions[again] = spelled(self.questions[again % 4], random)
        self.texts[7] = spelled(self.questions[3], random)
        self.names = names
        self.pos = [random.choice(DOCUMENTS, random.integers(1, 4), replace=False).tolist() for _ in range(QUESTIONS)]
        self.neg = [[int(n) for n in random.choice(DOCUMENTS, 6, replace=False) if n not in p] for p in self.pos]
        self.order = np.array(sorted(range(DOCUMENTS), key=lambda row: names[row]))
        self.number = np.argsort(self.order)
        unique = {text: random.normal(size=(2, DIM)) for text in [*self.texts, *self.questions]}
        self.d = [np.array([unique[t][m] for t in self.texts], np.float32) for m in range(2)]
        self.q = [np.array([unique[t][m] for t in self.questions], np.float32) for m in range(2)]
        for m in range(2):  # half of the questions are near their positives, so that margins matter
            for question in range(0, QUESTIONS, 2):
                self.q[m][question] += 3 * self.d[m][self.pos[question][0]]
        self.scores = [
            (q.astype(np.float64) @ d.astype(np.float64).T).astype(np.float32)
            for q, d in zip(self.q, self.d, strict=True)
        ]
        self.data = TrainingData((self._corpus(),), self._table())
        self.folder = folder

    def _texts(self, rows: list[int]) -> set[str]:
        return {same(self.texts[row]) for row in rows}

    def all_positives(self, question: int) -> list[int]:
        """Those of all rows with this question."""
        asked = same(self.questions[question])
        return [row for q, rows in enumerate(self.pos) if same(self.questions[q]) == asked for row in rows]

    def _corpus(self) -> Corpus:
        ids = pa.chunked_array([pa.array(self.names)])
        return Corpus("c", "corpus", ids, pa.chunked_array([pa.array(self.texts, pa.large_string())]))

    def _table(self) -> pa.Table:
        rows = {
            "question_id": [f"q{n}" for n in range(QUESTIONS)],
            "question": self.questions,
            "corpus": [0] * QUESTIONS,
            "pos": self.pos,
            "neg": self.neg,
            "pos_score": [None] * QUESTIONS,
            "neg_score": [None] * QUESTIONS,
            "origin": ["memory"] * QUESTIONS,
        }
        return pa.table(rows, schema=TABLE_SCHEMA)

    def ready(self, models: int) -> Ready:
        documents, questions = [], []
        keys = text_keys(self.data.corpora[0].texts).take(pa.array(self.order))
        asked = text_keys(self.data.table["question"])
        for m in range(models):
            d = VectorShards.write(str(self.folder / f"d{m}"), [self.d[m][self.order]], shard_rows=64)
            q = VectorShards.write(str(self.folder / f"q{m}"), [self.q[m]], shard_rows=23)
            documents.append(Embedded(d, keys, 0))
            questions.append(Embedded(q, asked, 0))
        at = np.arange(QUESTIONS)
        return Ready(self.data.corpora[0], self.order, self.number, at, documents, questions)


class FirstBytes:
    """A teacher of the test's own: its score is a hash of both texts."""

    def scores(self, questions: list[str], texts: list[str]) -> np.ndarray:
        return np.array([self.score(q, t) for q, t in zip(questions, texts, strict=True)], np.float32)

    @staticmethod
    def score(question: str, text: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{question}|{text}".encode()).digest()[:2], "little") / 4096 - 8


def expected(s: Setup, options: MineOptions, apart: set[str], teacher: FirstBytes | None) -> list[dict[str, Any]]:
    """The definition: for each question its negatives (rows of the corpus), bound and counts."""
    found = []
    models = range(len(options.models))
    for question in range(QUESTIONS):
        pos = s.all_positives(question)
        scores = [s.scores[m][question] for m in models]
        limit = [
            bounds(
                np.array([min(scores[m][p] for p in pos)], np.float32), options.hard_neg_margin_type, options.margin
            )[0]
            for m in models
        ]
        barred = s._texts(pos) | {same(s.questions[question])}
        allowed = [d for d in range(DOCUMENTS) if same(s.texts[d]) not in barred and same(s.texts[d]) not in apart]
        file = [d for d in s.neg[question] if same(s.texts[d]) not in barred] if options.use_negatives_from_file else []
        open_to = [d for d in allowed if d not in file]

        def ranked(m: int, open_to: list[int] = open_to, scores: Any = scores, limit: Any = limit) -> list[int]:
            below = [d for d in open_to if scores[m][d] <= limit[m]]
            return sorted(below, key=lambda d: (-scores[m][d], s.names[d]))[: options.depth]

        mixed = [int(s.order[n]) for n in fused([[int(s.number[d]) for d in ranked(m)] for m in models])]
        candidates = [d for d in mixed if all(scores[m][d] <= limit[m] for m in models)]
        kept = [d for d in file if all(scores[m][d] <= limit[m] for m in models)]
        if teacher is not None:
            value = {d: np.float32(teacher.score(s.questions[question], s.texts[d])) for d in range(DOCUMENTS)}
            [bound] = bounds(
                np.array([min(value[p] for p in pos)], np.float32), options.hard_neg_margin_type, options.margin
            )
            candidates = [d for d in candidates[: options.teacher_depth] if value[d] <= bound]
            candidates.sort(key=lambda d, value=value: (-value[d], s.names[d]))
            kept = [d for d in kept if value[d] <= bound]
        kept = kept[: options.hard_negatives_to_mine]
        window, wanted = candidates[options.range_min : options.range_max], options.hard_negatives_to_mine - len(kept)
        if options.strategy == "random" and len(window) > wanted:
            drawn = generator(options.seed, f"q{question}").choice(len(window), wanted, replace=False)
            window = [window[i] for i in sorted(drawn)]
        dropped = sum(s.scores[0][question][d] > limit[0] for d in open_to)
        found.append({"negatives": [*kept, *window[:wanted]], "bound": limit[0], "dropped": int(dropped)})
    return found


CASES: list[dict[str, Any]] = [
    {"hard_neg_margin_type": kind, "use_negatives_from_file": file, "range_min": low}
    for kind, file, low in itertools.product(["perc", "abs", "none"], [False, True], [0, 3])
]
CASES += [
    {"strategy": "random", "range_max": 40, "hard_negatives_to_mine": 4},
    {"strategy": "random", "range_min": 2, "range_max": 9, "hard_negatives_to_mine": 20},
    {"range_max": 3, "hard_negatives_to_mine": 8},
    {"mining_models": ["other"], "hard_neg_margin_type": "abs", "use_negatives_from_file": True},
    {"mining_models": ["other"], "hard_neg_margin": 0.5},
    {"teacher": "hash", "teacher_depth": 12, "hard_neg_margin_type": "abs"},
    {"teacher": "hash", "use_negatives_from_file": True, "mining_models": ["other"]},
    {"hard_negatives_to_mine": 500, "hard_neg_margin_type": "none"},
]


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(f"{k}={v}" for k, v in case.items()))
def test_mining_is_what_its_definition_says(tmp_path: Path, case: dict[str, Any]) -> None:
    s = Setup(tmp_path, seed=len(str(case)))
    options = MineOptions(**{"model": "first", "hard_negatives_to_mine": 5, "mining_batch_size": 9, **case})
    apart = {same(s.texts[row]) for row in (1, 20, 33)}
    held_out = held_out_keys([pa.chunked_array([pa.array(sorted(apart))])])
    teacher: Any = FirstBytes() if options.teacher else None
    found = list(mine(s.data, s.ready(len(options.models)), options, held_out, teacher))
    assert [m.at for m in found] == list(range(QUESTIONS))
    for mined, wanted in zip(found, expected(s, options, apart, teacher), strict=True):
        assert [n.row for n in mined.negatives] == wanted["negatives"]
        assert mined.bound == wanted["bound"] and mined.dropped == wanted["dropped"]
        check_never(s, mined, options, apart)


def check_never(s: Setup, mined: MinedQuestion, options: MineOptions, apart: set[str]) -> None:
    """Whatever the options: no dropped candidate, no positive or its copy, nothing held out, no score that is none."""
    question = mined.at
    for place, document in enumerate([*mined.positives, *mined.negatives]):
        assert np.isfinite(document.score)
        assert document.score == s.scores[0][question][document.row]
        if place < len(mined.positives):
            assert document.row in s.pos[question]
            continue
        assert document.score <= mined.bound
        assert same(s.texts[document.row]) not in s._texts(s.all_positives(question))
        if not options.use_negatives_from_file:
            assert same(s.texts[document.row]) not in apart
    rows = [n.row for n in mined.negatives]
    assert len(set(rows)) == len(rows) <= options.hard_negatives_to_mine


@pytest.mark.usefixtures("local_ray")
def test_an_approximate_search_says_its_recall_and_keeps_to_the_bound(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra 'ann' is not installed")
    s = Setup(tmp_path, seed=1)
    options = MineOptions(model="first", hard_negatives_to_mine=5, approximate=True)
    ready = s.ready(1)
    found = list(mine(s.data, ready, options, pa.array([], pa.string())))
    for mined in found:
        check_never(s, mined, options, set())
    assert sum(len(mined.negatives) for mined in found) > QUESTIONS
    assert len(ready.recalls) == 2 and all(0 < recall <= 1 for recall in ready.recalls)  # one a file of questions


def cross_encoder(folder: Path, tokenizer: str, labels: int) -> str:
    """A small random cross-encoder, stored as transformers stores one."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=labels,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_teachers_scores_are_its_logits(tmp_path: Path, minilm: str) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = cross_encoder(tmp_path / "one", minilm, 1)
    questions, texts = ["how to read a file", "what is a shard"], ["open it and read", "a part of a whole"]
    teacher = Teacher(model, actors=2)
    found = teacher.scores(questions, texts)
    teacher.close()
    batch = AutoTokenizer.from_pretrained(model)(questions, texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForSequenceClassification.from_pretrained(model)(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    wrong = Teacher(cross_encoder(tmp_path / "two", minilm, 2), actors=1)
    with pytest.raises(RaycurateError, match="2 outputs; a teacher has one"):
        wrong.scores(questions, texts)
    wrong.close()


def test_the_bound_is_below_the_positive_for_every_sign() -> None:
    scores = np.array([0.8, 0.0, -0.4], np.float32)
    np.testing.assert_allclose(bounds(scores, "perc", 0.95), [0.76, 0.0, -0.42], atol=1e-7)
    np.testing.assert_allclose(bounds(scores, "abs", 0.05), [0.75, -0.05, -0.45], atol=1e-7)
    assert np.isinf(bounds(scores, "none", 0.0)).all()


def test_fusion_by_hand() -> None:
    # 7: 1/61 + 1/62, 5: 1/62 + 1/61 -> equal, the lower number first; 9: 1/63; 1: 1/63
    assert fused([[7, 5, 9], [5, 7, 1]]) == [5, 7, 1, 9]
    assert fused([[4, 2, 8]]) == [4, 2, 8]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "random"}, "range_max"),
        ({"range_min": 5, "range_max": 5}, "range_min"),
        ({"hard_neg_margin": 1.5}, "at most 1"),
        ({"hard_neg_margin_type": "percentage"}, "hard_neg_margin_type"),
        ({"encoder": {"prefix": "query: "}}, "query_prefix"),
        ({"hard_negatives": 3}, "hard_negatives_to_mine"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MineOptions.parse({"model": "m", **values}, where="test")


def test_null_is_the_margin_of_none() -> None:
    for value in (None, "null", "none"):
        assert MineOptions(model="m", hard_neg_margin_type=value).hard_neg_margin_type == "none"
