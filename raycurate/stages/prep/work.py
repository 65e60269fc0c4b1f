"""Pairs -> training data with mined negatives, validation data and a BEIR test set.

    convert ; mine (train, val) ; unroll ; the base model's and BM25's nDCG@10 on the validation questions

The test questions are converted and then left alone: they are for the one evaluation at the end.
"""

from __future__ import annotations

from typing import Any

from raycurate.core import storage
from raycurate.core.manifest import OutputFile
from raycurate.core.observe import Clock
from raycurate.data.training.training import read_training_data
from raycurate.pairs.audit import Audit
from raycurate.pairs.config import PrepConfig
from raycurate.pairs.converted import converted_files, counts_of
from raycurate.pairs.dev import dev_scores
from raycurate.pairs.mined_data import Mining, held_out
from raycurate.stage import Made, Run


def prepare(config: PrepConfig, run: Run) -> Made:
    """Convert and mine; see the module."""
    staging, clock = run.staging(), run.clock
    converted, files, rejects = converted_files(config.conversion(), config.output, run.key)
    clock.lap("convert")
    splits = [split for split in ("train", "val") if converted.queries[split]]
    made, audits, found = _mined(config, splits, staging, clock)
    return Made(
        [*files, *made],
        counts_of(converted),
        rejects,
        {
            "summary": converted.summary,
            "mined": {name: audit.counts(config.hard_negatives_to_mine) for name, audit in audits.items()},
            "scores": {name: audit.distribution() for name, audit in audits.items()},
            **found,
        },
    )


def _mined(
    config: PrepConfig, splits: list[str], staging: str, clock: Clock
) -> tuple[list[OutputFile], dict[str, Audit], dict[str, Any]]:
    """The mined files of these splits, their audits, and further settings: the scores on val (`dev`), ..."""
    output = config.output
    paths = {name: storage.join(output, f"{name}.json") for name in splits}
    test = storage.join(output, "eval_beir")
    has_test = storage.exists(storage.join(test, "qrels/test.tsv"))
    files, audits, found = list[OutputFile](), dict[str, Audit](), dict[str, Any](dev={})
    for name, path in paths.items():
        data = read_training_data(path)
        others = []
        if config.exclude_test_positives:
            others = [*([test] if has_test else []), *(p for n, p in paths.items() if name == "train" and n == "val")]
        mining = Mining(config, output, staging)
        made, audits[name] = mining.write(data, name, held_out([*others, *config.exclude_positives_of]), clock)
        files += made
        found |= mining.settings
        if name == "val":
            found["dev"] = dev_scores(data, mining.ready)
            clock.lap("dev")
    return files, audits, found
