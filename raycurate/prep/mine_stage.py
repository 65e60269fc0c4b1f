"""The mine stage: training data -> the same with scored positives and mined negatives.

Killed at any point and started again, nothing is embedded twice; the search is done again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycurate.core import storage
from raycurate.core.cluster import ensure_ray, require_ray
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.manifest import (
    STAGING,
    Manifest,
    OutputFile,
    StageKey,
    commit,
    listing_fingerprint,
    one_writer,
    package_versions,
    staging_folder,
    state_of,
)
from raycurate.core.observe import Clock, Progress, get_logger
from raycurate.data.training import Corpus, TrainingData, read_training_data
from raycurate.prep.audit import Audit, distribution_lines
from raycurate.prep.config import MINING_VERSION, MineConfig
from raycurate.prep.mine_options import MineOptions
from raycurate.prep.mined_files import MINED, MinedWriter, corpus_paths
from raycurate.prep.mining import MinedQuestion, Ready, embedded_corpora, held_out_keys, mine
from raycurate.prep.teacher import Teacher

log = get_logger(__name__)


@dataclass(frozen=True)
class MineResult:
    """A finished mining: where it lies and what its manifest says."""

    output: str
    manifest: Manifest
    skipped: bool = False

    def summary(self) -> str:
        """The run in a few lines: questions, negatives, what was dropped, the distribution of scores."""
        settings = self.manifest.settings
        lines = mining_lines(self.manifest.counts, settings["scores"])
        lines += [
            f"{name.replace('_', ' ')}: {settings[name]}" for name in settings if name.startswith("approximate_r")
        ]
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.manifest.timings.items())
        if not self.skipped:
            lines.append(f"seconds   {seconds}")
        return "\n".join([*lines, f"output {self.output}  ({len(self.manifest.files)} files)"])


def mining_lines(counts: dict[str, int], scores: dict[str, Any]) -> list[str]:
    """What a mining did, for a summary."""
    questions = counts["questions"]
    each = counts["negatives"] / questions if questions else 0.0
    lines = [
        f"mined     {counts['negatives']:,} negatives for {questions:,} questions ({each:.1f} each); "
        f"{counts['questions_with_fewer']:,} have fewer than asked, {counts['questions_without']:,} none",
        f"dropped   {counts['dropped']:,} documents above the bound; left out {counts['excluded']:,} with the "
        "text of a positive or of the question",
    ]
    for name, what in (
        ("dropped_by_models", "of the first model's candidates by a further model's bound"),
        ("dropped_by_teacher", "candidates by the teacher"),
        ("dropped_from_file", "of the file's own negatives"),
    ):
        if counts.get(name):
            lines.append(f"          {counts[name]:,} {what}")
    return [*lines, *distribution_lines(scores)]


def sources_of(config: MineConfig) -> list[Any]:
    return config.input if isinstance(config.input, list) else [config.input]


def inputs_fingerprint(paths: Sequence[str]) -> str:
    """Fingerprint of the files that these paths name, ours that are not data left out.

    Raises:
        InputError: a path that is not there.
    """
    entries = []
    for path in paths:
        if not storage.exists(path) and not any(mark in path for mark in "*?["):
            raise InputError("there is no such file or folder", where=path)
        entries += [entry for entry in storage.list_files(path) if f"/{STAGING}/" not in entry.path]
    return listing_fingerprint(entries)


def models_fingerprint(options: MineOptions) -> str:
    """What the models are: the identity of each, and the teacher's name."""
    from raycurate.embed.cache import config_for
    from raycurate.embed.model import read_contract

    found = [read_contract(config_for(m, options.encoder_of(m), "document")).identity() for m in options.models]
    return fingerprint([found, options.teacher])


def stage_key(config: MineConfig, data: TrainingData | None = None) -> StageKey:
    """What decides the result: the files, the models, the options that affect it."""
    paths = [source["path"] if isinstance(source, dict) else source for source in sources_of(config)]
    data = read_training_data(sources_of(config), seed=config.seed) if data is None else data
    corpora = [corpus.path for corpus in data.corpora if corpus.path]
    files = inputs_fingerprint([*paths, *corpora, *config.exclude_positives_of])
    return StageKey(
        stage="mine",
        algorithm_version=MINING_VERSION,
        input_fingerprint=fingerprint([files, models_fingerprint(config)]),
        options=config.result_keys(),
    )


def state(config: MineConfig) -> str:
    """One phrase for `raycurate info`."""
    return state_of(
        config.output, lambda: stage_key(config), lambda manifest: f"{manifest.counts['negatives']:,} negatives"
    )


def mine_hard_negatives(input: str, output: str, **options: Any) -> MineResult:
    """Mine hard negatives for training data; needs a running Ray.

    Args:
        input: a training file of any form that `read_training_data` takes.
        options: any option of `raycurate mine` (`raycurate mine --help`).

    Raises:
        RaycurateError: an option, the input, the model or the cluster cannot be used.
    """
    require_ray("rc.mine_hard_negatives")
    return run(MineConfig.parse({**options, "input": input, "output": output}, where="rc.mine_hard_negatives"))


def run(config: MineConfig) -> MineResult:
    """Mine for `config.input` into `config.output`; a finished output is left alone.

    Raises:
        RaycurateError: the input, the model, an option or the cluster cannot be used.
    """
    data = read_training_data(sources_of(config), seed=config.seed)
    key = stage_key(config, data)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        return MineResult(config.output, done, skipped=True) if done is not None else _mine(config, data, key)


def _mine(config: MineConfig, data: TrainingData, key: StageKey) -> MineResult:
    ensure_ray("mine")
    clock = Clock()
    staging = staging_folder(config.output, f"mine-{key.fingerprint()}")
    storage.make_dir(staging)
    mining = Mining(config, config.output, staging)
    files, audit = mining.write(data, mined_name(sources_of(config)), held_out(config.exclude_positives_of), clock)
    manifest = Manifest(
        key=key,
        inputs=[str(source) for source in sources_of(config)],
        files=files,
        counts={**audit.counts(config.hard_negatives_to_mine), "documents": sum(map(len, data.corpora))},
        timings=clock.timings(),
        settings={**config.redacted(), "scores": audit.distribution(), **mining.settings},
        versions=package_versions("raycurate", "ray", "torch", "pyarrow"),
    )
    commit(config.output, manifest)
    return MineResult(config.output, manifest)


def mined_name(sources: Sequence[Any]) -> str:
    """The stem of the output's files: that of the first source."""
    first = sources[0]["path"] if isinstance(sources[0], dict) else sources[0]
    name = os.path.basename(str(first).rstrip("/"))
    return re.sub(r"(_mined\.automodel)?(\.jsonl|\.json|\.gz|\.zst)*$", "", name) or "train"


def held_out(sources: Sequence[str]) -> pa.Array:
    """Keys of the texts that are positives of these training files or of the test split of these BEIR folders."""
    texts = []
    for source in sources:
        if storage.exists(storage.join(source, "qrels")):
            texts.append(_beir_positives(source))
            continue
        data = read_training_data(source)
        for number, corpus in enumerate(data.corpora):
            listed = data.table.filter(pa.compute.equal(data.table["corpus"], number))["pos"].combine_chunks()
            texts.append(corpus.texts.take(listed.flatten().unique()))
    return held_out_keys(texts)


def _beir_positives(folder: str) -> pa.ChunkedArray:
    from raycurate.data.beir import read_beir

    found = read_beir(folder, "test")
    ids = {name for judged in found.qrels.values() for name, score in judged.items() if score > 0}
    table = found.corpus.filter(pa.compute.is_in(found.corpus["_id"], value_set=pa.array(sorted(ids), pa.string())))
    rows = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
    return pa.chunked_array([pa.array([f"{title} {text}" if title else text for title, text in rows], pa.string())])


class Mining:
    """Mines training data into a folder: what `mine` and `prep` share.

    settings: what is worth keeping of how it was done.
    """

    def __init__(self, options: MineOptions, output: str, staging: str) -> None:
        self.options, self.output, self.staging = options, output, staging
        self.cache = options.cache or storage.join(staging, "cache")
        self.settings: dict[str, Any] = {}
        self.ready: list[Ready] = []

    def write(self, data: TrainingData, name: str, apart: pa.Array, clock: Clock) -> tuple[list[OutputFile], Audit]:
        """Mine and write NAME's files."""
        if not len(data):
            raise InputError("there is no question to mine for", where=name)
        corpora, files = corpus_paths(data, self.output)
        work = storage.join(self.staging, f"vectors-{name}")
        self.ready = list(embedded_corpora(data, self.options, work=work, cache=self.cache))
        clock.lap(f"embed_{name}")
        writer = MinedWriter(self.output, name, corpora, self.options.result_keys())
        teacher = Teacher(self.options.teacher) if self.options.teacher else None
        try:
            files += writer.write(data, self._mined(data, apart, teacher, name))
        finally:
            if teacher is not None:
                teacher.close()
        recalls = [recall for ready in self.ready for recall in ready.recalls]
        if recalls:
            self.settings[f"approximate_recall_{name}"] = round(min(recalls), 4)
        clock.lap(f"mine_{name}")
        return files, writer.audit

    def _mined(
        self, data: TrainingData, apart: pa.Array, teacher: Teacher | None, name: str
    ) -> Iterator[tuple[Corpus, MinedQuestion]]:
        with Progress(f"mine {name}", total=len(data), unit="question") as progress:
            for ready in self.ready:
                for found in mine(data, ready, self.options, apart, teacher):
                    progress.update()
                    yield ready.corpus, found


def mined_file(output: str, name: str = "train") -> str:
    return storage.join(output, f"{name}{MINED}")
