"""The eval stage: a test set and systems -> metrics with intervals, comparisons, and the questions that changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycurate.core import storage
from raycurate.core.errors import RaycurateError
from raycurate.core.manifest import Manifest
from raycurate.retrieval.results import RESULTS
from raycurate.stage import CACHE, MODEL, SEED, Made, Output, Run, Stage
from raycurate.stages.eval.config import ALGORITHM_VERSION, EvalConfig
from raycurate.stages.eval.result import EvalResult, drift_lines

if TYPE_CHECKING:
    from raycurate.stages.eval.work import EvalInputs


class DriftError(RaycurateError):
    """A system does not reproduce the one that it must be the same as."""


class Eval(Stage[EvalConfig, "EvalInputs"]):
    """A test set and systems in; metrics, intervals and comparisons out.

    A finished output is left alone, unless a server is among the systems, which may answer otherwise than it did.
    """

    name = "eval"
    version = ALGORITHM_VERSION
    Config = EvalConfig
    Result = EvalResult
    folder = "eval"
    inputs = {
        "input": Output("prep", "eval_beir"),
        "model": MODEL,
        "finetuned": Output("finetune", if_run=True),
        "cache": CACHE,
        "seed": SEED,
    }
    packages = ("ray", "torch", "transformers", "pytrec-eval-terrier")
    encodes = True

    def open(self, config: EvalConfig) -> EvalInputs:
        from raycurate.stages.eval.work import open_inputs

        return open_inputs(config)

    def again(self, inputs: EvalInputs) -> bool:
        return any(system.served for system in inputs.systems)

    def work(self, config: EvalConfig, inputs: EvalInputs, run: Run) -> Made:
        from raycurate.stages.eval.work import evaluate

        return evaluate(config, inputs, run)

    def result(self, config: EvalConfig, manifest: Manifest, *, skipped: bool) -> EvalResult:
        result = EvalResult(config.output, manifest, skipped)
        if config.fail_on_drift and result.drifted:
            raise DriftError(
                "; ".join(drift_lines(result.metadata["drift"])),
                where=storage.join(result.output, RESULTS),
                fix="Compare precision, max_length, prompts and pooling of the two; fail_on_drift=false only "
                "reports it",
            )
        return result

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['systems']} systems on {manifest.counts['queries']:,} questions"


STAGE = Eval()
