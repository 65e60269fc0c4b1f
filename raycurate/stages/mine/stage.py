"""The mine stage: training data -> the same with scored positives and mined negatives.

Killed at any point and started again, nothing is embedded twice; the search is done again.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycurate.core.config import fingerprint
from raycurate.core.manifest import Manifest
from raycurate.pairs.config import MINING_VERSION, MineConfig
from raycurate.stage import CACHE, MODEL, SEED, Asked, Made, Output, Result, Run, Stage

if TYPE_CHECKING:
    from raycurate.data.training.training import TrainingData


@dataclass(frozen=True)
class MineResult(Result):
    """A finished mining."""

    def summary(self) -> str:
        """The run in a few lines: questions, negatives, what was dropped, the distribution of scores."""
        from raycurate.pairs.mined_data import mining_lines

        settings = self.manifest.settings
        lines = mining_lines(self.manifest.counts, settings["scores"])
        lines += [
            f"{name.replace('_', ' ')}: {settings[name]}" for name in settings if name.startswith("approximate_r")
        ]
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.manifest.timings.items())
        if not self.skipped:
            lines.append(f"seconds   {seconds}")
        return "\n".join([*lines, f"output {self.output}  ({len(self.manifest.files)} files)"])


@dataclass(frozen=True)
class ToMine:
    """The training data, read, and the fingerprint of all that decides what is mined for them."""

    data: TrainingData
    fingerprint: str


class Mine(Stage[MineConfig, ToMine]):
    """Training data in; the same with scored positives and mined negatives out, and unrolled."""

    name = "mine"
    version = MINING_VERSION
    Config = MineConfig
    Result = MineResult
    folder = "mined"
    inputs = {"input": Output("convert", "train.json"), "model": MODEL, "cache": CACHE, "seed": SEED}
    packages = ("ray", "torch", "pyarrow")
    encodes = True

    def open(self, config: MineConfig) -> ToMine:
        from raycurate.data.training.training import read_training_data
        from raycurate.pairs.mined_data import inputs_fingerprint, models_fingerprint

        sources = sources_of(config)
        data = read_training_data(sources, seed=config.seed)
        paths = [source["path"] if isinstance(source, dict) else source for source in sources]
        corpora = [corpus.path for corpus in data.corpora if corpus.path]
        files = inputs_fingerprint([*paths, *corpora, *config.exclude_positives_of])
        return ToMine(data, fingerprint([files, models_fingerprint(config)]))

    def work(self, config: MineConfig, inputs: ToMine, run: Run) -> Made:
        from raycurate.pairs.mined_data import Mining, held_out

        mining = Mining(config, run.output, run.staging())
        apart = held_out(config.exclude_positives_of)
        files, audit = mining.write(inputs.data, mined_name(sources_of(config)), apart, run.clock)
        counts = {**audit.counts(config.hard_negatives_to_mine), "documents": sum(map(len, inputs.data.corpora))}
        return Made(files, counts, settings={"scores": audit.distribution(), **mining.settings})

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['negatives']:,} negatives"

    def add_flags(self, command: argparse.ArgumentParser) -> None:
        from raycurate.pairs.show import add_show_flag

        add_show_flag(command)

    def instead(self, asked: Asked) -> str | None:
        if not asked.flags.show:
            return None
        from raycurate.pairs.show import shown

        return shown(asked.flags.show, asked.values().get("output"), asked.connect)


STAGE = Mine()


def sources_of(config: MineConfig) -> list[Any]:
    return config.input if isinstance(config.input, list) else [config.input]


def mined_name(sources: Sequence[Any]) -> str:
    """The stem of the output's files: that of the first source."""
    first = sources[0]["path"] if isinstance(sources[0], dict) else sources[0]
    name = os.path.basename(str(first).rstrip("/"))
    return re.sub(r"(_mined\.automodel)?(\.jsonl|\.json|\.gz|\.zst)*$", "", name) or "train"
