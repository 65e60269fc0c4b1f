"""The unroll stage: mined training data -> one positive a row."""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.core.manifest import Manifest
from raycurate.pairs.config import ALGORITHM_VERSION, UnrollConfig
from raycurate.stage import Made, Output, Result, Run, Stage


@dataclass(frozen=True)
class UnrollResult(Result):
    """Finished training data with one positive a row."""

    def summary(self) -> str:
        counts = self.manifest.counts
        return f"unrolled {counts['questions']:,} questions to {counts['rows']:,} rows in {self.output}"


@dataclass(frozen=True)
class Mined:
    """The mined files that are unrolled."""

    paths: list[str]
    fingerprint: str


class Unroll(Stage[UnrollConfig, Mined]):
    """Mined training data in; one positive a row out."""

    name = "unroll"
    version = ALGORITHM_VERSION
    Config = UnrollConfig
    Result = UnrollResult
    folder = "unrolled"
    inputs = {"input": Output("mine")}
    needs_ray = False

    def open(self, config: UnrollConfig) -> Mined:
        from raycurate.pairs.mined_data import inputs_fingerprint
        from raycurate.stages.unroll.work import files_of

        paths = files_of(config)
        return Mined(paths, inputs_fingerprint(paths))

    def work(self, config: UnrollConfig, inputs: Mined, run: Run) -> Made:
        from raycurate.stages.unroll.work import unroll

        return unroll(config, inputs.paths, run)

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['rows']:,} rows"


STAGE = Unroll()
