"""The convert stage: pairs -> training data, validation data, a corpus and a BEIR test set."""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.core.manifest import Manifest
from raycurate.pairs.config import ALGORITHM_VERSION, ConvertConfig
from raycurate.stage import SEED, Listed, Made, Result, Run, Stage


@dataclass(frozen=True)
class ConvertResult(Result):
    """Finished training data."""

    def summary(self) -> str:
        """Documents, pairs, splits, what was left out and why, and what a random split leaks."""
        return "\n".join([*self.manifest.settings["summary"], f"output {self.output}"])


class Convert(Stage[ConvertConfig, Listed]):
    """Question/answer records, titles or judged queries in; training data and splits out."""

    name = "convert"
    version = ALGORITHM_VERSION
    Config = ConvertConfig
    Result = ConvertResult
    folder = "converted"
    inputs = {"seed": SEED}
    packages = ("pyarrow",)
    needs_ray = False

    def open(self, config: ConvertConfig) -> Listed:
        from raycurate.pairs.converted import conversion_fingerprint

        return Listed(conversion_fingerprint(config))

    def work(self, config: ConvertConfig, inputs: Listed, run: Run) -> Made:
        from raycurate.pairs.converted import converted_files, counts_of

        run.staging()
        converted, files, rejects = converted_files(config, run.output, run.key)
        run.clock.lap("convert")
        return Made(files, counts_of(converted), rejects, {"summary": converted.summary})

    def phrase(self, manifest: Manifest) -> str:
        from raycurate.pairs.converted import describe

        return describe(manifest)


STAGE = Convert()
