"""The k-means stage on files: what it writes, against numpy; bad input; a second run; new vectors to old centroids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_rand_score

import raycurate as rc
from raycurate.core.errors import ContractError, InputError, OutputExistsError
from raycurate.core.manifest import require_whole
from raycurate.models.contract import SCHEMA_KEY, EmbeddingContract
from tests.kmeans.test_fit import blobs

pytestmark = pytest.mark.usefixtures("local_ray")


def write(path: Path, rows: np.ndarray, *, first: int = 0, contract: EmbeddingContract | None = None) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), rows.shape[1])
    ids = [f"d{first + i}" for i in range(len(rows))]
    table = pa.table({"id": ids, "embeddings": vectors, "length": pa.array(np.arange(len(rows)) + first)})
    if contract is not None:
        table = table.replace_schema_metadata({SCHEMA_KEY: contract.to_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=97)


def read(folder: Path) -> pa.Table:
    """All rows of a clustered output, `centroid` from the folders' names."""
    parts = []
    for file in require_whole(str(folder)).files:
        if file.path.startswith("centroid="):
            table = pq.ParquetFile(folder / file.path).read()
            k = int(file.path.partition("/")[0].removeprefix("centroid="))
            parts.append(table.append_column("centroid", pa.array([k] * table.num_rows)))
    return pa.concat_tables(parts)


def matrix(table: pa.Table, name: str = "embeddings") -> np.ndarray:
    return np.array(table[name].to_pylist(), np.float32)


def test_rows_lie_by_their_nearest_centroid_with_both_distances(tmp_path: Path) -> None:
    data, labels = blobs(3000, 24, 12, 1)
    for i, part in enumerate(np.array_split(data, 3)):
        write(tmp_path / f"in/{i}.parquet", 3.0 * part, first=i * 1000)
    result = rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), n_clusters=12, metadata_fields=["length"])
    table = read(tmp_path / "out")
    assert sorted(table["id"].to_pylist()) == sorted(f"d{i}" for i in range(3000))
    centroids = np.load(tmp_path / "out/_kmeans_centroids.npy")
    assert centroids.shape == (12, 24) and centroids.dtype == np.float32
    rows, c = matrix(table), table["centroid"].to_numpy()
    index = table["length"].to_numpy()
    np.testing.assert_allclose(rows, data[index], atol=1e-6)
    exact = np.linalg.norm(rows[:, None].astype(np.float64) - centroids[None], axis=2)
    np.testing.assert_allclose(table["l2_dist_to_cent"].to_numpy(), exact[np.arange(3000), c], atol=1e-5)
    np.testing.assert_allclose(exact.min(1), exact[np.arange(3000), c], atol=1e-6)
    cosine = 1 - (rows * centroids[c]).sum(1) / np.linalg.norm(centroids[c], axis=1)
    np.testing.assert_allclose(table["cosine_dist_to_cent"].to_numpy(), cosine, atol=1e-5)
    assert adjusted_rand_score(labels[index], c) > 0.99
    assert result.manifest.settings["inertia"] == pytest.approx((exact.min(1) ** 2).sum(), rel=1e-5)
    assert len([f for f in result.manifest.files if f.path.startswith("centroid=")]) <= 12
    assert rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), n_clusters=12, metadata_fields=["length"]).skipped
    with pytest.raises(OutputExistsError, match="n_clusters: 12 -> 5"):
        rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), n_clusters=5, metadata_fields=["length"])


def test_unusable_vectors_are_rejects_with_a_reason_and_repeated_ids_are_told_apart(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": f"d{i}", "embeddings": [1.0, float(i)]} for i in range(20)]
    rows[3]["embeddings"] = [0.0, 0.0]
    rows[4]["embeddings"] = [float("nan"), 1.0]
    rows[5]["embeddings"] = None
    rows[6]["embeddings"] = [1.0]
    rows[7]["id"] = "d0"
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
    with pytest.raises(
        InputError, match=r"1 row has the id of an earlier row: 'd0' in .*a\.parquet.*repeated_ids=rename"
    ):
        rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), n_clusters=2)
    result = rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), n_clusters=2, repeated_ids="rename")
    reasons = ["zero_vector", "non_finite_vector", "null_vector", "wrong_dimension"]
    assert result.manifest.rejects == dict.fromkeys(reasons, 1)
    counts = result.manifest.counts
    assert (counts["rows"], counts["renamed"], counts["resumed_rows"]) == (16, 1, 20)
    [file] = (tmp_path / "out/_rejects").iterdir()
    listed = {line["id"]: line["reject_reason"] for line in map(json.loads, file.read_text().splitlines())}
    assert listed == {f"d{i}": reason for i, reason in zip((3, 4, 5, 6), reasons, strict=True)}
    [renamed] = (tmp_path / "out/_renamed").iterdir()
    line = json.loads(renamed.read_text())
    assert line["id"] == "d0" and line["renamed_to"].startswith("d0#")
    assert {"d0", line["renamed_to"]} < set(read(tmp_path / "out")["id"].to_pylist())


def test_integer_ids_stay_integers_and_an_array_can_be_the_first_centroids(tmp_path: Path) -> None:
    data, _ = blobs(60, 4, 3, 1)
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": np.arange(60), "embeddings": list(data)}), tmp_path / "in/a.parquet")
    options: dict[str, Any] = {"max_iter": 1, "tol": 0}
    result = rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), init=data[:3], **options)
    table = read(tmp_path / "out")
    assert table["id"].type == pa.int64() and sorted(table["id"].to_pylist()) == list(range(60))
    labels = (data @ data[:3].T - (data[:3] ** 2).sum(1) / 2).argmax(1)
    np.testing.assert_allclose(result.centroids(), [data[labels == k].mean(0) for k in range(3)], atol=1e-6)
    assert rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), init=data[:3], **options).skipped
    with pytest.raises(OutputExistsError, match="init"):
        rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), init=data[3:6], **options)
    with pytest.raises(InputError, match=r"init: the first centroids are \[3, 4\], wanted are \[2, 4\]"):
        rc.kmeans(str(tmp_path / "in"), str(tmp_path / "two"), init=data[:3], n_clusters=2)


@pytest.mark.parametrize("seed", [42, pytest.param(0, marks=pytest.mark.slow)])
def test_the_small_input_of_one_cluster(shared_cases: Path, tmp_path: Path, seed: int) -> None:
    result = rc.kmeans(str(shared_cases / "few-clusters/in"), str(tmp_path / "out"), n_clusters=1, random_state=seed)
    rows = matrix(read(tmp_path / "out"))
    assert len(rows) == 300
    np.testing.assert_allclose(result.centroids()[0], rows.mean(0), atol=1e-6)


def test_json_lines_and_one_cluster(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "embeddings": [1, i]}) for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rc.kmeans(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), n_clusters=1, input_filetype="jsonl")
    table = read(tmp_path / "out")
    assert sorted(table["id"].to_pylist()) == list("01234")
    np.testing.assert_allclose(np.load(tmp_path / "out/_kmeans_centroids.npy")[0], matrix(table).mean(0), atol=1e-6)


def test_one_row(tmp_path: Path) -> None:
    write(tmp_path / "in/a.parquet", np.array([[3.0, 4.0]]))
    result = rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"))
    np.testing.assert_allclose(result.centroids(), [[0.6, 0.8]], atol=1e-6)


def test_what_cannot_be_clustered_says_why(tmp_path: Path) -> None:
    write(tmp_path / "in/a.parquet", np.eye(4, 3))
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="4 rows cannot make 5 clusters"):
        rc.kmeans(str(tmp_path / "in"), out, n_clusters=5)
    with pytest.raises(InputError, match="no column 'embedding'"):
        rc.kmeans(str(tmp_path / "in"), out, embedding_field="embedding")
    with pytest.raises(InputError, match="have 3 dimensions, embedding_dim is 4"):
        rc.kmeans(str(tmp_path / "in"), out, embedding_dim=4)
    write(tmp_path / "in/b.parquet", np.eye(4))
    with pytest.raises(InputError, match=r"different dimensions: 3 in .*a.parquet and 4 in .*b.parquet"):
        rc.kmeans(str(tmp_path / "in"), out)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty/a.parquet", np.empty((0, 3)))
    with pytest.raises(InputError, match="hold no rows"):
        rc.kmeans(str(tmp_path / "empty"), out)
    with pytest.raises(InputError, match="no such file or folder"):
        rc.kmeans(str(tmp_path / "nowhere"), out)
    write(tmp_path / "zero/a.parquet", np.zeros((4, 3)))
    with pytest.raises(InputError, match="0 usable vectors cannot make 2 clusters"):
        rc.kmeans(str(tmp_path / "zero"), out, n_clusters=2)
    assert not (tmp_path / "out/_manifest.json").exists()


def test_vectors_of_two_models_are_not_clustered_together(tmp_path: Path, minilm: str) -> None:
    contract = EmbeddingContract.from_checkpoint(minilm)
    write(tmp_path / "in/a.parquet", np.eye(4), contract=contract)
    write(tmp_path / "in/b.parquet", np.eye(4), first=4, contract=contract.model_copy(update={"pooling": "cls"}))
    with pytest.raises(ContractError, match=r"pooling is 'mean' in .*a.parquet and 'cls' in .*b.parquet"):
        rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"))
    (tmp_path / "in/b.parquet").unlink()
    rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"))
    write(tmp_path / "new/b.parquet", np.eye(4), contract=contract.model_copy(update={"pooling": "cls"}))
    with pytest.raises(ContractError, match="pooling is 'cls' in the input and 'mean' in"):
        rc.kmeans(str(tmp_path / "new"), str(tmp_path / "out2"), centroids=str(tmp_path / "out"))


def test_new_vectors_go_to_given_centroids_and_fitted_ones_are_cached(tmp_path: Path) -> None:
    data, _ = blobs(600, 8, 5, 1)
    write(tmp_path / "in/a.parquet", data[:500])
    write(tmp_path / "new/a.parquet", data[500:], first=500)
    options = {"n_clusters": 5, "cache_path": str(tmp_path / "cache")}
    first = rc.kmeans(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    second = rc.kmeans(str(tmp_path / "new"), str(tmp_path / "out2"), centroids=str(tmp_path / "out"))
    np.testing.assert_array_equal(second.centroids(), first.centroids())
    table = read(tmp_path / "out2")
    exact = ((matrix(table)[:, None] - first.centroids()[None]) ** 2).sum(2).argmin(1)
    assert (exact == table["centroid"].to_numpy()).all() and table.num_rows == 100
    [cached] = (tmp_path / "cache").iterdir()
    saved = np.load(cached)
    np.testing.assert_array_equal(saved["centroids"], first.centroids())


def test_fit_on_a_share_of_the_rows_finds_the_same_blobs(tmp_path: Path) -> None:
    data, labels = blobs(4000, 16, 6, 2)
    write(tmp_path / "in/a.parquet", data)
    result = rc.kmeans(
        str(tmp_path / "in"), str(tmp_path / "out"), n_clusters=6, fit_data_fraction=0.5, metadata_fields=["length"]
    )
    assert 1800 < result.manifest.counts["fitted_rows"] < 2200
    table = read(tmp_path / "out")
    assert adjusted_rand_score(labels[table["length"].to_numpy()], table["centroid"].to_numpy()) > 0.99
