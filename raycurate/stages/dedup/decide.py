"""From stored neighbours and edges to who is removed: pure functions, then the tasks that read and write.

`earlier`: every row whose largest cosine to an earlier one is at least 1 - eps. `survivor`: in order of rank, a row
is removed only if it is that close to a row that is kept. Edges always lead from the later to the earlier row, so
they say in which order to go without the ranks being there: a row can be decided once all that its edges lead to
are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.manifest import OutputFile

SWEEP = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
_SLOW_ROUND = 0.02  # share of the undecided rows below which rounds are too many
_UNKNOWN, _KEPT, _REMOVED = 0, 1, 2


@dataclass(frozen=True)
class Rule:
    """eps: rows of cosine >= 1 - eps are duplicates. decision: survivor or earlier."""

    eps: float
    decision: str

    @property
    def threshold(self) -> float:
        return 1.0 - self.eps


def survivors(later_E: np.ndarray, earlier_E: np.ndarray, cosines_E: np.ndarray, count: int) -> np.ndarray:
    """The greedy decision over edges that are all close enough.

    Args:
        later_E, earlier_E: indices of rows, [0, count).
        cosines_E: exactly 1 for a row's edge to the one that it is a copy of.

    Returns:
        For each row the edge to the kept row that removes it, int64 [count]; -1 for rows that are kept. For a copy of
        a removed row it is that row's edge.
    """
    copy = cosines_E == 1.0
    best = np.full(count, -1, np.int64)
    state = np.full(count, _UNKNOWN, np.int8)
    copy_edge = np.full(count, -1, np.int64)
    copy_edge[later_E[copy][::-1]] = np.flatnonzero(copy)[::-1]  # the first of several
    state[copy_edge >= 0] = _REMOVED  # whatever becomes of the row it is a copy of
    plain = np.flatnonzero((state[later_E] == _UNKNOWN) & (state[earlier_E] == _UNKNOWN))
    _decide(later_E[plain], earlier_E[plain], state)
    keeps = np.flatnonzero((state[earlier_E] == _KEPT) & (copy_edge[later_E] < 0))
    # The closest of the kept rows: written last, it stays.
    keeps = keeps[np.argsort(cosines_E[keeps], kind="stable")]
    best[later_E[keeps]] = keeps
    copies = np.flatnonzero(copy_edge >= 0)
    root = np.arange(count)
    root[copies] = earlier_E[copy_edge[copies]]
    while not np.array_equal(root, root[root]):
        root = root[root]
    kept_root = state[root[copies]] == _KEPT
    best[copies] = np.where(kept_root, _edge_to_root(copies, root, copy_edge, earlier_E), best[root[copies]])
    return best


def _edge_to_root(copies: np.ndarray, root: np.ndarray, copy_edge: np.ndarray, earlier_E: np.ndarray) -> np.ndarray:
    """The edge of each copy that leads to its root: its own, or the last one of the chain of copies."""
    edge = copy_edge[copies]
    while True:
        middle = earlier_E[edge] != root[copies]
        if not middle.any():
            return edge
        edge[middle] = copy_edge[earlier_E[edge[middle]]]


def _decide(later: np.ndarray, earlier: np.ndarray, state: np.ndarray) -> None:
    """Fill in `state`: all edges at once while a round decides many rows, then row by row."""
    while True:
        waiting = np.zeros(len(state), bool)
        waiting[later] = True
        unknown = state == _UNKNOWN
        state[unknown & ~waiting] = _KEPT
        if not len(later):
            return
        if waiting.sum() > (1 - _SLOW_ROUND) * unknown.sum():
            _decide_one_by_one(later, earlier, state)
            return
        state[later[state[earlier] == _KEPT]] = _REMOVED
        still_open = (state[later] == _UNKNOWN) & (state[earlier] != _REMOVED)
        later, earlier = later[still_open], earlier[still_open]


def _decide_one_by_one(later: np.ndarray, earlier: np.ndarray, state: np.ndarray) -> None:
    """Depth-first along the edges: for long chains, of which a round decides one row only."""
    order = np.argsort(later, kind="stable")
    rows = np.unique(np.concatenate([later, earlier]))
    later, earlier = np.searchsorted(rows, later[order]), np.searchsorted(rows, earlier[order])
    starts = np.searchsorted(later, np.arange(len(rows) + 1)).tolist()
    targets: list[int] = earlier.tolist()
    known: list[int] = state[rows].tolist()
    for first in range(len(rows)):
        stack = [first]
        while stack:
            row = stack[-1]
            if known[row] != _UNKNOWN:
                stack.pop()
                continue
            mine = targets[starts[row] : starts[row + 1]]
            states = [known[target] for target in mine]
            if _KEPT in states:
                known[row] = _REMOVED
            elif _UNKNOWN in states:
                stack.append(mine[states.index(_UNKNOWN)])
            else:
                known[row] = _KEPT
    state[rows] = known


def duplicates_of(neighbours: pa.Table, edges: pa.Table, rule: Rule) -> pa.Table:
    """Rows that are removed: id, kept_id, cosine_sim_score.

    With `survivor` kept_id is a kept row, the closest of them, and the score the cosine to it (for a copy of a removed
    row: that row's). With `earlier` it is the closest earlier row, which may itself be removed.
    """
    if rule.decision == "earlier":
        close = pc.greater_equal(neighbours["cosine_sim_score"].cast(pa.float64()), rule.threshold)
        found = neighbours.filter(pc.and_(close, pc.not_equal(neighbours["id"], neighbours["max_id"])))
        return found.select(["id", "max_id", "cosine_sim_score"]).rename_columns(["id", "kept_id", "cosine_sim_score"])
    later, earlier, cosines, ids = coded_edges(edges, rule)
    removing = survivors(later, earlier, cosines, len(ids))
    removed = np.flatnonzero(removing >= 0)
    edge = removing[removed]
    return pa.table(
        {
            "id": ids.take(pa.array(removed)),
            "kept_id": ids.take(pa.array(earlier[edge])),
            "cosine_sim_score": pa.array(cosines[edge]),
        }
    )


def coded_edges(edges: pa.Table, rule: Rule) -> tuple[np.ndarray, np.ndarray, np.ndarray, pa.Array]:
    """(later, earlier, cosines, ids): the edges that are close enough, with ids as indices."""
    edges = edges.filter(pc.greater_equal(edges["cosine"].cast(pa.float64()), rule.threshold))
    both = pa.chunked_array([*edges["id"].chunks, *edges["earlier_id"].chunks], edges["id"].type).combine_chunks()
    coded = pc.dictionary_encode(both)
    codes = coded.indices.to_numpy().astype(np.int64)
    return codes[: len(edges)], codes[len(edges) :], edges["cosine"].to_numpy(), coded.dictionary


@dataclass
class Counted:
    """What a rule removes: rows in all, how many of them, and by eps of the sweep."""

    rows: int = 0
    removed: int = 0
    sweep: dict[float, int] | None = None
    files: list[OutputFile] | None = None

    def add(self, other: Counted) -> None:
        self.rows += other.rows
        self.removed += other.removed
        mine, theirs = self.sweep or {}, other.sweep or {}
        self.sweep = {eps: mine.get(eps, 0) + theirs.get(eps, 0) for eps in theirs | mine}
        self.files = [*(self.files or []), *(other.files or [])]


def decide_files(output: str, names: list[str], rule: Rule, sweep: list[float], write_to: str | None = None) -> Counted:
    """Decide over the stored pairs of some clusters (with probe > 1: of all), and write the duplicates.

    Args:
        names: of the files in `neighbors` and `edges`, without the ending.
        sweep: further eps to count for.
        write_to: path below `output`, or None to count only.
    """
    neighbours = read_tables(output, "neighbors", names)
    edges = read_tables(output, "edges", names)
    found = duplicates_of(neighbours, edges, rule)
    counts = {eps: duplicates_of(neighbours, edges, Rule(eps, rule.decision)).num_rows for eps in sweep}
    files = []
    if write_to is not None and found.num_rows:
        with storage.open_output(storage.join(output, write_to)) as stream:
            pq.write_table(found, stream, compression="zstd")
        [entry] = storage.list_files(storage.join(output, write_to))
        files.append(OutputFile(path=write_to, size=entry.size, rows=found.num_rows))
    return Counted(neighbours.num_rows, found.num_rows, counts, files)


def read_tables(output: str, folder: str, names: list[str]) -> pa.Table:
    tables = []
    for name in names:
        filesystem, inner = storage.filesystem(storage.join(output, f"{folder}/{name}.parquet"))
        tables.append(pq.read_table(inner, filesystem=filesystem))
    return pa.concat_tables(tables)
