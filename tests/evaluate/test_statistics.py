"""Intervals and p-values against exact enumeration and known distributions, hand-worked corrections."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from raycurate.retrieval.statistics import Comparer, holm, units_of, verdict


def test_the_sign_flip_test_against_every_assignment() -> None:
    """Ten questions have 1,024 assignments of signs, so the exact p is known."""
    differences_Q = np.array([0.3, -0.1, 0.2, 0.0, 0.4, -0.2, 0.1, 0.5, -0.05, 0.15])
    signs = np.array(list(product([-1, 1], repeat=10)))
    exact = np.mean(np.abs(signs @ differences_Q) >= abs(differences_Q.sum()) - 1e-12)
    found = Comparer(np.arange(10)).p_values(differences_Q[:, None])
    assert found[0] == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))


def test_questions_of_one_unit_flip_together() -> None:
    """Two units of opposite, equal sums: every assignment is as large as the one that is there."""
    differences_Q = np.array([[0.5], [0.5], [-1.0], [0.0]])
    assert Comparer(units_of(["a", "a", "b", "b"])).p_values(differences_Q)[0] == 1.0


def test_no_difference_at_all() -> None:
    compared = Comparer(np.arange(60))
    assert compared.p_values(np.zeros((60, 1)))[0] == 1.0
    assert compared.intervals(np.zeros((60, 1))).tolist() == [[0.0, 0.0]]


def test_the_interval_of_many_questions_is_the_normal_one() -> None:
    values_Q = np.random.default_rng(0).normal(0.2, 1.0, 2_000)
    low, high = Comparer(np.arange(2_000)).intervals(values_Q[:, None])[0]
    error = values_Q.std() / np.sqrt(2_000)
    assert (low, high) == pytest.approx(
        (values_Q.mean() - 1.96 * error, values_Q.mean() + 1.96 * error), abs=error / 12
    )


def test_whole_units_are_drawn() -> None:
    """Of two files, one all right and one all wrong, the mean of a draw is 0, 1 or, in half of them, a mixture by the
    files' sizes: 10 questions against 30."""
    values_QM = np.repeat([1.0, 0.0], [10, 30])[:, None]
    low, high = Comparer(units_of([0] * 10 + [1] * 30)).intervals(values_QM)[0]
    assert (low, high) == (0.0, 1.0)
    by_question = Comparer(np.arange(40)).intervals(values_QM)[0]
    assert by_question[0] > 0.1
    assert by_question[1] < 0.5


def test_a_column_does_not_depend_on_the_others() -> None:
    """All systems are judged on the same draws."""
    values_QM = np.random.default_rng(1).random((80, 5))
    compared = Comparer(np.arange(80), seed=3)
    assert np.allclose(compared.intervals(values_QM)[2], compared.intervals(values_QM[:, 2:3])[0])
    assert compared.p_values(values_QM - 0.5)[4] == compared.p_values(values_QM[:, 4:] - 0.5)[0]


def test_holm_by_hand() -> None:
    # sorted: .01 x 4, .02 x 3, .03 x 2 (less than the one before it, so as large), .2
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdicts() -> None:
    assert verdict(0.001, 0.2, 50) == "improved"
    assert verdict(-0.2, -0.001, 50) == "worse"
    assert verdict(-0.1, 0.1, 5_000) == "no difference"
    assert verdict(0.1, 0.2, 49) == "undetermined"
