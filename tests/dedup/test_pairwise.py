"""The pairwise kernel against float64 numpy: scores, the most similar earlier rows, and the pairs above the floor."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from raycurate.stages.dedup.pairwise import Found, compare

CPU = torch.device("cpu")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_rows(n: int, dim: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, dim)))


def near_copies(n: int, dim: int, seed: int, *, originals: int, noise: float) -> np.ndarray:
    """Noisy copies of a few rows that are themselves alike, as the members of one cluster are."""
    random = np.random.default_rng(seed)
    centres = unit(random_rows(originals, dim, seed) + unit(random.normal(size=(1, dim))))
    return unit(centres[random.integers(0, originals, n)] + noise * random.normal(size=(n, dim)) / np.sqrt(dim))


def cosines_of(rows: np.ndarray) -> np.ndarray:
    """float64 cosines with the earlier rows; -inf elsewhere."""
    products = rows.astype(np.float64) @ rows.astype(np.float64).T
    return np.where(np.tri(len(rows), k=-1, dtype=bool), products, -np.inf)


def whole(rows: np.ndarray, floor: float, **options: Any) -> Found:
    return compare(rows, 0, [(0, rows)], floor=floor, device=CPU, **options)


def check(found: Found, rows: np.ndarray, floor: float, first: int = 0) -> None:
    """Against the definition, for the rows from rank `first` on."""
    cosines = cosines_of(rows)[first:]
    best = np.clip(cosines.max(1), 0, 1)
    assert found.scores_N.dtype == np.float32 and found.earlier_N.dtype == np.int64
    np.testing.assert_allclose(found.scores_N, best, atol=1e-6)
    at_least_one = np.arange(len(cosines))[first == 0 :]
    of_earlier = cosines[at_least_one, found.earlier_N[at_least_one]]
    np.testing.assert_allclose(of_earlier, cosines[at_least_one].max(1), atol=1e-7)
    if first == 0:
        assert (found.scores_N[0], found.earlier_N[0]) == (0, 0)
    assert np.all(np.diff(found.later_E * 2**31 + found.first_E) > 0)  # sorted, none twice
    assert found.later_E.dtype == found.first_E.dtype == np.int64 and found.cosines_E.dtype == np.float32
    mine = np.zeros(cosines.shape, dtype=bool)
    mine[found.later_E - first, found.first_E] = True
    wrong = mine != (cosines >= floor)
    assert np.all(np.abs(cosines[wrong] - floor) < 1e-6)
    np.testing.assert_allclose(found.cosines_E, cosines[mine], atol=1e-6)
    assert np.all(found.cosines_E <= 1)


DATA = {
    "random, 7 dimensions": lambda: random_rows(700, 7, 0),
    "random, 48 dimensions": lambda: random_rows(1100, 48, 1),
    "random, 384 dimensions": lambda: random_rows(1300, 384, 2),
    "few near copies": lambda: near_copies(1500, 384, 3, originals=900, noise=0.2),
    "near copies throughout": lambda: near_copies(1200, 48, 4, originals=3, noise=0.1),
    "one cloud, all alike": lambda: near_copies(1000, 384, 5, originals=1, noise=0.3),
    "exact copies": lambda: np.repeat(random_rows(200, 48, 6), 5, axis=0),
    "orthogonal": lambda: np.eye(300, dtype=np.float32),
    "opposite": lambda: np.concatenate([random_rows(150, 7, 7), -random_rows(150, 7, 7)]),
}


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_it_finds_what_float64_finds(name: str, rough: bool) -> None:
    rows = DATA[name]()
    for floor in (0.9, 0.3):
        check(whole(rows, floor, rough=rough), rows, floor)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("block", [1, 1000, 70_000, 300_000])
def test_the_block_size_changes_nothing(block: int, rough: bool) -> None:
    rows = near_copies(900, 48, 8, originals=300, noise=0.2)
    rows = rows[:120] if block == 1 else rows
    found, usual = whole(rows, 0.9, rough=rough, block=block), whole(rows, 0.9, rough=False)
    check(found, rows, 0.9)
    np.testing.assert_array_equal(found.scores_N, usual.scores_N)
    np.testing.assert_array_equal(found.earlier_N, usual.earlier_N)
    np.testing.assert_array_equal(found.cosines_E, usual.cosines_E)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 65])
def test_tiny_clusters(n: int, rough: bool) -> None:
    rows = random_rows(n, 48, 9)
    check(whole(rows, -1.0, rough=rough), rows, -1.0)


def test_no_rows_at_all() -> None:
    found = whole(np.empty((0, 48), np.float32), 0.9, rough=True)
    assert len(found.scores_N) == len(found.earlier_N) == len(found.later_E) == 0


def test_two_rows_by_hand() -> None:
    """The angle between (1, 0) and (0.6, 0.8) has the cosine 0.6."""
    rows = np.array([[1, 0], [0.6, 0.8]], dtype=np.float32)
    found = whole(rows, 0.5, rough=True)
    np.testing.assert_allclose(found.scores_N, [0, 0.6], rtol=1e-6)
    assert found.earlier_N.tolist() == [0, 0]
    assert (found.later_E.tolist(), found.first_E.tolist()) == ([1], [0])


@pytest.mark.parametrize("rough", [False, True])
def test_of_equal_rows_the_first_is_named(rough: bool) -> None:
    rows = np.repeat(random_rows(1, 384, 10), 700, axis=0)
    found = whole(rows, 0.9, rough=rough)
    assert not found.earlier_N.any()
    np.testing.assert_allclose(found.scores_N[1:], 1, atol=1e-6)
    assert len(found.later_E) == 700 * 699 // 2
    copies = np.tile(random_rows(120, 48, 11), (6, 1))
    found = whole(copies, 0.9, rough=rough, block=5000)
    np.testing.assert_array_equal(found.earlier_N[120:], np.arange(600) % 120)


@pytest.mark.parametrize("rough", [False, True])
def test_a_negative_cosine_scores_zero_but_names_the_nearest(rough: bool) -> None:
    """The corners of a simplex: every cosine is -1/n, except that the last row is nudged towards the third."""
    n = 40
    rows = np.eye(n) - 1 / n
    rows[-1] += 0.01 * rows[2]
    found = whole(unit(rows), 0.9, rough=rough)
    assert not found.scores_N.any() and not len(found.later_E)
    assert found.earlier_N[-1] == 2


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("first", [0, 1, 333, 899])
def test_chunks_of_rows_and_columns_give_what_the_whole_gives(first: int, rough: bool) -> None:
    rows = near_copies(900, 48, 12, originals=200, noise=0.3)
    rows[500:600] = rows[40:140]
    cuts = [0, 1, 130, 450, 777, 900]
    columns = ((a, rows[a:b]) for a, b in itertools.pairwise(cuts))
    found = compare(rows[first:], first, columns, floor=0.9, device=CPU, rough=rough, block=40_000)
    check(found, rows, 0.9, first)
    usual = whole(rows, 0.9, rough=False)
    np.testing.assert_array_equal(found.scores_N, usual.scores_N[first:])
    np.testing.assert_array_equal(found.earlier_N, usual.earlier_N[first:])


@pytest.mark.parametrize("seed", range(12))
def test_any_shape_floor_and_block(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, dim = int(random.integers(2, 700)), int(random.choice([2, 7, 31, 48, 129]))
    rows = near_copies(
        n, dim, seed, originals=int(random.integers(1, n + 1)), noise=float(random.choice([0.01, 0.5, 3]))
    )
    rows[random.integers(0, n, n // 10)] = rows[random.integers(0, n, n // 10)]
    floor = float(random.choice([-0.2, 0.0, 0.5, 0.9, 0.99, 2.0]))
    first, block = int(random.integers(0, n)), int(random.integers(64, 200_000))
    cuts = [0, *sorted(random.integers(0, n, 3).tolist()), n]
    columns = [(a, rows[a:b]) for a, b in itertools.pairwise(cuts)]
    for rough in (False, True):
        found = compare(rows[first:], first, columns, floor=floor, device=CPU, rough=rough, block=block)
        check(found, rows, floor, first)


def test_read_only_rows_are_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    rows = random_rows(50, 48, 13)
    rows.flags.writeable = False
    check(whole(rows, 0.9), rows, 0.9)
    assert not recwarn.list


def test_settings_of_torch_are_as_before() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        rows = random_rows(600, 384, 14)
        check(whole(rows, 0.1, rough=False), rows, 0.1)  # "medium" would be bfloat16 on some CPUs
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("starts", [[0, 200], [100], []])
def test_missing_columns_are_refused(starts: list[int]) -> None:
    rows = random_rows(400, 7, 15)
    with pytest.raises(ValueError, match="rank"):
        compare(rows, 0, [(a, rows[a : a + 100]) for a in starts], floor=0.9, device=CPU)
