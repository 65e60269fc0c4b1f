"""How sure a difference between two systems is: bootstrap intervals and a randomisation test, paired by question.

    compared = Comparer(units_of(sources), seed=0)
    compared.intervals(values_QM)                       # 95% of each column's mean
    compared.differences(ours_Q - theirs_Q, ...)        # interval and p of each column

The percentile bootstrap (Efron 1979) draws whole units with replacement: the source files of the questions where they
are known, since questions about one file are not independent, else the questions. All systems are judged on the same
draws. The sign-flip test (Smucker, Allan and Carterette 2007, "A comparison of statistical significance tests for
information retrieval evaluation") asks how often a difference as large would come up if, unit by unit, it were chance
which of the two systems had which score. P-values of several pairs are corrected by Holm's step-down (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEAST_QUERIES = 50
"""Fewer judged questions than this say nothing about a difference."""

_LEVEL = 0.95
_BLOCK = 500  # resamples drawn at a time
_ROUNDING = 1e-12  # sums that differ by less are the same sum in another order


@dataclass(frozen=True, eq=False)
class Comparer:
    """Draws over the units of some questions.

    unit_Q: int64 [Q], the unit (from 0) of each question. seed: of the draws.
    """

    unit_Q: np.ndarray
    seed: int = 0
    resamples: int = RESAMPLES

    @property
    def units(self) -> int:
        return int(self.unit_Q.max()) + 1

    def intervals(self, values_QM: np.ndarray) -> np.ndarray:
        """float64 [M, 2]: the 95% interval of the mean over questions of each column of float64 [Q, M]."""
        sums_UM = self._sums(values_QM)
        sizes_U = np.bincount(self.unit_Q, minlength=self.units).astype(float)
        generator = np.random.default_rng([self.seed, 0])
        means = []
        for start in range(0, self.resamples, _BLOCK):
            count = min(_BLOCK, self.resamples - start)
            drawn_RU = generator.multinomial(self.units, np.full(self.units, 1 / self.units), size=count).astype(float)
            means.append(drawn_RU @ sums_UM / (drawn_RU @ sizes_U)[:, None])
        tail = (1 - _LEVEL) / 2
        return np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0).T

    def p_values(self, differences_QM: np.ndarray) -> np.ndarray:
        """float64 [M]: two-sided p of the mean of each column of differences by question, float64 [Q, M].

        At least 1 / (resamples + 1): the scores as they are count as one of the assignments.
        """
        sums_UM = self._sums(differences_QM)
        seen_M = np.abs(sums_UM.sum(0))
        generator = np.random.default_rng([self.seed, 1])
        as_large_M = np.zeros(sums_UM.shape[1])
        for start in range(0, self.resamples, _BLOCK):
            count = min(_BLOCK, self.resamples - start)
            signs_RU = generator.integers(0, 2, (count, self.units)) * 2.0 - 1.0
            as_large_M += (np.abs(signs_RU @ sums_UM) >= seen_M - _ROUNDING).sum(0)
        return (as_large_M + 1) / (self.resamples + 1)

    def _sums(self, values_QM: np.ndarray) -> np.ndarray:
        sums_UM = np.zeros((self.units, values_QM.shape[1]))
        np.add.at(sums_UM, self.unit_Q, values_QM)
        return sums_UM


def units_of(names: Sequence[Hashable]) -> np.ndarray:
    """int64 [Q]: a number for each name, equal where names are, in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, corrected by Holm's step-down method; at most 1, in the order given."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = highest
    return corrected


def verdict(low: float, high: float, queries: int) -> str:
    """improved or worse where the interval of the difference excludes 0, else no difference; undetermined with fewer
    than 50 questions."""
    if queries < LEAST_QUERIES:
        return "undetermined"
    if low > 0:
        return "improved"
    return "worse" if high < 0 else "no difference"
