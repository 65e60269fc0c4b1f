"""The convert stage: pairs -> training data, validation data, a corpus and a BEIR test set."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from raycurate.core import storage
from raycurate.core.manifest import (
    REJECTS,
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
from raycurate.core.staging import TooManyRejectsError
from raycurate.data.sdg import Reject
from raycurate.prep.config import ALGORITHM_VERSION, ConvertConfig
from raycurate.prep.convert import Converted, convert
from raycurate.prep.mine_stage import inputs_fingerprint
from raycurate.prep.mined_files import output_file

log = get_logger(__name__)


@dataclass(frozen=True)
class ConvertResult:
    """Where the training data lie and what their manifest says."""

    output: str
    manifest: Manifest
    skipped: bool = False

    def summary(self) -> str:
        """Documents, pairs, splits, what was left out and why, and what a random split leaks."""
        return "\n".join([*self.manifest.settings["summary"], f"output {self.output}"])


def conversion_fingerprint(config: ConvertConfig) -> str:
    """Fingerprint of the files that the conversion reads."""
    paths = [config.input] if isinstance(config.input, str) else list(config.input)
    return inputs_fingerprint([*paths, *([config.groups] if config.groups else [])])


def stage_key(config: ConvertConfig) -> StageKey:
    return StageKey(
        stage="convert",
        algorithm_version=ALGORITHM_VERSION,
        input_fingerprint=conversion_fingerprint(config),
        options=config.result_keys(),
    )


def state(config: ConvertConfig) -> str:
    """One phrase for `raycurate info`."""
    return state_of(config.output, lambda: stage_key(config), describe)


def describe(manifest: Manifest) -> str:
    return ", ".join(f"{manifest.counts.get(f'{split}_questions', 0):,} {split}" for split in ("train", "val", "test"))


def run(config: ConvertConfig) -> ConvertResult:
    """Convert `config.input` into `config.output`; a finished output is left alone.

    Raises:
        RaycurateError: the input or an option cannot be used, or nothing to train on is left.
    """
    key = stage_key(config)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        return ConvertResult(config.output, done, skipped=True) if done is not None else _convert(config, key)


def _convert(config: ConvertConfig, key: StageKey) -> ConvertResult:
    clock = Clock()
    storage.make_dir(staging_folder(config.output, f"convert-{key.fingerprint()}"))
    converted, files, rejects = converted_files(config, config.output, key)
    clock.lap("convert")
    manifest = Manifest(
        key=key,
        inputs=[config.input] if isinstance(config.input, str) else list(config.input),
        files=files,
        counts=counts_of(converted),
        rejects=rejects,
        timings=clock.timings(),
        settings={**config.redacted(), "summary": converted.summary},
        versions=package_versions("raycurate", "pyarrow"),
    )
    commit(config.output, manifest)
    return ConvertResult(config.output, manifest)


def counts_of(converted: Converted) -> dict[str, int]:
    """What a manifest counts of a conversion."""
    questions = {f"{split}_questions": count for split, count in converted.queries.items()}
    left_out = {f"left_out_{reason}": count for reason, count in converted.left_out.items()}
    return {**converted.counts, "corpus_documents": converted.documents, **questions, **left_out}


def converted_files(
    config: ConvertConfig, output: str, key: StageKey
) -> tuple[Converted, list[OutputFile], dict[str, int]]:
    """Convert into `output`: what came of it, its files (rejects too), and rejects by reason.

    Raises:
        TooManyRejectsError: more than `max_rejects`.
    """
    converted = convert(config, output)
    files, rejects = list(converted.files), list(converted.rejects)
    if config.max_rejects is not None and len(rejects) > config.max_rejects:
        raise TooManyRejectsError(
            f"{len(rejects)} records were rejected, max_rejects is {config.max_rejects}; the first: {rejects[0]}",
            where="max_rejects",
            fix="Mend the input, or raise max_rejects",
        )
    if rejects:
        name = f"{REJECTS}/part-{key.fingerprint()[:8]}.jsonl"
        storage.write_text(storage.join(output, name), "".join(_line(reject) for reject in rejects))
        files.append(output_file(output, name, rows=len(rejects)))
    return converted, files, dict(Counter(reject.reason for reject in rejects))


def _line(reject: Reject) -> str:
    return json.dumps(asdict(reject), ensure_ascii=False) + "\n"
