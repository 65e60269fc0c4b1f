"""The dedup stage on files, against a plain numpy reading of the definitions (FORMATS: semantic deduplication)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycurate as rc
from raycurate.core.errors import ConfigError, InputError, OutputExistsError
from raycurate.stages.dedup.result import DedupResult
from tests.kmeans.test_fit import unit
from tests.kmeans.test_stage import matrix, read, write

pytestmark = pytest.mark.usefixtures("local_ray")


def near_copies(seed: int, rows: int = 400, dim: int = 12, noise: float = 0.25) -> np.ndarray:
    """Groups of near rows at all distances from each other, chains and some exact copies among them."""
    random = np.random.default_rng(seed)
    seeds = unit(random.normal(size=(rows // 6, dim)))
    data = unit(
        seeds[random.integers(0, len(seeds), rows)]
        + noise * random.uniform(size=(rows, 1)) * random.normal(size=(rows, dim))
    )
    data[5] = data[300]
    data[7] = data[6] = data[8]
    return data


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("clustered")
    write(folder / "in/a.parquet", near_copies(0))
    rc.kmeans(str(folder / "in"), str(folder / "out"), n_clusters=5, metadata_fields=["length"])
    return folder / "out"


def table_of(folder: Path, part: str) -> dict[str, dict[str, Any]]:
    """Rows of a part of the output by id (edges: by pair)."""
    rows: dict[Any, dict[str, Any]] = {}
    for path in sorted((folder / part).glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows[(row["id"], row["earlier_id"]) if part == "edges" else row["id"]] = row
    return rows


def reference(
    table: pa.Table, ranking: Any
) -> tuple[dict[str, tuple[set[str], float]], dict[tuple[str, str], float], list[str]]:
    """(largest earlier cosine of each row and who may be named for it, all pairs >= 0.9, order) in float64."""
    best: dict[str, tuple[set[str], float]] = {}
    pairs: dict[tuple[str, str], float] = {}
    whole_order: list[str] = []
    for k in sorted(set(table["centroid"].to_pylist())):
        mine = table.filter(pa.array(table["centroid"].to_numpy() == k))
        ids = mine["id"].to_pylist()
        keys = [(*ranking(row), row["id"]) for row in mine.drop_columns(["embeddings"]).to_pylist()]
        order = sorted(range(len(ids)), key=keys.__getitem__)
        x = matrix(mine).astype(np.float64)[order]
        names = [ids[i] for i in order]
        whole_order += names
        cosines = x @ x.T
        for row, name in enumerate(names):
            if row == 0:
                best[name] = ({name}, 0.0)
                continue
            top = cosines[row, :row].max()
            near = {names[j] for j in range(row) if cosines[row, j] >= top - 1e-6}
            best[name] = (near, float(np.clip(top, 0, 1)))
            pairs |= {(name, names[j]): cosines[row, j] for j in range(row) if cosines[row, j] >= 0.9}
    return best, pairs, whole_order


RANKINGS = {
    "hard": lambda row: (-row["cosine_dist_to_cent"],),
    "easy": lambda row: (row["cosine_dist_to_cent"],),
    "-length": lambda row: (-row["length"],),
}


@pytest.mark.parametrize("ranking", list(RANKINGS))
@pytest.mark.parametrize("tile_rows", [32768, 30])
def test_scores_ranks_edges_and_decisions_are_the_definition(
    clustered: Path, tmp_path: Path, ranking: str, tile_rows: int
) -> None:
    keep: Any = [ranking] if ranking.startswith("-") else ranking
    options = {"which_to_keep": keep, "tile_rows": tile_rows, "eps": 0.04}
    result = rc.deduplicate(str(clustered), str(tmp_path / "out"), **options)
    table = read(clustered)
    best, pairs, order = reference(table, RANKINGS[ranking])
    neighbours = table_of(tmp_path / "out", "neighbors")
    assert neighbours.keys() == best.keys()
    for name, (near, score) in best.items():
        assert neighbours[name]["cosine_sim_score"] == pytest.approx(score, abs=1e-5)
        assert neighbours[name]["max_id"] in near
    edges = table_of(tmp_path / "out", "edges")
    copies = {"d5", "d300", "d6", "d7", "d8"}
    for pair, cosine in pairs.items():
        if copies.isdisjoint(pair) and cosine > 0.9 + 1e-6:
            assert edges[pair]["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert edges.keys() <= set(pairs) | {p for p in edges if edges[p]["cosine"] < 0.9 + 1e-6}
    kept: set[str] = set()
    for name in order:
        if not any(pairs.get((name, other), 0) >= 0.96 for other in kept):
            kept.add(name)
    duplicates = table_of(tmp_path / "out", "duplicates")
    assert duplicates.keys() == set(order) - kept
    for name, row in duplicates.items():
        assert row["kept_id"] in kept and pairs[name, row["kept_id"]] >= 0.96 - 1e-6
    assert result.duplicate_ratio == pytest.approx(len(duplicates) / len(order))
    [earlier] = result.rethreshold(0.04, decision="earlier")
    assert earlier.removed == sum(score >= 0.96 for _, score in best.values())


def test_another_eps_is_decided_over_what_is_stored(clustered: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    first = rc.deduplicate(str(clustered), out, eps=0.01)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/neighbors").iterdir()}
    with pytest.raises(OutputExistsError, match=r"eps: 0\.01 -> 0\.05"):
        rc.deduplicate(str(clustered), out, eps=0.05)
    second = rc.deduplicate(str(clustered), out, eps=0.05, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/neighbors").iterdir()} == before
    [again] = first.rethreshold(0.05)
    assert again.removed == second.manifest.counts["removed"] > first.manifest.counts["removed"]
    assert len(table_of(tmp_path / "out", "duplicates")) == again.removed
    assert second.sweep[0.05] == again.duplicate_ratio and second.sweep[0.01] == first.duplicate_ratio
    assert DedupResult.open(out).manifest == second.manifest
    with pytest.raises(ConfigError, match=r"below score_floor=0\.9 were not stored"):
        second.rethreshold(0.2)
    with pytest.raises(ConfigError, match=r"eps=0\.2 needs pairs of cosine 0\.8"):
        rc.deduplicate(str(clustered), out, eps=0.2)
    shown = second.examples(3)
    assert len(shown) == 3 and shown[0]["cosine_sim_score"] >= 0.95 - 1e-6
    assert abs(shown[0]["cosine_sim_score"] - 0.95) <= abs(shown[2]["cosine_sim_score"] - 0.95)


def test_many_copies_make_few_edges(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = unit(random.normal(size=(50, 8)))[random.integers(0, 50, 3000)]
    write(tmp_path / "in/a.parquet", data)
    rc.kmeans(str(tmp_path / "in"), str(tmp_path / "clusters"), n_clusters=4)
    result = rc.deduplicate(str(tmp_path / "clusters"), str(tmp_path / "out"))
    distinct = len(np.unique(data, axis=0))
    assert result.manifest.counts["edges"] == 3000 - distinct
    assert result.manifest.counts["removed"] == 3000 - distinct


def test_probing_finds_what_a_border_parts(tmp_path: Path) -> None:
    """Many clusters cut through the groups of near rows; with enough probes nothing is missed."""
    data = near_copies(3, rows=600, noise=0.15)
    write(tmp_path / "in/a.parquet", data)
    rc.kmeans(str(tmp_path / "in"), str(tmp_path / "clusters"), n_clusters=40)
    shares, removed = [], []
    for probe in (1, 3, 40):
        result = rc.deduplicate(
            str(tmp_path / "clusters"), str(tmp_path / f"out{probe}"), probe=probe, eps=0.05, recall_sample=600
        )
        recall = result.manifest.settings["recall"]
        exact = (data.astype(np.float64) @ data.T >= 0.95).sum() - 600
        assert abs(recall["pairs"] - exact) <= 4
        shares.append(recall["found"] / recall["pairs"])
        removed.append(table_of(tmp_path / f"out{probe}", "duplicates"))
        assert len(table_of(tmp_path / f"out{probe}", "neighbors")) == 600
    assert shares[0] < shares[1] <= shares[2] == 1.0
    for name, row in removed[2].items():  # across clusters too, what removes a row is kept
        assert row["kept_id"] not in removed[2]
        both = data[[int(name[1:]), int(row["kept_id"][1:])]].astype(np.float64)
        assert both[0] @ both[1] >= 0.95 - 1e-6
    kept = [i for i in range(600) if f"d{i}" not in removed[2]]
    cosines = data[kept].astype(np.float64) @ data[kept].T
    np.fill_diagonal(cosines, 0)
    assert cosines.max() < 0.95 + 1e-6


def test_documents_are_written_without_the_duplicates_and_with_all_their_columns(tmp_path: Path) -> None:
    data = near_copies(1)
    write(tmp_path / "in/a.parquet", data)
    documents = pa.table(
        {"id": [f"d{i}" for i in range(400)], "text": [f"text {i}" for i in range(400)], "n": list(range(400))}
    )
    (tmp_path / "docs").mkdir()
    pq.write_table(documents, tmp_path / "docs/a.parquet")
    (tmp_path / "docs/b.jsonl").write_text('{"id": "x", "text": "never embedded", "m": 1}\n{"id": "y", "text": null}\n')
    rc.kmeans(str(tmp_path / "in"), str(tmp_path / "clusters"), n_clusters=3)
    result = rc.deduplicate(
        str(tmp_path / "clusters"), str(tmp_path / "out"), documents=str(tmp_path / "docs"), eps=0.02
    )
    gone = table_of(tmp_path / "out", "duplicates").keys()
    rows = [
        row
        for path in sorted((tmp_path / "out/documents").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["id"] for row in rows} == {f"d{i}" for i in range(400)} - gone | {"x"}
    assert {"n", "m", "text"} <= rows[0].keys()
    assert all(str(row["n"]) == row["id"][1:] for row in rows if row["id"] != "x")
    assert result.manifest.counts["documents"] == len(rows) and result.manifest.rejects == {"null_text": 1}


def test_a_new_batch_against_a_kept_corpus(tmp_path: Path) -> None:
    data = near_copies(2, rows=500)
    write(tmp_path / "old/a.parquet", data[:300])
    write(tmp_path / "new/a.parquet", data[300:], first=300)
    rc.kmeans(str(tmp_path / "old"), str(tmp_path / "oldc"), n_clusters=4)
    rc.deduplicate(str(tmp_path / "oldc"), str(tmp_path / "old_out"), eps=0.04)
    dropped = table_of(tmp_path / "old_out", "duplicates").keys()
    rc.kmeans(str(tmp_path / "new"), str(tmp_path / "newc"), centroids=str(tmp_path / "oldc"))
    for tile_rows in (32768, 40):
        out = tmp_path / f"out{tile_rows}"
        rc.deduplicate(
            str(tmp_path / "newc"), str(out), against=str(tmp_path / "old_out"), eps=0.04, tile_rows=tile_rows
        )
        assert table_of(out, "neighbors").keys() == {f"d{i}" for i in range(300, 500)}
        removed = table_of(out, "duplicates")
        kept_old = [i for i in range(300) if f"d{i}" not in dropped]
        where = {row["id"]: row["centroid"] for part in ("oldc", "newc") for row in read(tmp_path / part).to_pylist()}
        for i in range(300, 500):
            near_old = [j for j in kept_old if where[f"d{j}"] == where[f"d{i}"] and data[i] @ data[j] >= 0.96 + 1e-6]
            if near_old:
                assert f"d{i}" in removed
        assert all(row["kept_id"] not in dropped and row["kept_id"] not in removed for row in removed.values())
    rc.kmeans(str(tmp_path / "new"), str(tmp_path / "other"), n_clusters=4)
    with pytest.raises(InputError, match="its centroids are not those of"):
        rc.deduplicate(str(tmp_path / "other"), str(tmp_path / "x"), against=str(tmp_path / "old_out"))


def test_what_cannot_be_deduplicated_says_why(clustered: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"no column 'lenght' to rank by.*Did you mean 'length'"):
        rc.deduplicate(str(clustered), out, which_to_keep=["lenght"])
    with pytest.raises(InputError, match="no centroid=K folders"):
        rc.deduplicate(str(clustered.parent / "in"), out)
    with pytest.raises(ConfigError, match="hard, easy, random"):
        rc.deduplicate(str(clustered), out, which_to_keep="hardest")
    with pytest.raises(InputError, match="no finished output of a deduplication"):
        rc.deduplicate(str(clustered), out, against=str(clustered))
    assert not Path(out).exists()
