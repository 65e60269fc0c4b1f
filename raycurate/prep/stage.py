"""The prep stage: pairs -> training data with mined negatives, validation data and a BEIR test set.

    convert ; mine (train, val) ; unroll ; the base model's and BM25's nDCG@10 on the validation questions

The test questions are converted and then left alone: they are for the one evaluation at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raycurate.core import storage
from raycurate.core.cluster import ensure_ray, require_ray
from raycurate.core.config import fingerprint
from raycurate.core.manifest import (
    Manifest,
    OutputFile,
    StageKey,
    commit,
    one_writer,
    package_versions,
    staging_folder,
    state_of,
)
from raycurate.core.observe import Clock, get_logger
from raycurate.data.training import read_training_data
from raycurate.prep.audit import Audit
from raycurate.prep.config import MINING_VERSION, PrepConfig
from raycurate.prep.convert_stage import conversion_fingerprint, converted_files, counts_of, describe
from raycurate.prep.dev import dev_scores
from raycurate.prep.mine_stage import Mining, held_out, inputs_fingerprint, mining_lines, models_fingerprint

log = get_logger(__name__)


@dataclass(frozen=True)
class PrepResult:
    """Where the training data lie and what their manifest says."""

    output: str
    manifest: Manifest
    skipped: bool = False

    def summary(self) -> str:
        """Documents, pairs, splits and leaks; what mining did; the base model's and BM25's scores; seconds."""
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


def stage_key(config: PrepConfig) -> StageKey:
    """What decides the result: the files, the models, the options that affect it."""
    files = [conversion_fingerprint(config.conversion()), inputs_fingerprint(config.exclude_positives_of)]
    return StageKey(
        stage="prep",
        algorithm_version=MINING_VERSION,
        input_fingerprint=fingerprint([files, models_fingerprint(config)]),
        options=config.result_keys(),
    )


def state(config: PrepConfig) -> str:
    """One phrase for `raycurate info`."""
    return state_of(config.output, lambda: stage_key(config), describe)


def prepare(input: str, output: str, **options: Any) -> PrepResult:
    """Make training data from question/answer records, titles or BEIR data; needs a running Ray.

    Args:
        options: any option of `raycurate prep` (`raycurate prep --help`).

    Raises:
        RaycurateError: an option, the input, the model or the cluster cannot be used.
    """
    require_ray("rc.prepare")
    return run(PrepConfig.parse({**options, "input": input, "output": output}, where="rc.prepare"))


def run(config: PrepConfig) -> PrepResult:
    """Prepare `config.input` into `config.output`; a finished output is left alone, a killed run goes on.

    Raises:
        RaycurateError: the input, the model, an option or the cluster cannot be used.
    """
    key = stage_key(config)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        return PrepResult(config.output, done, skipped=True) if done is not None else _prepare(config, key)


def _prepare(config: PrepConfig, key: StageKey) -> PrepResult:
    ensure_ray("prep")
    clock = Clock()
    staging = staging_folder(config.output, f"prep-{key.fingerprint()}")
    storage.make_dir(staging)
    converted, files, rejects = converted_files(config.conversion(), config.output, key)
    clock.lap("convert")
    splits = [split for split in ("train", "val") if converted.queries[split]]
    made, audits, found = _mined(config, splits, staging, clock)
    manifest = Manifest(
        key=key,
        inputs=[config.input] if isinstance(config.input, str) else list(config.input),
        files=[*files, *made],
        counts=counts_of(converted),
        rejects=rejects,
        timings=clock.timings(),
        settings={
            **config.redacted(),
            "summary": converted.summary,
            "mined": {name: audit.counts(config.hard_negatives_to_mine) for name, audit in audits.items()},
            "scores": {name: audit.distribution() for name, audit in audits.items()},
            **found,
        },
        versions=package_versions("raycurate", "ray", "torch", "pyarrow"),
    )
    commit(config.output, manifest)
    return PrepResult(config.output, manifest)


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
