"""The dedup stage: clusters -> documents without near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycurate.core.manifest import Manifest
from raycurate.stage import CORPUS, SEED, Made, Output, Run, Stage
from raycurate.stages.dedup.config import ALGORITHM_VERSION, DedupConfig
from raycurate.stages.dedup.result import DedupResult

if TYPE_CHECKING:
    from raycurate.stages.dedup.work import Inputs


class Dedup(Stage[DedupConfig, "Inputs"]):
    """Clusters in; pairs of near-duplicates, what is removed of them, and the documents that are kept out."""

    name = "dedup"
    version = ALGORITHM_VERSION
    Config = DedupConfig
    Result = DedupResult
    folder = "dedup"
    inputs = {"input": Output("kmeans"), "documents": CORPUS, "random_state": SEED}
    packages = ("ray", "torch", "pyarrow")

    def open(self, config: DedupConfig) -> Inputs:
        from raycurate.stages.dedup.work import open_inputs

        return open_inputs(config)

    def work(self, config: DedupConfig, inputs: Inputs, run: Run) -> Made:
        from raycurate.stages.dedup.work import deduplicate

        return deduplicate(config, inputs, run)

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['removed']:,} of {manifest.counts['rows']:,} rows removed"

    def plan(self, config: DedupConfig) -> str:
        from raycurate.stages.dedup.work import describe

        inputs = self.open(config)
        return "\n".join([*describe(config, inputs), self.state_line(config, inputs)])


STAGE = Dedup()
