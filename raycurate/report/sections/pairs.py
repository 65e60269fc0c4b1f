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
from raycurate.report.context import Context
from raycurate.report.html import (
    Card,
    Html,
    Section,
    card,
    counted,
    cut,
    element,
    grid,
    number,
    paragraph,
    percent,
    quote,
    table,
)
from raycurate.report.runs import StageOutput
from raycurate.report.sampling import find_rows, first_lines, parquet_rows

_AUDITED = 500_000  # questions
_RECORDS = 5000  # of question/answer records
_EXAMPLE_BYTES = 256 << 10
_EXAMPLES = 3
_MINED = "_mined.automodel.json"


@dataclass(frozen=True)
class Example:
    """A question with its positives and mined negatives, as (document id, score), best first."""

    question: str
    positives: tuple[tuple[str, float], ...]
    negatives: tuple[tuple[str, float], ...]


def section(context: Context) -> Section | None:
    """None where no pairs were made or mined."""
    made, mined = context.run.of("prep", "convert"), context.run.of("prep", "mine")
    if made is None and mined is None:
        return None
    cards: list[Card] = []
    lead = "Each question comes with the documents that answer it; mining adds documents that seem to and do not."
    if made is not None:
        cards += [_splits_card(made), *_left_out_card(made), *_quality_card(made)]
        lead = " ".join([lead, *_leak(made)])
    if mined is not None:
        cards += [*_margin_card(mined), *_dropped_card(mined), *_examples_card(mined)]
    return Section("pairs", "Training pairs", paragraph(lead), grid(*cards))


def _splits_card(made: StageOutput) -> Card:
    counts = [made.count(f"{split}_questions") for split in ("train", "val", "test")]
    total = max(1, sum(counts))
    says = (
        f"{counts[0]:,} questions to train on, {counts[1]:,} to choose a model by, and {counts[2]:,} that only the "
        f"evaluation opens. All are asked of {counted(made.count('corpus_documents'), 'document')}."
    )
    texts = [f"{n:,} ({percent(n / total)})" for n in counts]
    words = charts.Words("splits", "Questions by split", says)
    return card("Splits", charts.bars(words, ["train", "validation", "test"], counts, texts))


def _left_out_card(made: StageOutput) -> list[Card]:
    counts = made.manifest.counts if made.manifest else {}
    left = {name.removeprefix("left_out_"): n for name, n in counts.items() if name.startswith("left_out_") and n}
    if not left:
        return []
    ordered = sorted(left.items(), key=lambda item: (-item[1], item[0]))
    most = _words(ordered[0][0])
    says = f"{sum(left.values()):,} of {made.count('pairs'):,} pairs were left out, most of them for: {most}."
    words = charts.Words("left-out", "Pairs that were left out, by reason", says)
    names = [_words(name) for name, _ in ordered]
    drawn = charts.bars(words, names, [n for _, n in ordered], [f"{n:,}" for _, n in ordered])
    whole = table("Pairs that were left out", ["Reason", "Pairs"], [[_words(name), number(n)] for name, n in ordered])
    return [card("Left out", drawn, element("details", element("summary", "The values"), whole))]


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _leak(made: StageOutput) -> list[str]:
    """What the stage has found of test questions that were trained on."""
    said = made.options.get("summary") or []
    return [
        f"Leaks from training to test: {line.removeprefix('leak').strip()}."
        for line in said
        if str(line).startswith("leak")
    ]


# --- quality --------------------------------------------------------------------------------------


def _quality_card(made: StageOutput) -> list[Card]:
    """Scores of question/answer records, of those that were left out for them too."""
    if made.options.get("pairs_from") != "sdg":
        return []
    title = "Judged quality of the pairs"
    given = made.options.get("input") or []
    paths = [made.now(path) for path in ([given] if isinstance(given, str) else given)]
    try:
        records = [r for r in islice(read_sdg(paths), _RECORDS) if not isinstance(r, Reject)]
    except RaycurateError as error:
        return [card(title, element("p", f"The scores cannot be shown, as the records cannot be read: {error}"))]
    scores = np.array([p.score for r in records if r.misaligned is None for p in r.pairs if p.score is not None])
    if not len(scores):
        return [card(title, element("p", "The records hold no scores.", class_="note"))]
    threshold = made.options.get("quality_threshold")
    low = int((scores < threshold).sum()) if threshold is not None else 0
    part = f"the first {_RECORDS:,} records" if len(records) >= _RECORDS else "all records"
    says = (
        f"Overall scores, 1 to 10, of {counted(len(scores), 'pair')} of {part}; the median is {np.median(scores):.1f}."
        + (f" {low:,} are below the threshold of {threshold:g}." if threshold is not None else "")
    )
    words = charts.Words("quality", "Histogram of the pairs' overall scores", says, x="overall score", y="pairs")
    marks = [charts.Mark(float(threshold), f"threshold {threshold:g}")] if threshold is not None else []
    return [card(title, charts.histogram(words, scores, marks=marks, bins=18))]


# --- mining ---------------------------------------------------------------------------------------


def _audit(mined: StageOutput, columns: Sequence[str]) -> tuple[Any, bool]:
    """Rows a question of what was mined for the training split, and whether they are all."""
    files = mined.files("audit/train") or mined.files("audit/")
    return parquet_rows(files, columns, _AUDITED)


def _margin_card(mined: StageOutput) -> list[Card]:
    audit, whole = _audit(mined, ["least_positive", "best_negative"])
    if audit is None:
        return []
    margins = pc.subtract(audit["least_positive"], audit["best_negative"]).drop_null().to_numpy()
    if not len(margins):
        return []
    part = "every question" if whole else f"{audit.num_rows:,} of the questions"
    close = float(np.mean(margins < 0.05))
    says = (
        f"The score of a question's lowest positive minus that of its best mined negative, for {part}: half are below "
        f"{np.median(margins):.3f}, and {close:.0%} below 0.05. The smaller, the harder the negative is."
    )
    words = charts.Words("margins", "Histogram of mining margins", says, x="positive minus negative", y="questions")
    return [card("Mining margins", charts.histogram(words, margins))]


def _dropped_card(mined: StageOutput) -> list[Card]:
    audit, _ = _audit(mined, ["dropped", "negatives"])
    if audit is None:
        return []
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
    return [card("Likely false negatives", charts.columns(words, labels, counts.tolist()))]


def _examples_card(mined: StageOutput) -> list[Card]:
    """Some questions with a positive and the hardest negative, as mining has scored them."""
    files = [path for path in mined.files("", _MINED) if "/train" in path] or mined.files("", _MINED)
    if not files:
        return []
    found = [e for e in (_example(line) for line in first_lines(files[0], _EXAMPLE_BYTES)) if e is not None]
    if not found:
        return []
    chosen = [
        found[place] for place in sorted({*np.linspace(0, len(found) - 1, _EXAMPLES + 2).astype(int)[1:-1].tolist()})
    ]
    wanted = {name for e in chosen for name, _ in (*e.positives[:1], *e.negatives[:1])}
    texts = find_rows(mined.files("corpus", ".parquet"), "id", wanted, ["text"])
    shown = [
        element(
            "div",
            element("p", element("strong", cut(e.question, 200)), class_="name"),
            *(_scored("positive", name, score, texts) for name, score in e.positives[:1]),
            *(_scored("hardest negative", name, score, texts) for name, score in e.negatives[:1]),
            class_="pair",
        )
        for e in chosen
    ]
    return [card("Questions with what was mined for them", *shown, wide=True)]


def _example(line: str) -> Example | None:
    if not line.startswith('{"question_id"'):
        return None
    row = json.loads(line.rstrip().rstrip(","))
    docs = [tuple((str(d["id"]), float(d.get("score") or 0)) for d in row[key]) for key in ("pos_doc", "neg_doc")]
    return Example(str(row["question"]), *docs) if all(docs) else None


def _scored(word: str, name: str, score: float, texts: dict[str, dict[str, Any]]) -> Html:
    text = texts.get(name, {}).get("text")
    return quote(f"{word}, score {score:.3f}", cut(text) if text else name)
