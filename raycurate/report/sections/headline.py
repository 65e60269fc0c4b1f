"""The numbers to see first: documents, duplicates, pairs, and what training has changed."""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.report.context import Context
from raycurate.report.evaluation import evaluation_of, with_interval
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import Run
from raycurate.report.text import counted, number, percent, signed
from raycurate.retrieval.results import BASE, FINETUNED, Evaluation, Pair, usual_name


@dataclass(frozen=True)
class Tile:
    """A number that is meant to be seen first. `compared`: the comparison whose verdict stands behind the note."""

    value: str
    label: str
    note: str = ""
    compared: Pair | None = None


def section(context: Context) -> Section | None:
    """Tiles; None where no stage that counts has run."""
    run = context.run
    found = evaluation_of(run)
    tiles = [t for t in (_documents(run), _duplicates(run), _pairs(run), _retrieval(run, found)) if t is not None]
    if not tiles:
        return None
    compared = found.pair(FINETUNED, BASE) if found else None
    return make_section(
        "results",
        "Results",
        says=compared.says if compared and compared.says else f"{counted(len(run.outputs), 'stage')} left an output.",
        unfinished=[f"{o.stage} ({o.name})" for o in run.outputs if not o.whole],
        tiles=tiles,
    )


def _documents(run: Run) -> Tile | None:
    embed = run.of("embed")
    if embed is not None:
        tokens = embed.count("tokens")
        return Tile(
            number(embed.count("documents")), "documents embedded", f"{number(tokens)} tokens" if tokens else ""
        )
    corpus = run.of("sample-corpus")
    return Tile(number(corpus.count("documents")), "documents") if corpus else None


def _duplicates(run: Run) -> Tile | None:
    dedup = run.of("dedup")
    if dedup is None or dedup.options["eps"] is None:
        return None
    removed, rows = dedup.count("removed"), dedup.count("rows")
    note = f"{percent(removed / max(1, rows))} of {number(rows)} documents, at eps {dedup.options['eps']:g}"
    return Tile(number(removed), "near-duplicates removed", note)


def _pairs(run: Run) -> Tile | None:
    made = run.of("prep", "convert")
    if made is None:
        return None
    train, val, test = (made.count(f"{split}_questions") for split in ("train", "val", "test"))
    return Tile(
        number(train + val + test), "training and test questions", f"{train:,} train, {val:,} val, {test:,} test"
    )


def _retrieval(run: Run, found: Evaluation | None) -> Tile | None:
    """The test questions; while these are not evaluated, the dev questions of the training."""
    if found is not None and BASE in found.systems:
        return _evaluated(found)
    tuned = run.of("finetune")
    if tuned is None:
        return None
    before = (tuned.options.get("base_metrics") or {}).get("dev_ndcg10")
    after = (tuned.options.get("metrics") or {}).get("dev_ndcg10")
    if after is None:
        return None
    values = f"{before:.3f} → {after:.3f}" if before is not None else f"{after:.3f}"
    return Tile(values, "nDCG@10 on the dev questions, base → tuned", "The test questions are not evaluated yet.")


def _evaluated(found: Evaluation) -> Tile | None:
    base, tuned = found.metric(BASE, found.primary), found.metric(FINETUNED, found.primary)
    if base is None:
        return None
    if tuned is None:
        return Tile(f"{base:.3f}", f"{usual_name(found.primary)} of the base model")
    compared = found.pair(FINETUNED, BASE)
    note = with_interval(compared) if compared else signed(tuned - base, 3)
    return Tile(f"{base:.3f} → {tuned:.3f}", f"{usual_name(found.primary)}, base → tuned", note, compared)
