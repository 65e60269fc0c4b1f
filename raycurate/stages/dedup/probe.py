"""Near-duplicates on two sides of a cluster's border: rows also visit the next nearest clusters.

k-means draws borders through dense regions, and two near copies may lie on either side of one. With `probe` n each
row is a member of its n nearest clusters for the comparing. Before it, `stage_visitors` writes every row once for
each cluster it visits; after it, `merge_homes` brings what was found of a row in several clusters together in its own.
The comparing grows with about the square of n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.clustering.assignment import as_matrix
from raycurate.core import storage
from raycurate.core.manifest import OutputFile
from raycurate.stages.dedup.clusters import HOME, VISITED, Reader
from raycurate.stages.dedup.neighbours import write_tables

_GROUP_ROWS = 2048
_SCORES = 1 << 24  # scores of a block: 64 MiB of float32


def nearest_others(rows_ND: np.ndarray, centroids_KD: np.ndarray, home_N: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest centroids to each row besides its own, int64 [n, count], nearest first."""
    import torch

    centres = torch.from_numpy(centroids_KD.copy())
    halves_K = centres.double().square().sum(1).div(2).float()
    out = np.empty((len(rows_ND), count), np.int64)
    step = max(1, _SCORES // len(centres))
    for start in range(0, len(rows_ND), step):
        part = torch.from_numpy(np.require(rows_ND[start : start + step], requirements=["C", "W"]))
        scores = torch.addmm(halves_K, part, centres.T, beta=-1)
        scores[torch.arange(len(part)), torch.from_numpy(home_N[start : start + step].astype(np.int64))] = -torch.inf
        out[start : start + step] = scores.topk(count, dim=1).indices.numpy()
    return out


def stage_visitors(reader: Reader, clusters: list[int], centroids: Any, probe: int, path: str) -> np.ndarray:
    """Write the rows of some clusters for each other cluster that they visit, sorted by it.

    Returns:
        How many visitors each cluster gets from here, int64 [k].
    """
    k = len(centroids)
    if not storage.exists(path):
        tables = [
            _visits(table, reader, centroids, probe) for c in clusters for table in reader.batches(c, vectors=True)
        ]
        whole = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        whole = whole.take(pc.sort_indices(whole, sort_keys=[(VISITED, "ascending")]))
        with storage.open_output(path) as stream:
            pq.write_table(whole, stream, compression="zstd", row_group_size=_GROUP_ROWS, write_statistics=[VISITED])
    filesystem, inner = storage.filesystem(path)
    visited = pq.read_table(inner, columns=[VISITED], filesystem=filesystem)[VISITED].to_numpy()
    return np.bincount(visited, minlength=k)


def _visits(table: pa.Table, reader: Reader, centroids: np.ndarray, probe: int) -> pa.Table:
    count = min(probe, len(centroids)) - 1
    rows = as_matrix(table[reader.embedding_field])
    others = nearest_others(rows, centroids, table[HOME].to_numpy(), count)
    repeated = table.take(pa.array(np.repeat(np.arange(table.num_rows), count)))
    return repeated.append_column(VISITED, pa.array(others.reshape(-1).astype(np.int32)))


def merge_homes(partial: str, names: list[str], homes: list[int], output: str) -> list[OutputFile]:
    """The neighbours and edges of the rows that live in `homes`, from what was found in all clusters.

    A row's neighbour is the closest of those found, of equals the one with the smallest id; rows are in order of id.
    """
    found = _of_homes(partial, "neighbors", names, homes)
    alone = pc.equal(found["id"], found["max_id"])
    found = found.append_column("_alone", alone)
    order = [(HOME, "ascending"), ("id", "ascending"), ("_alone", "ascending"), ("cosine_sim_score", "descending")]
    neighbours = _first_of(found.sort_by([*order, ("max_id", "ascending")]), ["id"]).drop_columns(["_alone"])
    edges = _of_homes(partial, "edges", names, homes)
    edges = edges.sort_by([(HOME, "ascending"), ("id", "ascending"), ("earlier_id", "ascending")])
    edges = _first_of(edges, ["id", "earlier_id"])
    files: list[OutputFile] = []
    for home in homes:
        mine = [table.filter(pc.equal(table[HOME], home)) for table in (neighbours, edges)]
        if mine[0].num_rows:
            files += write_tables(output, f"cluster_{home}", *mine)
    return files


def _of_homes(partial: str, folder: str, names: list[str], homes: list[int]) -> pa.Table:
    tables = []
    for name in names:
        filesystem, inner = storage.filesystem(storage.join(partial, f"{folder}/{name}.parquet"))
        filters = [(HOME, "in", homes)]
        tables.append(pq.read_table(inner, filesystem=filesystem, filters=filters, partitioning=None))
    return pa.concat_tables(tables).combine_chunks()


def _first_of(rows: pa.Table, columns: list[str]) -> pa.Table:
    """The first of each run of rows that are equal in `columns`."""
    if rows.num_rows < 2:
        return rows
    new = np.zeros(rows.num_rows, bool)
    new[0] = True
    for column in columns:
        values = rows[column].combine_chunks()
        new[1:] |= pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(new))
