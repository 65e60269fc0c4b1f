"""The evaluation of a run, for the sections and the closing table that show it."""

from __future__ import annotations

from raycurate.report.runs import Run
from raycurate.report.text import signed
from raycurate.retrieval.results import Evaluation, Pair, read_evaluation


def evaluation_of(run: Run) -> Evaluation | None:
    """What `raycurate eval` found; None where it has not run.

    Raises:
        InputError: eval_results.json is not what it should be.
    """
    output = run.of("eval")
    return read_evaluation(output.folder) if output is not None else None


def with_interval(pair: Pair) -> str:
    """The difference of a pair and its interval in words."""
    return f"{signed(pair.difference, 3)} (95%: {signed(pair.low, 3)} to {signed(pair.high, 3)})"
