"""Mined training data -> one positive a row."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import (
    require_whole,
)
from raycurate.data.training.training import write_corpus_id_json
from raycurate.pairs.config import UnrollConfig
from raycurate.pairs.mined_files import MINED, output_file, relative_path, unrolled
from raycurate.stage import Made, Run


def files_of(config: UnrollConfig) -> list[str]:
    """The mined files that the input names."""
    if not storage.exists(config.input):
        raise InputError("there is no such file or folder", where=config.input)
    if not storage.is_dir(config.input):
        return [config.input]
    found = [file.path for file in require_whole(config.input).files if file.path.endswith(MINED)]
    if not found:
        raise InputError(f"it holds no *{MINED}", where=config.input, fix="Give the output of `raycurate mine`")
    return [storage.join(config.input, path) for path in found]


def unroll(config: UnrollConfig, paths: list[str], run: Run) -> Made:
    """Write the unrolled form of each mined file.

    Raises:
        InputError: a file that is no corpus-ID JSON, or unrolled ids that another question has.
    """
    run.staging()
    files, counts = [], Counter[str]()
    for path in paths:
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
    return Made(files, dict(counts))


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
