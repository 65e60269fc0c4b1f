"""Near-duplicates: what was removed, what other thresholds would remove, and pairs to judge the threshold by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.report import charts
from raycurate.report.context import Context
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import StageOutput
from raycurate.report.sampling import parquet_rows
from raycurate.report.text import cut, percent

_PAIRS_READ = 300_000
_EXAMPLES = 3  # of each kind
_NAMED, _QUOTED = 120, 220  # characters of each document's name and text

Texts = Mapping[str, tuple[str, str]]
"""Title and text of the documents that were read, by id."""


@dataclass(frozen=True)
class Pair:
    """Two documents and the cosine of their embeddings; `first` is the one that was removed, if one was."""

    first: str
    second: str
    cosine: float


@dataclass(frozen=True)
class Quote:
    """The name of a document and the beginning of its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Example:
    """A pair whose documents are shown."""

    cosine: float
    first: Quote
    second: Quote


def section(context: Context) -> Section | None:
    """None where nothing was deduplicated. A run without an eps has found pairs and removed nothing."""
    dedup = context.run.of("dedup")
    if dedup is None:
        return None
    eps = None if dedup.options["eps"] is None else float(dedup.options["eps"])
    floor = float(dedup.options["score_floor"]) if "score_floor" in dedup.options else None
    edges, whole = parquet_rows(dedup.files("edges/"), ["id", "earlier_id", "cosine"], _PAIRS_READ)
    sweep = _sweep(dedup, eps) if eps is not None else []
    return make_section(
        "duplicates",
        "Duplicates",
        dedup=dedup,
        eps=eps,
        floor=floor,
        decision=dedup.options.get("decision"),
        removed_share=dedup.count("removed") / max(1, dedup.count("rows")),
        sweep=sweep,
        sweep_chart=_sweep_chart(sweep, eps) if eps is not None else None,
        cosines=_cosines_chart(floor, eps, edges, whole),
        **(_examples(context, dedup, eps, edges) if eps is not None else _NO_EXAMPLES),
    )


def _sweep(dedup: StageOutput, eps: float) -> list[tuple[float, int, float]]:
    """(eps, documents that it removes, their share), the run's own eps among them."""
    sweep = {float(at): int(count) for at, count in (dedup.options.get("sweep") or {}).items()}
    rows = max(1, dedup.count("rows"))
    return [(at, count, count / rows) for at, count in sorted((sweep | {eps: dedup.count("removed")}).items())]


def _sweep_chart(sweep: Sequence[tuple[float, int, float]], eps: float) -> charts.Chart:
    shares = {at: share for at, _, share in sweep}
    first, last = sweep[0][0], sweep[-1][0]
    says = (
        f"An eps of {first:g} removes {percent(shares[first], 2)} of the documents, of {last:g} "
        f"{percent(shares[last], 2)}; this run's {eps:g}, in another colour, {percent(shares[eps], 2)}. "
        "Another eps is a new decision over the stored pairs (raycurate rethreshold), not a new run."
    )
    words = charts.Words("sweep", "Share removed by threshold", says, x="eps", y="removed, %")
    heights = [100 * share for share in shares.values()]
    return charts.columns(words, [f"{at:g}" for at in shares], heights, marked=list(shares).index(eps))


def _cosines_chart(floor: float | None, eps: float | None, edges: pa.Table | None, whole: bool) -> charts.Chart | None:
    """None where there are no pairs."""
    if edges is None or not edges.num_rows:
        return None
    cosines = edges["cosine"].to_numpy()
    floor = float(cosines.min()) if floor is None else floor
    threshold = floor if eps is None else 1 - eps
    above = int((cosines >= threshold).sum())
    part = "All" if whole else "A part of the"
    says = (
        f"{part} stored pairs, {edges.num_rows:,}, of cosine {floor:g} or more; {above:,} are at or above the "
        f"threshold of {threshold:g}. Where many lie near it, look at the examples below before trusting it."
    )
    words = charts.Words("cosines", "Histogram of similar pairs by cosine", says, x="cosine similarity", y="pairs")
    return charts.histogram(words, cosines, marks=[charts.Mark(threshold, f"threshold {threshold:g}")])


_NO_EXAMPLES: dict[str, Any] = {"nearest": [], "below": [], "surest": [], "no_texts": ""}


def _examples(context: Context, dedup: StageOutput, eps: float, edges: pa.Table | None) -> dict[str, Any]:
    """Pairs just above the threshold, pairs just below that were both kept, the surest; why there are no texts."""
    removed = _removed_pairs(dedup)
    if not removed:
        return _NO_EXAMPLES
    documents, problem = context.corpus
    texts = documents.texts if documents else {}
    nearest = _nearest(removed, 1 - eps, texts)
    surest = [pair for pair in _nearest(removed, 1.0, texts) if pair not in nearest]
    below = _nearest(_kept_pairs(edges, eps, {pair.first for pair in removed}), 1 - eps, texts)
    quoted = {"nearest": nearest, "below": below, "surest": surest}
    return {**{name: _quoted(pairs, texts) for name, pairs in quoted.items()}, "no_texts": "" if texts else problem}


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


def _quoted(pairs: Sequence[Pair], texts: Texts) -> list[Example]:
    return [Example(pair.cosine, _quote(pair.first, texts), _quote(pair.second, texts)) for pair in pairs]


def _quote(document_id: str, texts: Texts) -> Quote:
    title, text = texts.get(document_id, ("", ""))
    missing = "(its text was not among those read)" if texts else document_id
    return Quote(cut(title or document_id, _NAMED), cut(text, _QUOTED) if text else missing)
