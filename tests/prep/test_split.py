"""Splits, groups and what leaks from train into test."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError
from raycurate.core.manifest import Manifest, OutputFile, StageKey, write_manifest
from raycurate.pairs.groups import Unions, copies, near_duplicates
from raycurate.pairs.leak import measure_leak
from raycurate.pairs.pairs import SPLITS, Documents, Pairs, Query, normalised
from raycurate.pairs.split import assign, group_units, grouped_split, random_split, split_units

RATIOS = {"train": 0.8, "val": 0.1, "test": 0.1}


def units(count: int) -> list[tuple[str, ...]]:
    return [(f"f{n:02}",) for n in range(count)]


def test_random_is_the_shuffle_that_the_format_says() -> None:
    names = units(23)
    order = sorted(names)
    random.Random(42).shuffle(order)
    found = split_units(list(reversed(names)), RATIOS, 42)
    assert [u for u in order if found[u] == "train"] == order[:18]
    assert [u for u in order if found[u] == "val"] == order[18:20]
    assert [u for u in order if found[u] == "test"] == order[20:]
    # What this is for ten files, fixed: a change of it would move every user's test set.
    ten = split_units(units(10), RATIOS, 42)
    assert {unit[0]: split for unit, split in ten.items() if split != "train"} == {"f00": "val", "f01": "test"}


def test_units_that_have_only_scored_pairs_still_count() -> None:
    pairs = Pairs(scored_units=set(units(10)))
    pairs.queries = [Query("q", (0,), (("f03",),))]
    assert random_split(pairs, RATIOS, 42) == [split_units(units(10), RATIOS, 42)["f03",]]


@pytest.mark.parametrize("seed", range(5))
def test_unions_are_the_connected_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = rng.integers(0, 60, (40, 2)).tolist()
    unions = Unions(60)
    label = list(range(60))
    for one, other in edges:
        unions.join(one, other)
        low, high = sorted((label[one], label[other]))
        label = [low if known == high else known for known in label]
    assert unions.labels().tolist() == label


def case(seed: int) -> tuple[Pairs, np.ndarray]:
    """Queries of 40 units, some with two; some share questions, answers or near-duplicate answers."""
    rng = np.random.default_rng(seed)
    queries = []
    for number in range(150):
        question = f"question {rng.integers(0, 30)}" if rng.random() < 0.1 else f"own question {number}"
        positives = rng.choice(4000, rng.integers(1, 4), replace=False).tolist()
        own = [(f"u{rng.integers(0, 40)}",)]
        if rng.random() < 0.03:
            own.append((f"u{rng.integers(0, 40)}",))
        queries.append(Query(question, tuple(positives), tuple(dict.fromkeys(own))))
    labels = np.arange(4000)
    for row in rng.choice(4000, 25, replace=False):
        labels[row] = labels[rng.integers(0, row + 1)]
    return Pairs(queries=queries), labels


@pytest.mark.parametrize("seed", range(8))
def test_grouped_leaks_nothing_and_tears_no_unit_apart(seed: int) -> None:
    pairs, labels = case(seed)
    splits, groups = grouped_split(pairs, labels, RATIOS, 42)
    assert groups > 1
    by_split = {s: [q for q, own in zip(pairs.queries, splits, strict=True) if own == s] for s in SPLITS}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        leak = measure_leak(by_split[one], by_split[other], labels, labels)
        assert (leak.any, leak.share) == (0, 0)
        assert not {u for q in by_split[one] for u in q.units} & {u for q in by_split[other] for u in q.units}


@pytest.mark.parametrize("seed", range(4))
def test_grouped_joins_no_more_than_it_must(seed: int) -> None:
    """Groups are the connected components of the units, worked out by repeated passes."""
    pairs, labels = case(seed)
    found = group_units(pairs.queries, labels)
    group = {unit: unit for unit in found}
    changed = True
    seen: dict[object, tuple[str, ...]] = {}
    while changed:
        changed = False
        for query in pairs.queries:
            keys = [*query.units, normalised(query.text), *(int(labels[row]) for row in query.positives)]
            low = min([group[u] for u in query.units] + [seen[k] for k in keys if k in seen])
            for key in keys:
                if seen.get(key) != low:
                    seen[key], changed = low, True
            group.update(dict.fromkeys(query.units, low))
    assert found == group


def test_grouped_does_not_depend_on_the_order_of_the_input() -> None:
    pairs, labels = case(1)
    splits, _ = grouped_split(pairs, labels, RATIOS, 7)
    order = np.random.default_rng(0).permutation(len(pairs.queries))
    mixed, _ = grouped_split(Pairs(queries=[pairs.queries[i] for i in order]), labels, RATIOS, 7)
    assert mixed == [splits[i] for i in order]


def test_groups_of_one_keep_the_ratios() -> None:
    found = assign({(f"u{n}",): 1 for n in range(1000)}, RATIOS, 42)
    assert Counter(found.values()) == {"train": 800, "val": 100, "test": 100}
    assert found != assign({(f"u{n}",): 1 for n in range(1000)}, RATIOS, 43)


def test_a_large_group_is_trained_on() -> None:
    found = assign({("large",): 900, **{(f"u{n}",): 1 for n in range(100)}}, RATIOS, 42)
    assert found["large",] == "train"
    assert Counter(found.values()) == {"train": 1, "val": 50, "test": 50}


def test_a_split_without_a_share_gets_nothing() -> None:
    found = assign({(f"u{n}",): 1 for n in range(10)}, {"train": 0.8, "val": 0.0, "test": 0.2}, 42)
    assert Counter(found.values()) == {"train": 8, "test": 2}


def test_the_inputs_own_split_is_kept_and_train_gives_way() -> None:
    rows = [
        ("a", 0, "train"),
        ("b", 1, "train"),
        ("c", 2, "val"),
        ("A!", 3, "test"),
        ("d", 1, "test"),
        ("e", 4, "train"),
    ]
    queries = [Query(text, (row,), ((str(n),),), split=split) for n, (text, row, split) in enumerate(rows)]
    splits, _ = grouped_split(Pairs(queries=queries), np.array([0, 1, 2, 3, 2]), RATIOS, 42)
    # a: asked in test; b: answers a test question; e: its answer is like val's.
    assert splits == [None, None, "val", "test", "test", None]


def test_leak_by_hand() -> None:
    train = [Query("What is it?", (0,), ()), Query("Who?", (1, 2), ())]
    test = [Query("what IS it", (9,), ()), Query("Where?", (2,), ()), Query("When?", (5,), ()), Query("Why?", (7,), ())]
    copied = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    near = np.array([0, 1, 2, 3, 4, 0, 6, 7, 8, 9])  # 5 is like 0
    leak = measure_leak(train, test, copied, near)
    assert (leak.same_question, leak.same_document, leak.near, leak.any, leak.share) == (1, 1, 2, 3, 0.75)
    leak = measure_leak(train, test, copied, None)
    assert (leak.near, leak.any) == (None, 2)
    assert "not known" in str(leak)


# --- groups from files ----------------------------------------------------------------------------


def documents() -> Documents:
    found = Documents()
    for n in range(6):
        found.add(f"text number {n}", f"id{n}", f"file{n // 2}")
    return found


def test_copies() -> None:
    found = documents()
    found.add("TEXT  number\n1", "again")
    assert copies(found).tolist() == [0, 1, 2, 3, 4, 5, 1]


def labels(path: Path, cosine: float = 0.9) -> list[int]:
    found = documents()
    return near_duplicates(found, str(path), cosine, copies(found)).tolist()


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "json of lists", "parquet"])
def test_groups_from_a_file(form: str, tmp_path: Path) -> None:
    rows = [("id1", "7"), ("id4", "7"), ("id2", "8"), ("not a document", "8")]
    path = tmp_path / f"groups.{form.split(maxsplit=1)[0]}"
    if form in ("csv", "tsv"):
        mark = "," if form == "csv" else "\t"
        path.write_text("".join(f"{one}{mark}{other}\n" for one, other in [("id", "group"), *rows]))
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"id": one, "group": int(other)}) + "\n" for one, other in rows))
    elif form == "json":
        path.write_text(json.dumps(dict(rows)))
    elif form == "json of lists":
        path.write_text(json.dumps({"7": ["id1", "id4"], "8": ["id2", "not a document"]}))
    else:
        pq.write_table(pa.table({"id": [r[0] for r in rows], "group": [int(r[1]) for r in rows]}), path)
    assert labels(path) == [0, 1, 2, 3, 1, 5]


def test_a_file_name_stands_for_all_its_documents(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("id,group\nfile0,x\nid5,x\n")
    assert labels(path) == [0, 0, 2, 3, 4, 0]


def test_documents_by_the_ids_of_the_corpus(tmp_path: Path) -> None:
    ids = documents().ids
    path = tmp_path / "groups.csv"
    path.write_text(f"id,group\n{ids[2]},x\n{ids[4]},x\n")
    assert labels(path) == [0, 1, 2, 3, 2, 5]


def dedup_output(folder: Path, edges: list[tuple[str, str, float]], floor: float = 0.9) -> str:
    """What a deduplication leaves, as far as groups need it."""
    (folder / "edges").mkdir(parents=True)
    path = folder / "edges" / "cluster_0.parquet"
    columns = list(zip(*edges, strict=True))
    cosines = pa.array(columns[2], pa.float32())
    pq.write_table(pa.table({"id": columns[0], "earlier_id": columns[1], "cosine": cosines}), path)
    key = StageKey(stage="dedup", algorithm_version=1, input_fingerprint="x", options={"score_floor": floor})
    files = [OutputFile(path="edges/cluster_0.parquet", size=path.stat().st_size, rows=len(edges))]
    write_manifest(str(folder), Manifest(key=key, files=files))
    return str(folder)


def test_groups_from_a_dedup_output(tmp_path: Path) -> None:
    edges = [("id3", "id0", 0.99), ("id5", "id3", 0.95), ("id2", "id1", 0.92), ("gone", "id1", 0.99)]
    folder = Path(dedup_output(tmp_path / "dedup", edges))
    assert labels(folder) == [0, 1, 1, 0, 4, 0]
    assert labels(folder, cosine=0.97) == [0, 1, 2, 0, 4, 5]
    with pytest.raises(InputError, match="were not stored"):
        labels(folder, cosine=0.8)


def test_groups_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        labels(tmp_path / "missing")
    path = tmp_path / "groups.csv"
    path.write_text("id,group\nsomebody,1\nelse,1\n")
    with pytest.raises(InputError, match=r"none of its 2 ids .* 'somebody'"):
        labels(path)
    path.write_text("name,class\nid1,1\n")
    with pytest.raises(InputError, match="the columns are name, class"):
        labels(path)
    (tmp_path / "groups.json").write_text("[1, 2")
    with pytest.raises(InputError, match="cannot be read"):
        labels(tmp_path / "groups.json")
