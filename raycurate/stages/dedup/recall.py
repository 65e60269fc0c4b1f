"""How many near-duplicate pairs the clusters let through: a sample of rows against all rows, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.clustering.assignment import as_matrix
from raycurate.data.documents.ids import id_strings
from raycurate.ray_runtime.cluster import remote_task
from raycurate.stages.dedup.clusters import Reader
from raycurate.stages.dedup.decide import Rule, coded_edges, read_tables
from raycurate.stages.dedup.ranking import hashed

_DRAW_KEY = "raycurate-sample"


@dataclass(frozen=True)
class Recall:
    """pairs: exact pairs of a sampled row and any other with cosine >= 1 - eps. found: of these, among the edges."""

    sampled: int
    pairs: int
    found: int

    @property
    def share(self) -> float:
        return self.found / self.pairs if self.pairs else 1.0


def measure(
    reader: Reader, clusters: list[list[int]], *, sample: int, output: str, names: list[str], rule: Rule
) -> Recall:
    """Compare `sample` rows with all of `clusters` (batches of them, a task each); look the pairs up in the edges."""
    import ray

    shared = ray.put(reader)
    draw = remote_task(_draw, name="RecallSample", num_cpus=0.5)
    drawn = pa.concat_tables(ray.get([draw.remote(shared, batch, sample) for batch in clusters]))
    drawn = drawn.take(pc.sort_indices(drawn, sort_keys=[("draw", "ascending"), ("id", "ascending")])[:sample])
    chosen = ray.put(drawn)
    near = remote_task(_near, name="RecallExact", num_cpus=0.5)
    pairs = [near.remote(shared, batch, chosen, rule.threshold) for batch in clusters]
    look_up = remote_task(_look_up, name="RecallLookUp", num_cpus=0.5)
    total, found = ray.get(look_up.remote(output, names, rule, *pairs))
    return Recall(drawn.num_rows, total, found)


def _draw(reader: Reader, clusters: list[int], sample: int) -> pa.Table:
    """The rows with the smallest hashes: a random sample that does not depend on the batches."""
    best: pa.Table | None = None
    for k in clusters:
        for table in reader.batches(k, vectors=True):
            ids = table[reader.id_field]
            part = pa.table(
                {
                    "id": ids,
                    "draw": pa.array(hashed(id_strings(ids), _DRAW_KEY)),
                    "vector": table[reader.embedding_field],
                }
            )
            both = part if best is None else pa.concat_tables([best, part])
            best = both.take(pc.sort_indices(both, sort_keys=[("draw", "ascending"), ("id", "ascending")])[:sample])
    assert best is not None  # batches of clusters that have rows
    return best


def _near(reader: Reader, clusters: list[int], sample: pa.Table, threshold: float) -> pa.Table:
    """Pairs (a sampled row's id, another row's id) of at least this cosine."""
    rows_SD, names = as_matrix(sample["vector"]), sample["id"]
    found: list[pa.Table] = []
    for k in clusters:
        for table in reader.batches(k, vectors=True):
            scores_SN = rows_SD @ as_matrix(table[reader.embedding_field]).T
            which, other = np.nonzero(scores_SN.astype(np.float64) >= threshold)
            ids = table[reader.id_field]
            pairs = pa.table({"a": names.take(pa.array(which)), "b": ids.take(pa.array(other))})
            found.append(pairs.filter(pc.not_equal(pairs["a"], pairs["b"])))
    return pa.concat_tables(found)


def _look_up(output: str, names: list[str], rule: Rule, *pairs: pa.Table) -> tuple[int, int]:
    """(pairs in all, pairs among the edges); copies count by the row that they are copies of."""
    later, earlier, cosines, ids = coded_edges(read_tables(output, "edges", names), rule)
    root = np.arange(len(ids))
    copies = cosines == 1.0
    root[later[copies][::-1]] = earlier[copies][::-1]
    while not np.array_equal(root, root[root]):
        root = root[root]
    wide = np.int64(max(len(ids), 1))
    edges = np.unique(np.minimum(root[later], root[earlier]) * wide + np.maximum(root[later], root[earlier]))
    whole = pa.concat_tables(pairs)
    codes = [pc.index_in(whole[side], value_set=ids).to_numpy(zero_copy_only=False) for side in ("a", "b")]
    known = ~(np.isnan(codes[0].astype(float)) | np.isnan(codes[1].astype(float)))
    a, b = (root[side[known].astype(np.int64)] for side in codes)
    keys = np.minimum(a, b) * wide + np.maximum(a, b)
    return whole.num_rows, int(((a == b) | np.isin(keys, edges)).sum())
