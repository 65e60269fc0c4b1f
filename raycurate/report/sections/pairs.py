"""Training pairs: how many, what was left out, how well the questions were judged, and how hard the negatives are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raycurate.core.errors import RaycurateError
from raycurate.data.training.sdg import Reject, read_sdg
from raycurate.report import charts
from raycurate.report.charts import Chart
from raycurate.report.context import Context
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import StageOutput
from raycurate.report.sampling import find_rows, first_lines, parquet_rows
from raycurate.report.text import counted, cut, named, percent

_AUDITED = 500_000  # questions
_RECORDS = 5000  # of question/answer records
_EXAMPLE_BYTES = 256 << 10
_EXAMPLES = 3
_MINED = "_mined.automodel.json"


@dataclass(frozen=True)
class Mined:
    """A question with its positives and mined negatives, as (document id, score), best first."""

    question: str
    positives: tuple[tuple[str, float], ...]
    negatives: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Scored:
    """A document as mining has scored it, with the beginning of its text."""

    score: float
    text: str


@dataclass(frozen=True)
class Example:
    """A question with its best positive and its hardest negative."""

    question: str
    positive: Scored
    negative: Scored


def section(context: Context) -> Section | None:
    """None where no pairs were made or mined."""
    made, mined = context.run.of("prep", "convert"), context.run.of("prep", "mine")
    if made is None and mined is None:
        return None
    left_out = _left_out(made) if made is not None else {}
    quality = _quality(made) if made is not None else Quality()
    return make_section(
        "pairs",
        "Training pairs",
        leaks=_leaks(made) if made is not None else [],
        splits=_splits_chart(made) if made is not None else None,
        left_out=left_out,
        left_out_chart=_left_out_chart(made, left_out) if made is not None and left_out else None,
        quality=quality,
        margins=_margins_chart(mined) if mined is not None else None,
        dropped=_dropped_chart(mined) if mined is not None else None,
        examples=_examples(mined) if mined is not None else [],
    )


def _splits_chart(made: StageOutput) -> Chart:
    counts = [made.count(f"{split}_questions") for split in ("train", "val", "test")]
    total = max(1, sum(counts))
    says = (
        f"{counts[0]:,} questions to train on, {counts[1]:,} to choose a model by, and {counts[2]:,} that only the "
        f"evaluation opens. All are asked of {counted(made.count('corpus_documents'), 'document')}."
    )
    texts = [f"{n:,} ({percent(n / total)})" for n in counts]
    words = charts.Words("splits", "Questions by split", says)
    return charts.bars(words, ["train", "validation", "test"], counts, texts)


def _left_out(made: StageOutput) -> dict[str, int]:
    """Pairs that were left out by reason, most first."""
    counts = made.manifest.counts if made.manifest else {}
    left = {name.removeprefix("left_out_"): n for name, n in counts.items() if name.startswith("left_out_") and n}
    return {named(reason): n for reason, n in sorted(left.items(), key=lambda item: (-item[1], item[0]))}


def _left_out_chart(made: StageOutput, left_out: dict[str, int]) -> Chart:
    most = next(iter(left_out))
    says = f"{sum(left_out.values()):,} of {made.count('pairs'):,} pairs were left out, most of them for: {most}."
    words = charts.Words("left-out", "Pairs that were left out, by reason", says)
    return charts.bars(words, list(left_out), list(left_out.values()), [f"{n:,}" for n in left_out.values()])


def _leaks(made: StageOutput) -> list[str]:
    """What the stage has found of test questions that were trained on."""
    lines = [str(line) for line in made.options.get("summary") or []]
    return [line.removeprefix("leak").strip() for line in lines if line.startswith("leak")]


# --- quality --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """How the pairs were judged. `problem`: why the records cannot be read; `unscored`: they hold no scores."""

    chart: Chart | None = None
    problem: str = ""
    unscored: bool = False


def _quality(made: StageOutput) -> Quality:
    """Scores of question/answer records, of those that were left out for them too."""
    if made.options.get("pairs_from") != "sdg":
        return Quality()
    given = made.options.get("input") or []
    paths = [made.now(path) for path in ([given] if isinstance(given, str) else given)]
    try:
        records = [r for r in islice(read_sdg(paths), _RECORDS) if not isinstance(r, Reject)]
    except RaycurateError as error:
        return Quality(problem=str(error))
    scores = np.array([p.score for r in records if r.misaligned is None for p in r.pairs if p.score is not None])
    if not len(scores):
        return Quality(unscored=True)
    threshold = made.options.get("quality_threshold")
    low = int((scores < threshold).sum()) if threshold is not None else 0
    part = f"the first {_RECORDS:,} records" if len(records) >= _RECORDS else "all records"
    says = (
        f"Overall scores, 1 to 10, of {counted(len(scores), 'pair')} of {part}; the median is {np.median(scores):.1f}."
        + (f" {low:,} are below the threshold of {threshold:g}." if threshold is not None else "")
    )
    words = charts.Words("quality", "Histogram of the pairs' overall scores", says, x="overall score", y="pairs")
    marks = [charts.Mark(float(threshold), f"threshold {threshold:g}")] if threshold is not None else []
    return Quality(charts.histogram(words, scores, marks=marks, bins=18))


# --- mining ---------------------------------------------------------------------------------------


def _audit(mined: StageOutput, columns: Sequence[str]) -> tuple[Any, bool]:
    """Rows a question of what was mined for the training split, and whether they are all."""
    files = mined.files("audit/train") or mined.files("audit/")
    return parquet_rows(files, columns, _AUDITED)


def _margins_chart(mined: StageOutput) -> Chart | None:
    audit, whole = _audit(mined, ["least_positive", "best_negative"])
    if audit is None:
        return None
    margins = pc.subtract(audit["least_positive"], audit["best_negative"]).drop_null().to_numpy()
    if not len(margins):
        return None
    part = "every question" if whole else f"{audit.num_rows:,} of the questions"
    close = float(np.mean(margins < 0.05))
    says = (
        f"The score of a question's lowest positive minus that of its best mined negative, for {part}: half are below "
        f"{np.median(margins):.3f}, and {close:.0%} below 0.05. The smaller, the harder the negative is."
    )
    words = charts.Words("margins", "Histogram of mining margins", says, x="positive minus negative", y="questions")
    return charts.histogram(words, margins)


def _dropped_chart(mined: StageOutput) -> Chart | None:
    audit, _ = _audit(mined, ["dropped", "negatives"])
    if audit is None:
        return None
    dropped, negatives = audit["dropped"].to_numpy(), audit["negatives"].to_numpy()
    kind, margin = mined.options.get("hard_neg_margin_type"), mined.options.get("hard_neg_margin")
    rule = {
        "perc": f"above {0.95 if margin is None else margin:g} of the lowest positive's score",
        "abs": f"less than {0.05 if margin is None else margin:g} below the lowest positive's score",
    }.get(str(kind), "")
    wanted = int(mined.options.get("hard_negatives_to_mine") or 0)
    says = (
        f"Documents {rule or 'above the bound'} may answer the question as well, so they are not taken for negatives: "
        f"{dropped.sum():,} in all, for the median question {np.median(dropped):,.0f}. {negatives.sum():,} negatives "
        f"were kept; {int((negatives < wanted).sum()):,} questions have fewer than {wanted}."
    )
    counts = np.histogram(dropped, [0, 1, 10, 100, 1000, np.inf])[0]
    labels = ["0", "1–9", "10–99", "100–999", "1k+"]
    title = "Questions by the number of documents dropped as likely false negatives"
    words = charts.Words("dropped", title, says, x="documents dropped", y="questions")
    return charts.columns(words, labels, counts.tolist())


def _examples(mined: StageOutput) -> list[Example]:
    """Some questions with a positive and the hardest negative, as mining has scored them."""
    files = [path for path in mined.files("", _MINED) if "/train" in path] or mined.files("", _MINED)
    if not files:
        return []
    found = [e for e in (_mined(line) for line in first_lines(files[0], _EXAMPLE_BYTES)) if e is not None]
    if not found:
        return []
    places = sorted({*np.linspace(0, len(found) - 1, _EXAMPLES + 2).astype(int)[1:-1].tolist()})
    chosen = [found[place] for place in places]
    wanted = {name for e in chosen for name, _ in (*e.positives[:1], *e.negatives[:1])}
    texts = find_rows(mined.files("corpus", ".parquet"), "id", wanted, ["text"])

    def scored(name: str, score: float) -> Scored:
        text = texts.get(name, {}).get("text")
        return Scored(score, cut(text) if text else name)

    return [Example(e.question, scored(*e.positives[0]), scored(*e.negatives[0])) for e in chosen]


def _mined(line: str) -> Mined | None:
    """The question of a line; None where it has none, or no positive or negative."""
    if not line.startswith('{"question_id"'):
        return None
    row = json.loads(line.rstrip().rstrip(","))
    docs = [tuple((str(d["id"]), float(d.get("score") or 0)) for d in row[key]) for key in ("pos_doc", "neg_doc")]
    return Mined(str(row["question"]), *docs) if all(docs) else None
