"""The unroll stage: mined training data -> one positive a row."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import (
    Manifest,
    StageKey,
    commit,
    one_writer,
    package_versions,
    require_whole,
    staging_folder,
    state_of,
)
from raycurate.data.training import write_corpus_id_json
from raycurate.prep.config import ALGORITHM_VERSION, UnrollConfig
from raycurate.prep.mine_stage import inputs_fingerprint
from raycurate.prep.mined_files import MINED, output_file, relative_path, unrolled


@dataclass(frozen=True)
class UnrollResult:
    """Where the unrolled data lie."""

    output: str
    manifest: Manifest
    skipped: bool = False

    def summary(self) -> str:
        counts = self.manifest.counts
        return f"unrolled {counts['questions']:,} questions to {counts['rows']:,} rows in {self.output}"


def _files(config: UnrollConfig) -> list[str]:
    """The mined files that the input names."""
    if not storage.exists(config.input):
        raise InputError("there is no such file or folder", where=config.input)
    if not storage.is_dir(config.input):
        return [config.input]
    found = [file.path for file in require_whole(config.input).files if file.path.endswith(MINED)]
    if not found:
        raise InputError(f"it holds no *{MINED}", where=config.input, fix="Give the output of `raycurate mine`")
    return [storage.join(config.input, path) for path in found]


def stage_key(config: UnrollConfig) -> StageKey:
    return StageKey(
        stage="unroll",
        algorithm_version=ALGORITHM_VERSION,
        input_fingerprint=inputs_fingerprint(_files(config)),
        options=config.result_keys(),
    )


def state(config: UnrollConfig) -> str:
    """One phrase for `raycurate info`."""
    return state_of(config.output, lambda: stage_key(config), lambda manifest: f"{manifest.counts['rows']:,} rows")


def run(config: UnrollConfig) -> UnrollResult:
    """Write the unrolled form of each mined file into `config.output`.

    Raises:
        InputError: no such file, one that is no corpus-ID JSON, or unrolled ids that another question has.
    """
    key = stage_key(config)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        return UnrollResult(config.output, done, skipped=True) if done is not None else _unroll(config, key)


def _unroll(config: UnrollConfig, key: StageKey) -> UnrollResult:
    storage.make_dir(staging_folder(config.output, f"unroll-{key.fingerprint()}"))
    files, counts = [], Counter[str]()
    for path in _files(config):
        value = _corpus_id_json(path)
        name = os.path.basename(path).removesuffix(".json") + "_unrolled.json"
        corpora = value["corpus"] if isinstance(value["corpus"], list) else [value["corpus"]]
        moved = [{"path": _moved(corpus["path"], path, config.output)} for corpus in corpora]
        rows = list(unrolled(value["data"]))
        _refuse_repeats(rows, path)
        written = storage.join(config.output, name)
        count = write_corpus_id_json(written, moved[0] if len(moved) == 1 else moved, rows)
        files.append(output_file(config.output, name, rows=count))
        counts.update(questions=len(value["data"]), rows=count)
    manifest = Manifest(
        key=key,
        inputs=[config.input],
        files=files,
        counts=dict(counts),
        settings=config.redacted(),
        versions=package_versions("raycurate"),
    )
    commit(config.output, manifest)
    return UnrollResult(config.output, manifest)


def _corpus_id_json(path: str) -> dict[str, Any]:
    try:
        value = json.loads(storage.read_text(path))
    except ValueError as error:
        raise InputError(f"it is not JSON ({error})", where=path) from error
    if not isinstance(value, dict) or not {"corpus", "data"} <= value.keys():
        raise InputError("it has no `corpus` and `data`", where=path, fix="Give a corpus-ID JSON file")
    return value


def _moved(corpus: str, json_path: str, output: str) -> str:
    """A corpus's path, which was relative to one file, as a file in `output` names it."""
    absolute = storage.is_remote(corpus) or os.path.isabs(corpus)
    full = corpus if absolute else storage.join(os.path.dirname(json_path) or ".", corpus)
    return relative_path(full, output)


def _refuse_repeats(rows: list[dict[str, Any]], where: str) -> None:
    repeated = [name for name, count in Counter(row["question_id"] for row in rows).items() if count > 1]
    if repeated:
        raise InputError(
            f"{len(repeated)} ids would be there twice when unrolled, first {repeated[0]}",
            where=where,
            fix="Give these questions other ids",
        )
