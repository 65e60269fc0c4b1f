"""Which questions are trained on, which select the model and which test it once.

`random` splits by source, so that no source is on both sides, and does nothing about sources that say the same.
`grouped` first joins the sources whose answers are near-duplicates of each other, or that share a question, and
gives each group whole to one split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from raycurate.pairs.groups import Unions
from raycurate.pairs.leak import leaking
from raycurate.pairs.pairs import SPLITS, TEST, TRAIN, VAL, Pairs, Query, Unit, normalised

Ratios = Mapping[str, float]


def random_split(pairs: Pairs, ratios: Ratios, seed: int) -> list[str]:
    """The split of each query. One that comes from several units goes where the first of them does."""
    assigned = split_units(pairs.units, ratios, seed)
    return [query.split or assigned[query.units[0]] for query in pairs.queries]


def split_units(units: Sequence[Unit], ratios: Ratios, seed: int) -> dict[Unit, str]:
    """The sorted units, shuffled with `seed`, int(n * ratio) to train, then to val, the rest to test."""
    order = sorted(set(units))
    random.Random(seed).shuffle(order)
    train = int(len(order) * ratios[TRAIN])
    val = train + int(len(order) * ratios[VAL])
    return {unit: TRAIN if place < train else VAL if place < val else TEST for place, unit in enumerate(order)}


def grouped_split(pairs: Pairs, labels: np.ndarray, ratios: Ratios, seed: int) -> tuple[list[str | None], int]:
    """The split of each query, and the number of groups.

    Only answers count: a document that answers no question is not trained on. Where the input has split itself, its
    test and val stay as they are, and train loses (None) what leaks into them.

    Args:
        labels: int64 [documents]: documents of one label are near-duplicates.
    """
    if pairs.queries and all(query.split is not None for query in pairs.queries):
        return _without_leaks(pairs.queries, labels), 0
    groups = group_units(pairs.queries, labels)
    sizes = Counter(groups[query.units[0]] for query in pairs.queries)
    assigned = assign(sizes, ratios, seed)
    return [assigned[groups[query.units[0]]] for query in pairs.queries], len(sizes)


def group_units(queries: Sequence[Query], labels: np.ndarray) -> dict[Unit, Unit]:
    """The group of each unit, named by its first unit: units are joined by the questions that come from both, by
    near-duplicate answers and by equal questions."""
    units = sorted({unit for query in queries for unit in query.units})
    number = {unit: place for place, unit in enumerate(units)}
    unions = Unions(len(units))
    first: dict[int | str, int] = {}  # by label of an answer, or by question
    for query in queries:
        own = number[query.units[0]]
        for unit in query.units[1:]:
            unions.join(own, number[unit])
        keys: list[int | str] = [normalised(query.text), *(int(labels[row]) for row in query.positives)]
        for key in keys:
            unions.join(own, first.setdefault(key, own))
    return {unit: units[unions.find(place)] for unit, place in number.items()}


def assign(sizes: Mapping[Unit, int], ratios: Ratios, seed: int) -> dict[Unit, str]:
    """The split of each group: the largest groups first, each to the split that lacks most of its share."""
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sizes[group])
    total = sum(sizes.values())
    lacking = {split: ratios[split] * total for split in SPLITS if ratios[split] > 0}
    assigned = {}
    for group in order:
        split = max(lacking, key=lambda name: (lacking[name], -SPLITS.index(name)))
        assigned[group] = split
        lacking[split] -= sizes[group]
    return assigned


def _without_leaks(queries: Sequence[Query], labels: np.ndarray) -> list[str | None]:
    by_split = {split: [q for q in queries if q.split == split] for split in SPLITS}
    val = iter(leaking(by_split[VAL], by_split[TEST], labels))
    train = iter(leaking(by_split[TRAIN], by_split[TEST] + by_split[VAL], labels))
    leaks = {TRAIN: train, VAL: val}
    return [None if q.split in leaks and next(leaks[q.split]) else q.split for q in queries]
