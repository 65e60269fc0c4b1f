"""Who is removed: the two decisions against their plain definitions, on random graphs and chains."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raycurate.stages.dedup.decide import Rule, duplicates_of, survivors


def greedy(later: np.ndarray, earlier: np.ndarray, count: int) -> np.ndarray:
    """Kept rows when rows are gone through in order of their index."""
    kept = np.ones(count, bool)
    for row in range(count):
        kept[row] = not kept[earlier[later == row]].any()
    return kept


def random_edges(random: np.random.Generator, count: int, edges: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = np.sort(random.integers(0, count, (edges, 2)), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return pairs[:, 1], pairs[:, 0], random.uniform(0.9, 0.999, len(pairs)).astype(np.float32)


@pytest.mark.parametrize("seed", range(40))
def test_survivors_are_those_of_the_greedy_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 80))
    later, earlier, cosines = random_edges(random, count, int(random.integers(0, 200)))
    names = random.permutation(count)  # the ranks are not in the indices
    removing = survivors(names[later], names[earlier], cosines, count)
    kept = greedy(later, earlier, count)
    np.testing.assert_array_equal(removing[names] < 0, kept)
    for row in np.flatnonzero(~kept):
        edge = removing[names[row]]
        mine = [e for e in range(len(later)) if later[e] == row and kept[earlier[e]]]
        assert edge in mine and cosines[edge] == max(cosines[mine])


@pytest.mark.parametrize("count", [10, 999, 20_000])
def test_every_second_row_of_a_chain_survives(count: int) -> None:
    rows = np.arange(count)
    removing = survivors(rows[1:], rows[:-1], np.full(count - 1, 0.95, np.float32), count)
    np.testing.assert_array_equal(removing >= 0, rows % 2 == 1)


def test_a_copy_shares_the_fate_of_what_it_copies() -> None:
    # 1 is near 0 and removed; 2 and 3 are copies of 1 (3 by way of 2); 5 is a copy of 4, which stays.
    later, earlier = np.array([1, 2, 3, 5]), np.array([0, 1, 2, 4])
    removing = survivors(later, earlier, np.array([0.95, 1, 1, 1], np.float32), 6)
    np.testing.assert_array_equal(removing, [-1, 0, 0, 0, -1, 3])


def test_a_chain_loses_both_ends_to_earlier_and_one_to_survivor() -> None:
    """A ~ B ~ C with A unlike C."""
    edges = pa.table({"id": ["b", "c"], "earlier_id": ["a", "b"], "cosine": pa.array([0.95, 0.96], pa.float32())})
    neighbours = pa.table(
        {"id": ["a", "b", "c"], "max_id": ["a", "a", "b"], "cosine_sim_score": pa.array([0, 0.95, 0.96], pa.float32())}
    )
    earlier = duplicates_of(neighbours, edges, Rule(0.1, "earlier")).to_pylist()
    assert [(row["id"], row["kept_id"]) for row in earlier] == [("b", "a"), ("c", "b")]
    survivor = duplicates_of(neighbours, edges, Rule(0.1, "survivor")).to_pylist()
    assert [(row["id"], row["kept_id"]) for row in survivor] == [("b", "a")]
    assert duplicates_of(neighbours, edges, Rule(0.045, "survivor"))["id"].to_pylist() == ["c"]
    assert duplicates_of(neighbours, edges, Rule(0.03, "survivor")).num_rows == 0
