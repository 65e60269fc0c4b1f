"""Pairs from a BEIR folder that has judgements to train on."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from raycurate.core.errors import InputError
from raycurate.data.corpora.beir import read_beir, splits_of
from raycurate.pairs.convert_options import ConvertOptions
from raycurate.pairs.pairs import TEST, TRAIN, VAL, Pairs, Query

Qrels = Mapping[str, Mapping[str, int]]


def beir_pairs(options: ConvertOptions) -> Pairs:
    """All documents, title and text joined by a space, and the judged queries with the split they are judged in.

    Without dev judgements, val is a share of the train queries, `val_ratio` of train and val together, drawn with
    `seed`. Judgements above 0 are positives.

    Raises:
        InputError: several folders, one without train judgements, or everything that is wrong with its files.
    """
    if not isinstance(options.input, str):
        raise InputError("a BEIR folder is one folder", where=", ".join(options.input), fix="Name one folder")
    splits = splits_of(options.input)
    if "train" not in splits:
        raise InputError(
            f"there are no judgements to train on; the splits are {', '.join(splits) or 'none'}",
            where=options.input,
            fix="Give a folder with qrels/train.tsv, or make pairs from the titles: pairs_from=title",
        )
    pairs = Pairs()
    rows: dict[str, int] = {}
    for split, wanted in (("train", TRAIN), ("dev", VAL), ("test", TEST)):
        if split not in splits:
            continue
        data = read_beir(options.input, split)
        if not rows:
            rows = _add_documents(pairs, data.corpus)
        _add_queries(pairs, data.qrels, (rows, _queries(data.queries)), wanted)
    if "dev" not in splits:
        _draw_val(pairs, options)
    return pairs


def _add_documents(pairs: Pairs, corpus: Any) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, title, text in zip(*(corpus[c].to_pylist() for c in ("_id", "title", "text")), strict=True):
        rows[name] = pairs.documents.add(f"{title or ''} {text or ''}".strip(), name)
    pairs.counts["documents_read"] = len(rows)
    return rows


def _queries(table: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    columns = (table[name].to_pylist() for name in ("_id", "text", "metadata"))
    found = {}
    for name, text, metadata in zip(*columns, strict=True):
        known = json.loads(metadata) if metadata else {}
        found[name] = (text, {**(known if isinstance(known, dict) else {}), "original_id": name})
    return found


def _add_queries(pairs: Pairs, qrels: Qrels, known: tuple[dict, dict], split: str) -> None:
    rows, queries = known
    for name, judged in qrels.items():
        pairs.counts["pairs"] += 1
        text, metadata = queries[name]
        relevance: dict[int, int] = {}
        for document, score in judged.items():
            if score > 0:  # documents with the same text are one
                relevance[rows[document]] = max(score, relevance.get(rows[document], 0))
        if not text.strip() or not relevance:
            pairs.left_out["no_positive" if text.strip() else "empty_question"] += 1
            continue
        graded = tuple(relevance.values())
        pairs.queries.append(Query(text, tuple(relevance), ((name,),), metadata, split, graded))


def _draw_val(pairs: Pairs, options: ConvertOptions) -> None:
    """Make part of the train queries val's."""
    trained = [place for place, query in enumerate(pairs.queries) if query.split == TRAIN]
    order = sorted(trained, key=lambda place: pairs.queries[place].units)
    random.Random(options.seed).shuffle(order)
    share = options.val_ratio / (options.train_ratio + options.val_ratio)
    for place in order[: int(len(order) * share)]:
        query = pairs.queries[place]
        pairs.queries[place] = Query(query.text, query.positives, query.units, query.metadata, VAL, query.relevance)
