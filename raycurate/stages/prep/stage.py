"""The prep stage: convert, mine and unroll in one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError
from raycurate.core.manifest import Manifest
from raycurate.pairs.config import MINING_VERSION, PrepConfig
from raycurate.stage import CACHE, MODEL, SEED, Asked, Listed, Made, Result, Run, Stage


@dataclass(frozen=True)
class PrepResult(Result):
    """Finished training data."""

    def summary(self) -> str:
        """Documents, pairs, splits and leaks; what mining did; the base model's and BM25's scores; seconds."""
        from raycurate.pairs.mined_data import mining_lines

        settings = self.manifest.settings
        lines = list(settings["summary"])
        lines += mining_lines(settings["mined"]["train"], settings["scores"]["train"])
        if settings["dev"]:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in settings["dev"].items())
            lines.append(f"nDCG@10 on the validation questions, before training: {shown}")
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.manifest.timings.items())
        if not self.skipped:
            lines.append(f"seconds   {seconds}")
        return "\n".join([*lines, f"output {self.output}  ({len(self.manifest.files)} files)"])


class Prep(Stage[PrepConfig, Listed]):
    """Pairs in; training data with mined negatives, validation data and a BEIR test set out."""

    name = "prep"
    version = MINING_VERSION
    Config = PrepConfig
    Result = PrepResult
    folder = "prep"
    inputs = {"model": MODEL, "cache": CACHE, "seed": SEED}
    packages = ("ray", "torch", "pyarrow")
    encodes = True

    def open(self, config: PrepConfig) -> Listed:
        from raycurate.pairs.converted import conversion_fingerprint
        from raycurate.pairs.mined_data import inputs_fingerprint, models_fingerprint

        files = [conversion_fingerprint(config.conversion()), inputs_fingerprint(config.exclude_positives_of)]
        return Listed(fingerprint([files, models_fingerprint(config)]))

    def work(self, config: PrepConfig, inputs: Listed, run: Run) -> Made:
        from raycurate.stages.prep.work import prepare

        return prepare(config, run)

    def phrase(self, manifest: Manifest) -> str:
        from raycurate.pairs.converted import describe

        return describe(manifest)

    def add_flags(self, command: argparse.ArgumentParser) -> None:
        from raycurate.pairs.show import add_show_flag

        add_show_flag(command)
        command.add_argument("--dataset", help="prepare this training data set of the hub, and do nothing else")
        command.add_argument("--download-path", metavar="DIR", help="where --dataset is put")

    def instead(self, asked: Asked) -> str | None:
        if asked.flags.dataset:
            return _prepared(asked.flags)
        if not asked.flags.show:
            return None
        from raycurate.pairs.show import shown

        return shown(asked.flags.show, asked.values().get("output"), asked.connect)


STAGE = Prep()


def _prepared(flags: argparse.Namespace) -> str:
    from raycurate.data.training.nemotron import prepare_nemotron

    if not flags.download_path:
        raise ConfigError("--dataset needs a folder", where="command line", fix="Add --download-path DIR")
    return prepare_nemotron(flags.dataset, flags.download_path).summary()
