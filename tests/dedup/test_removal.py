"""Who is removed from the documents: counted, and compared with what was decided; ids of any type, and other tools'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raycurate as rc
from raycurate.core.errors import ConfigError, InputError
from raycurate.stages.dedup.clusters import open_clusters, reader_of
from raycurate.stages.dedup.documents import REMOVED, Remove, _compare, _met
from raycurate.stages.dedup.ranking import hashed_ids
from raycurate.streams.staging import REJECT_REASON, ROW_KEY
from tests.kmeans.test_fit import unit

COPIED = [0, 1, 2, 2, 4, 5, 2]  # row i has the vector of row COPIED[i]: two of seven are removed


def vectors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(7, 8)))[COPIED]


def write_table(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path.parent)


def rows_in(folder: Path, part: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / part).glob("*.parquet"))])


# --- without Ray ------------------------------------------------------------------------------------


def documents(ids: list[str], reasons: list[str | None]) -> pa.Table:
    return pa.table(
        {
            ROW_KEY: pa.array(range(len(ids)), pa.uint64()),
            "id": ids,
            "text": [f"text {name}" for name in ids],
            REJECT_REASON: pa.array(reasons, pa.string()),
        }
    )


def test_what_is_removed_is_counted_by_document(tmp_path: Path) -> None:
    removed = np.sort(hashed_ids(pa.array(["a", "b", "gone"])))
    nobody = np.empty(0, np.uint64)
    first = Remove(removed, nobody)(documents(["a", "x", "b", "b"], [None] * 4))
    assert first.filter(pa.compute.is_null(first[REMOVED]))["id"].to_pylist() == ["x"]
    assert first["text"].to_pylist().count(None) == 3
    reject = Remove(removed, nobody)(documents(["a"], ["null_text"]))
    assert reject[REJECT_REASON].to_pylist() == ["null_text"]
    for name, table in (("1", first), ("2", first), ("3", reject)):  # a block that two attempts committed
        pq.write_table(table, tmp_path / f"{name}.parquet")
    met = _met([str(path) for path in sorted(tmp_path.iterdir())])
    missing, several, count = _compare(removed, met)
    assert missing.tolist() == hashed_ids(pa.array(["gone"])).tolist()
    assert several.tolist() == hashed_ids(pa.array(["b"])).tolist() and count == 3


def test_documents_that_embed_told_apart_are_told_apart_again() -> None:
    from raycurate.streams.repeated_ids import rename_repeated

    table = documents(["a", "a", "b"], [None] * 3)
    renamed = np.array([1], np.uint64)
    [_, own, _] = rename_repeated(table, "id", renamed)["id"].to_pylist()
    kept = Remove(np.sort(hashed_ids(pa.array([own]))), renamed)(table)
    assert kept.filter(pa.compute.is_null(kept[REMOVED]))["id"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([1, 2, 3]),
        pa.array([1, 2, 3], pa.int16()),
        pa.array([1.0, 2.0, 3.0]),
        pa.array(["1", "2", "3"]),
        pa.array([b"1", b"2", b"3"]),
        pa.array(["1", "2", "3"]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type).split("<")[0],
)
def test_an_id_has_one_hash_whatever_type_it_has(ids: pa.Array) -> None:
    assert hashed_ids(ids).tolist() == hashed_ids(pa.array(["1", "2", "3"])).tolist()


def curators(folder: Path, data: np.ndarray, ids: list[Any], labels: list[int]) -> Path:
    """What NeMo Curator's k-means writes: by pandas, lists of floats of any length, no manifest and no centroids."""
    frame = pd.DataFrame({"_curator_dedup_id": ids, "embeddings": [3 * row for row in data]})
    frame["l2_dist_to_cent"] = np.linspace(0.1, 0.2, len(ids)).astype("f4")
    frame["cosine_dist_to_cent"] = np.linspace(0.1, 0.2, len(ids)).astype("f4")
    frame["centroid"] = labels
    frame.to_parquet(folder, partition_cols=["centroid"])
    return folder


def test_clusters_of_another_tool_are_read_as_unit_vectors(tmp_path: Path) -> None:
    names: dict[str, Any] = {"id_field": "_curator_dedup_id", "embedding_field": "embeddings", "columns": []}
    clusters = open_clusters(str(curators(tmp_path / "c", vectors(), list(range(7)), [0, 0, 3, 3, 0, 3, 3])), **names)
    assert clusters.foreign and clusters.centroids is None and clusters.dimension == 8
    assert clusters.rows.tolist() == [3, 0, 0, 4] and clusters.id_type == pa.int64()
    reader = reader_of(clusters, which_to_keep=[], fields=("_curator_dedup_id", "embeddings", "text"))
    table = pa.concat_tables([table for k in (0, 3) for table in reader.batches(k, vectors=True)])
    np.testing.assert_allclose(np.array(table["embeddings"].to_pylist()), vectors()[[0, 1, 4, 2, 3, 5, 6]], atol=1e-6)
    curators(tmp_path / "zero", np.zeros((2, 8)), ["x", "y"], [0, 0])
    zero = open_clusters(str(tmp_path / "zero"), **names)
    reader = reader_of(zero, which_to_keep=[], fields=("_curator_dedup_id", "embeddings", "text"))
    with pytest.raises(InputError, match=r"2 rows hold no vector to compare, first 'x' \(zero_vector\)"):
        list(reader.batches(0, vectors=True))


# --- the stage --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_ray")
def test_the_removed_are_those_decided_whatever_type_ids_have(tmp_path: Path) -> None:
    """Embeddings with integer ids; documents with the same ids as floats, beside null; and other ids, and twice."""
    ids = [10, 11, 12, 13, 14, 15, 16]
    write_table(tmp_path / "emb/a.parquet", id=pa.array(ids), embeddings=list(vectors()))
    clusters = str(tmp_path / "clusters")
    rc.kmeans(str(tmp_path / "emb"), clusters, n_clusters=1)
    texts = [f"text {i}" for i in ids]
    docs = write_table(tmp_path / "docs/a.parquet", id=pa.array(ids, pa.float64()), text=texts, n=ids)
    result = rc.deduplicate(clusters, str(tmp_path / "out"), documents=docs)
    assert (result.manifest.counts["removed"], result.manifest.counts["documents"]) == (2, 5)
    assert result.manifest.rejects == {} and result.manifest.settings["first_pass"] in ("bfloat16", "float32")
    out = tmp_path / "out"
    duplicates = rows_in(out, "duplicates")
    assert {name: duplicates.schema.field(name).type for name in ("id", "kept_id")} == dict.fromkeys(
        ("id", "kept_id"), pa.int64()
    )
    for part, names in (("neighbors", ("id", "max_id")), ("edges", ("id", "earlier_id"))):
        assert all(rows_in(out, part).schema.field(name).type == pa.int64() for name in names)
    kept = rows_in(out, "documents")
    gone = duplicates["id"].to_pylist()
    assert sorted(kept["n"].to_pylist()) == sorted(set(ids) - set(gone))
    joined = pq.read_table(docs).join(
        duplicates.select(["id"]).cast(pa.schema([("id", pa.float64())])), "id", join_type="inner"
    )
    assert joined.num_rows == 2
    other = write_table(tmp_path / "other/a.parquet", id=[f"doc-{i}" for i in ids], text=texts)
    with pytest.raises(
        InputError, match=r"2 of the 2 ids to remove are those of no document: '1\d', '1\d'; .*'doc-10'"
    ):
        rc.deduplicate(clusters, str(tmp_path / "out2"), documents=other)
    twice = write_table(tmp_path / "twice/a.parquet", id=[*ids, gone[0]], text=[*texts, "another"])
    with pytest.raises(InputError, match=rf"1 of the 2 ids to remove are those of several documents each: '{gone[0]}'"):
        rc.deduplicate(clusters, str(tmp_path / "out2"), documents=twice)
    assert not (tmp_path / "out2/documents").exists() and not (tmp_path / "out2/_manifest.json").exists()
    result = rc.deduplicate(clusters, str(tmp_path / "out2"), documents=docs)
    assert result.manifest.counts["documents"] == 5


@pytest.mark.usefixtures("local_ray")
def test_pairs_alone_and_over_the_clusters_of_another_tool(tmp_path: Path) -> None:
    clusters = str(curators(tmp_path / "c", vectors(), list(range(7)), [0] * 7))
    options: dict[str, Any] = {"id_field": "_curator_dedup_id"}
    result = rc.deduplicate(clusters, str(tmp_path / "pairs"), eps=None, **options)
    assert not (tmp_path / "pairs/duplicates").exists() and result.manifest.counts["edges"] == 2
    assert result.eps is None and "nothing: eps is null" in result.summary() and result.sweep[0.01] == 2 / 7
    assert [found.removed for found in result.rethreshold(0.01)] == [2]
    decided = rc.deduplicate(clusters, str(tmp_path / "pairs"), eps=0.01, overwrite=True, **options)
    assert decided.manifest.counts["removed"] == 2
    assert sorted(rows_in(tmp_path / "pairs", "neighbors")["id"].to_pylist()) == list(range(7))
    with pytest.raises(ConfigError, match="eps=null removes nothing"):
        rc.deduplicate(clusters, str(tmp_path / "x"), eps=None, documents=clusters, **options)
    with pytest.raises(InputError, match="probe=2 needs the centroids"):
        rc.deduplicate(clusters, str(tmp_path / "x"), probe=2, **options)
    shared = str(curators(tmp_path / "s", vectors(), [0, 1, 2, 3, 4, 5, 0], [0] * 7))
    with pytest.raises(InputError, match="rows share an id: '0'"):
        rc.deduplicate(shared, str(tmp_path / "x"), **options)


@pytest.mark.usefixtures("local_ray")
def test_own_embeddings_of_the_small_inputs(shared_cases: Path, tmp_path: Path) -> None:
    for kind in ("float", "control"):
        case, clusters = shared_cases / "own-embeddings-ids" / kind, str(tmp_path / kind / "clusters")
        rc.kmeans(str(case / "emb"), clusters, n_clusters=1)
        result = rc.deduplicate(clusters, str(tmp_path / kind / "out"), documents=str(case / "docs"), eps=0.01)
        assert (result.manifest.counts["documents"], result.manifest.counts["removed"]) == (5, 1)
        assert json.loads((tmp_path / kind / "out/_manifest.json").read_text())["counts"]["documents"] == 5
