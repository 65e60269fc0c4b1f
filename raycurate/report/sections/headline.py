"""The numbers to see first: documents, duplicates, pairs, and what training has changed."""

from __future__ import annotations

from raycurate.report.context import Context
from raycurate.report.evaluation import evaluation_of, with_interval
from raycurate.report.html import Html, Section, counted, element, number, paragraph, percent, signed, tile
from raycurate.report.runs import Run
from raycurate.report.sections.retrieval import verdict
from raycurate.retrieval.results import BASE, FINETUNED, Evaluation, usual_name


def section(context: Context) -> Section | None:
    """Tiles; None where no stage that counts has run."""
    run = context.run
    tiles = [t for t in (_documents(run), _duplicates(run), _pairs(run), *_retrieval(run)) if t is not None]
    if not tiles:
        return None
    return Section("results", "Results", _sentence(run), element("ul", *tiles, class_="tiles"))


def _documents(run: Run) -> Html | None:
    embed = run.of("embed")
    if embed is not None:
        tokens = embed.count("tokens")
        return tile(
            number(embed.count("documents")), "documents embedded", f"{number(tokens)} tokens" if tokens else ""
        )
    corpus = run.of("sample-corpus")
    return tile(number(corpus.count("documents")), "documents") if corpus else None


def _duplicates(run: Run) -> Html | None:
    dedup = run.of("dedup")
    if dedup is None or dedup.options["eps"] is None:
        return None
    removed, rows = dedup.count("removed"), dedup.count("rows")
    note = f"{percent(removed / max(1, rows))} of {number(rows)} documents, at eps {dedup.options['eps']:g}"
    return tile(number(removed), "near-duplicates removed", note)


def _pairs(run: Run) -> Html | None:
    made = run.of("prep", "convert")
    if made is None:
        return None
    train, val, test = (made.count(f"{split}_questions") for split in ("train", "val", "test"))
    return tile(
        number(train + val + test), "training and test questions", f"{train:,} train, {val:,} val, {test:,} test"
    )


def _retrieval(run: Run) -> list[Html | None]:
    found = evaluation_of(run)
    if found is not None and BASE in found.systems:
        return [_evaluated(found)]
    tuned = run.of("finetune")
    if tuned is None:
        return []
    before = (tuned.options.get("base_metrics") or {}).get("dev_ndcg10")
    after = (tuned.options.get("metrics") or {}).get("dev_ndcg10")
    if after is None:
        return []
    values = f"{before:.3f} → {after:.3f}" if before is not None else f"{after:.3f}"
    return [tile(values, "nDCG@10 on the dev questions, base → tuned", "The test questions are not evaluated yet.")]


def _evaluated(found: Evaluation) -> Html | None:
    base, tuned = found.metric(BASE, found.primary), found.metric(FINETUNED, found.primary)
    if base is None:
        return None
    if tuned is None:
        return tile(f"{base:.3f}", f"{usual_name(found.primary)} of the base model")
    compared = found.pair(FINETUNED, BASE)
    note: list[str] = [with_interval(compared), " ", verdict(compared)] if compared else [signed(tuned - base, 3)]
    return tile(f"{base:.3f} → {tuned:.3f}", f"{usual_name(found.primary)}, base → tuned", Html.join_all(note))


def _sentence(run: Run) -> Html:
    found = evaluation_of(run)
    compared = found.pair(FINETUNED, BASE) if found else None
    says = [compared.says if compared and compared.says else f"{counted(len(run.outputs), 'stage')} left an output."]
    unfinished = [f"{o.stage} ({o.name})" for o in run.outputs if not o.whole]
    if unfinished:
        says.append(f"Not finished, or not whole: {', '.join(unfinished)}.")
    return paragraph(" ".join(says))
