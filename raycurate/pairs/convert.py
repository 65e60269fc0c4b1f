"""From pairs to training data: train.json, val.json, a corpus they share, and a BEIR test set over the same corpus.

    OUT/train.json val.json corpus/ eval_beir/{corpus.jsonl, queries.jsonl, qrels/test.tsv, qrels/dev.tsv}

The same input and options give the same bytes. In eval_beir, test questions are q0, q1, ..., and the question that
val.json calls q7 is dev_q7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import OutputFile
from raycurate.data.corpora.beir import write_beir
from raycurate.data.training.sdg import Reject
from raycurate.data.training.training import write_corpus, write_corpus_id_json
from raycurate.pairs.beir_pairs import beir_pairs
from raycurate.pairs.convert_options import ConvertOptions
from raycurate.pairs.groups import copies, near_duplicates
from raycurate.pairs.leak import Leak, measure_leak
from raycurate.pairs.pairs import SPLITS, TEST, TRAIN, VAL, Documents, Pairs, Query
from raycurate.pairs.sdg_pairs import sdg_pairs
from raycurate.pairs.split import grouped_split, random_split
from raycurate.pairs.title_pairs import title_pairs

CORPUS = "corpus"
EVAL = "eval_beir"
_MAKERS = {"sdg": sdg_pairs, "title": title_pairs, "beir": beir_pairs}
_ADVICE = ((1000, "enough"), (500, "the recommended size; 1,000 and more are best"))
_LEAST, _MORE = 50, 100


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        documents: documents of the corpus.
        sources: source files (of records), or documents read.
        queries: questions by split (train, val, test).
        left_out: pairs that are in none, by reason.
        counts: what was read (records, chunks, pairs, ...).
        leak: how much of test was trained on.
        rejects: bad lines and records, with file, line and reason.
        files: what was written, paths relative to the folder.
        summary: lines for the user.
    """

    documents: int
    sources: int
    queries: dict[str, int]
    left_out: dict[str, int]
    counts: dict[str, int]
    leak: Leak
    rejects: list[Reject]
    files: list[OutputFile]
    summary: list[str]


def convert(options: ConvertOptions, folder: str) -> Converted:
    """Read `options.input`, make pairs, split them and write everything into `folder`.

    Raises:
        InputError: nothing to read, no pair that can be used, or nothing left to train on or to test with.
    """
    pairs = _MAKERS[options.pairs_from](options)
    where = options.input if isinstance(options.input, str) else ", ".join(options.input)
    _require_queries(pairs, options, where)
    same = copies(pairs.documents)
    near = near_duplicates(pairs.documents, options.groups, options.group_cosine, same) if options.groups else None
    by_split, groups = _split(pairs, options, same if near is None else near)
    _require_splits(by_split, pairs, options, where)
    asked = (pairs.documents.row_of_text(query.text) for query in pairs.queries)
    pairs.counts["questions_that_are_documents"] = sum(row is not None for row in asked)
    leak = measure_leak(by_split[TRAIN], by_split[TEST], same, near)
    files = _write(folder, pairs.documents, by_split, options)
    left_out = {reason: count for reason, count in sorted(pairs.left_out.items()) if count}
    converted = Converted(
        documents=len(pairs.documents),
        sources=len(pairs.documents) if pairs.sources is None else pairs.sources,
        queries={split: len(by_split[split]) for split in SPLITS},
        left_out=left_out,
        counts=dict(sorted(pairs.counts.items())),
        leak=leak,
        rejects=pairs.rejects,
        files=files,
        summary=[],
    )
    converted.summary.extend(_summary(converted, options, groups))
    return converted


def _split(pairs: Pairs, options: ConvertOptions, labels: np.ndarray) -> tuple[dict[str, list[Query]], int]:
    """The queries of each split, in the order of the input, and the number of groups (0: not grouped)."""
    groups = 0
    splits: list[str | None]
    if options.split_strategy == "grouped":
        splits, groups = grouped_split(pairs, labels, options.ratios, options.seed)
    else:
        splits = list(random_split(pairs, options.ratios, options.seed))
    pairs.left_out["leaks_into_test"] += splits.count(None)
    return {
        name: [q for q, split in zip(pairs.queries, splits, strict=True) if split == name] for name in SPLITS
    }, groups


# --- what cannot be trained with ------------------------------------------------------------------


def _require_queries(pairs: Pairs, options: ConvertOptions, where: str) -> None:
    if pairs.queries:
        return
    reasons = _reasons(pairs)
    if pairs.left_out["low_score"]:
        fix = f"Lower quality_threshold ({options.quality_threshold:g})"
    elif pairs.rejects and not pairs.counts.total():
        first = pairs.rejects[0]
        fix = f"The first bad record is {first.file}:{first.line}: {first.reason}: {first.detail}"
    else:
        fix = "Look at the input: each question needs a text, and documents that answer it"
    raise InputError(f"none of {pairs.counts['pairs']} pairs can be used ({reasons})", where=where, fix=fix)


def _require_splits(by_split: dict[str, list[Query]], pairs: Pairs, options: ConvertOptions, where: str) -> None:
    wanted = options.ratios
    for split, purpose in ((TRAIN, "to train on"), (TEST, "to test with")):
        if by_split[split] or not wanted[split]:
            continue
        units = len(pairs.units)
        given = any(query.split for query in pairs.queries)
        grouped = options.split_strategy == "grouped"
        fix = "Check its judgements" if given else "Give more documents (50 to 100 at least)"
        if grouped and not given:
            fix += ", raise group_cosine or split by a finer field: near-duplicates joined the sources into few groups"
        if split == TEST:
            fix += "; test_ratio=0 goes without a test set"
        said = "the input's own judgements" if given else "/".join(f"{wanted[name]:g}" for name in SPLITS)
        raise InputError(
            f"no question is left {purpose}: {len(pairs.queries)} questions of {units} "
            f"{'source' if units == 1 else 'sources'}, split by {said} ({_reasons(pairs)})",
            where=where,
            fix=fix,
        )


def _reasons(pairs: Pairs) -> str:
    found = [f"{count:,} {reason}" for reason, count in pairs.left_out.most_common() if count]
    if pairs.rejects:
        found.append(f"{len(pairs.rejects):,} bad records")
    return "left out: " + ", ".join(found) if found else "nothing left out"


# --- writing --------------------------------------------------------------------------------------


def _write(
    folder: str, documents: Documents, by_split: dict[str, list[Query]], options: ConvertOptions
) -> list[OutputFile]:
    written = _within(
        CORPUS,
        write_corpus(
            storage.join(folder, CORPUS),
            options.corpus_id,
            documents.table(),
            query_instruction=options.query_instruction,
            passage_instruction=options.passage_instruction,
        ),
    )
    for split in (TRAIN, VAL):
        path = storage.join(folder, f"{split}.json")
        rows = write_corpus_id_json(
            path, {"path": f"./{CORPUS}/"}, _rows(by_split[split], documents, options.corpus_id)
        )
        written.append(OutputFile(path=f"{split}.json", size=_size(path), rows=rows))
    judged = {"test": by_split[TEST]} | ({"dev": by_split[VAL]} if by_split[VAL] else {})
    names = {split: [_eval_id(split, number) for number in range(len(found))] for split, found in judged.items()}
    written += _within(
        EVAL,
        write_beir(
            storage.join(folder, EVAL),
            corpus=(
                {"_id": f"d{row}", "title": "", "text": t, "metadata": {}} for row, t in enumerate(documents.texts)
            ),
            queries=(
                {"_id": name, "text": query.text, "metadata": dict(query.metadata)}
                for split, found in judged.items()
                for name, query in zip(names[split], found, strict=True)
            ),
            qrels={
                split: {name: _judgements(query) for name, query in zip(names[split], found, strict=True)}
                for split, found in judged.items()
            },
        ),
    )
    return sorted(written, key=lambda file: file.path)


def _within(folder: str, files: list[OutputFile]) -> list[OutputFile]:
    return [file.model_copy(update={"path": f"{folder}/{file.path}"}) for file in files]


def _eval_id(split: str, number: int) -> str:
    return f"q{number}" if split == "test" else f"dev_q{number}"


def _judgements(query: Query) -> dict[str, int]:
    relevance = query.relevance or (1,) * len(query.positives)
    return {f"d{row}": score for row, score in zip(query.positives, relevance, strict=True)}


def _rows(queries: list[Query], documents: Documents, corpus_id: str) -> Iterator[dict[str, Any]]:
    for number, query in enumerate(queries):
        yield {
            "question_id": f"q{number}",
            "question": query.text,
            "corpus_id": corpus_id,
            "pos_doc": [{"id": documents.ids[row]} for row in query.positives],
            "neg_doc": [],
        }


def _size(path: str) -> int:
    return storage.list_files(path)[0].size


# --- what the user is told ------------------------------------------------------------------------


def advice(sources: int) -> str:
    """What this many source documents are good for."""
    for least, words in _ADVICE:
        if sources >= least:
            return f"{sources:,} source documents: {words}"
    if sources >= _LEAST:
        size = "the least that helps" if sources < _MORE else "a small corpus"
        return f"{sources:,} source documents: {size}; 500 and more are recommended, 1,000 and more are best"
    return (
        f"{sources:,} source documents: too few to rely on; 50 to 100 are needed at least, 500 and more recommended, "
        "1,000 and more best"
    )


def _summary(converted: Converted, options: ConvertOptions, groups: int) -> list[str]:
    queries = converted.queries
    lines = [
        f"corpus    {converted.documents:,} documents",
        f"questions {sum(queries.values()):,} of {converted.counts.get('pairs', 0):,} pairs: "
        + ", ".join(f"{queries[split]:,} {split}" for split in SPLITS),
    ]
    if converted.left_out:
        lines.append("left out  " + ", ".join(f"{count:,} {reason}" for reason, count in converted.left_out.items()))
    if converted.rejects:
        first = converted.rejects[0]
        lines.append(f"rejects   {len(converted.rejects):,}; the first: {first.file}:{first.line}: {first.reason}")
    if converted.counts["questions_that_are_documents"]:
        lines.append(
            f"note      {converted.counts['questions_that_are_documents']:,} questions are documents, word for word"
        )
    how = f"grouped into {groups:,} groups" if groups else options.split_strategy
    if options.pairs_from == "beir":
        how = "as the input is judged"
    lines.append(f"leak      {converted.leak} (split {how})")
    if converted.leak.any and options.split_strategy == "random":
        lines.append("          split_strategy=grouped leaves none")
    if options.val_ratio and not queries[VAL]:
        lines.append("note      there is no validation question; the model is then selected by its loss alone")
    lines.append(f"size      {advice(converted.sources)}")
    return lines
