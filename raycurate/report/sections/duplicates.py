"""Near-duplicates: what was removed, what other thresholds would remove, and pairs to judge the threshold by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.report import charts
from raycurate.report.context import Context
from raycurate.report.html import (
    Card,
    Html,
    Section,
    card,
    counted,
    cut,
    details,
    element,
    grid,
    number,
    paragraph,
    percent,
    quote,
    table,
)
from raycurate.report.runs import StageOutput
from raycurate.report.sampling import Documents, parquet_rows
from raycurate.report.svg import values

_PAIRS_READ = 300_000
_EXAMPLES = 3  # of each kind
_QUOTED = 220  # characters of each


Texts = Mapping[str, tuple[str, str]]
"""Title and text of the documents that were read, by id."""


@dataclass(frozen=True)
class Pair:
    """Two documents and the cosine of their embeddings; `first` is the one that was removed, if one was."""

    first: str
    second: str
    cosine: float


def section(context: Context) -> Section | None:
    """None where nothing was deduplicated."""
    dedup = context.run.of("dedup")
    if dedup is None:
        return None
    if dedup.options["eps"] is None:
        return _undecided(dedup)
    removed, rows, eps = dedup.count("removed"), dedup.count("rows"), float(dedup.options["eps"])
    rule = {
        "survivor": "A document is removed if it is that near to one that is kept.",
        "earlier": "A document is removed if it is that near to any that is ranked before it.",
    }.get(str(dedup.options.get("decision")), "")
    lead = (
        f"{removed:,} of {counted(rows, 'document')} ({percent(removed / max(1, rows))}) were removed: those with a "
        f"cosine similarity of at least {1 - eps:g} to another of their cluster (eps {eps:g}). {rule}"
    )
    documents, problem = context.corpus
    edges, whole = parquet_rows(dedup.files("edges/"), ["id", "earlier_id", "cosine"], _PAIRS_READ)
    cards = [_sweep_card(dedup, eps), *_cosines_card(dedup, eps, edges, whole)]
    cards += _examples_cards(dedup, eps, edges, documents, problem)
    return Section("duplicates", "Duplicates", paragraph(lead), grid(*cards))


def _undecided(dedup: StageOutput) -> Section:
    """Pairs that were found by a run without an eps, which removes nothing."""
    floor = float(dedup.options["score_floor"])
    lead = (
        f"{dedup.count('edges'):,} pairs of documents of a cosine of at least {floor:g} were found among "
        f"{counted(dedup.count('rows'), 'document')}; eps is null, so nothing was removed."
    )
    edges, whole = parquet_rows(dedup.files("edges/"), ["id", "earlier_id", "cosine"], _PAIRS_READ)
    return Section("duplicates", "Duplicates", paragraph(lead), grid(*_cosines_card(dedup, 1 - floor, edges, whole)))


def _sweep_card(dedup: StageOutput, eps: float) -> Card:
    sweep = {float(at): int(count) for at, count in (dedup.options.get("sweep") or {}).items()}
    sweep = dict(sorted((sweep | {eps: dedup.count("removed")}).items()))
    rows = max(1, dedup.count("rows"))
    first, last = next(iter(sweep)), list(sweep)[-1]
    says = (
        f"An eps of {first:g} removes {percent(sweep[first] / rows, 2)} of the documents, of {last:g} "
        f"{percent(sweep[last] / rows, 2)}; this run's {eps:g}, in another colour, {percent(sweep[eps] / rows, 2)}. "
        "Another eps is a new decision over the stored pairs (raycurate rethreshold), not a new run."
    )
    caption = "Removed by each eps"
    whole = table(
        caption, ["eps", "Removed", "Share"], [[f"{e:g}", number(n), percent(n / rows, 2)] for e, n in sweep.items()]
    )
    words = charts.Words("sweep", "Share removed by threshold", says, x="eps", y="removed, %", more=(values(whole),))
    heights = [100 * count / rows for count in sweep.values()]
    drawn = charts.columns(words, [f"{e:g}" for e in sweep], heights, marked=list(sweep).index(eps))
    return card("What a threshold removes", drawn)


def _cosines_card(dedup: StageOutput, eps: float, edges: pa.Table | None, whole: bool) -> list[Card]:
    if edges is None or not edges.num_rows:
        return []
    cosines = edges["cosine"].to_numpy()
    above = int((cosines >= 1 - eps).sum())
    part = "All" if whole else "A part of the"
    floor = float(dedup.options.get("score_floor", cosines.min()))
    says = (
        f"{part} stored pairs, {edges.num_rows:,}, of cosine {floor:g} or more; {above:,} are at or above the "
        f"threshold of {1 - eps:g}. Where many lie near it, look at the examples below before trusting it."
    )
    words = charts.Words("cosines", "Histogram of similar pairs by cosine", says, x="cosine similarity", y="pairs")
    marks = [charts.Mark(1 - eps, f"threshold {1 - eps:g}")]
    return [card("How similar the pairs are", charts.histogram(words, cosines, marks=marks))]


def _examples_cards(
    dedup: StageOutput, eps: float, edges: pa.Table | None, documents: Documents | None, problem: str
) -> list[Card]:
    """Pairs just above the threshold; on request the surest, and pairs just below that were both kept."""
    removed = _removed_pairs(dedup)
    texts = documents.texts if documents else {}
    if not removed:
        return []
    nearest = _nearest(removed, 1 - eps, texts)
    surest = [pair for pair in _nearest(removed, 1.0, texts) if pair not in nearest]
    below = _nearest(_kept_pairs(edges, eps, {pair.first for pair in removed}), 1 - eps, texts)
    says = "Removed, just above the threshold: if these say the same, the threshold is not too low."
    parts = [element("p", says), _quoted(nearest, texts, "removed")]
    if below:
        parts.append(details("Both kept, just below the threshold", _quoted(below, texts, "kept")))
    if surest:
        parts.append(details("Removed, the most similar", _quoted(surest, texts, "removed")))
    if not texts:
        parts.append(element("p", f"The texts are not shown: {problem}.", class_="note"))
    return [card("Pairs to judge the threshold by", *parts, wide=True)]


def _removed_pairs(dedup: StageOutput) -> list[Pair]:
    found, _ = parquet_rows(dedup.files("duplicates/"), ["id", "kept_id", "cosine_sim_score"], _PAIRS_READ)
    if found is None:
        return []
    return [Pair(str(r["id"]), str(r["kept_id"]), float(r["cosine_sim_score"])) for r in found.to_pylist()]


def _kept_pairs(edges: pa.Table | None, eps: float, removed: set[str]) -> list[Pair]:
    """Pairs just below the threshold of which both documents were kept."""
    if edges is None:
        return []
    below = edges.filter(pc.less(edges["cosine"], pa.scalar(np.float32(1 - eps))))
    pairs = [Pair(str(r["id"]), str(r["earlier_id"]), float(r["cosine"])) for r in below.to_pylist()]
    return [pair for pair in pairs if pair.first not in removed and pair.second not in removed]


def _nearest(pairs: Sequence[Pair], to: float, texts: Texts) -> list[Pair]:
    """The few whose cosine is nearest to a value, those first whose texts can both be shown."""

    def order(pair: Pair) -> tuple[bool, float, str]:
        return not (pair.first in texts and pair.second in texts), abs(pair.cosine - to), pair.first

    return sorted(pairs, key=order)[:_EXAMPLES]


def _quoted(pairs: Sequence[Pair], texts: Texts, first: str) -> Html:
    """The pairs side by side; `first`: what became of the first of each, the second was kept."""
    return Html.join_all(
        element(
            "div",
            element("p", f"cosine {pair.cosine:.4f}", class_="name"),
            _document(first, pair.first, texts),
            _document("kept", pair.second, texts),
            class_="pair",
        )
        for pair in pairs
    )


def _document(word: str, document_id: str, texts: Texts) -> Html:
    title, text = texts.get(document_id, ("", ""))
    name = f"{word}: {cut(title or document_id, 120)}"
    return quote(name, cut(text, _QUOTED) if text else "(its text was not among those read)" if texts else document_id)
