"""The finetune stage: training data and a model -> checkpoints in Hugging Face format, the best one named.

While a training is unfinished its output has `_staging/run.json`, which says what it is made from. The same command
again goes on; one that would make something else is refused, unless it says overwrite=true or resume=never.
"""

from __future__ import annotations

from raycurate.core.manifest import Manifest
from raycurate.stage import CACHE, MODEL, SEED, Listed, Made, Output, Run, Stage
from raycurate.stages.finetune.config import ALGORITHM_VERSION, FinetuneConfig
from raycurate.stages.finetune.result import FinetuneResult


class Finetune(Stage[FinetuneConfig, Listed]):
    """Training data and a model in; fine-tuned models out."""

    name = "finetune"
    version = ALGORITHM_VERSION
    Config = FinetuneConfig
    Result = FinetuneResult
    folder = "finetune"
    inputs = {
        "train": Output("prep", "train_mined.automodel_unrolled.json"),
        "val": Output("prep", "val_mined.automodel.json", beside="train"),
        "model": MODEL,
        "cache": CACHE,
        "seed": SEED,
    }
    places = ("train", "model", "output")
    packages = ("ray", "torch", "transformers", "pyarrow")
    encodes = True

    def open(self, config: FinetuneConfig) -> Listed:
        from raycurate.stages.finetune.work import inputs_fingerprint

        return Listed(inputs_fingerprint(config))

    def check(self, config: FinetuneConfig) -> None:
        from raycurate.stages.finetune.check import check

        check(config)

    def work(self, config: FinetuneConfig, inputs: Listed, run: Run) -> Made:
        from raycurate.stages.finetune.work import finetune

        return finetune(config, run)

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['steps']:,} steps, best {manifest.settings['best']}"

    def plan(self, config: FinetuneConfig) -> str:
        from raycurate.stages.finetune.work import describe_plan

        return describe_plan(config, lambda: self.state(config))


STAGE = Finetune()
