"""What a folder is, in a few lines: `raycurate info FOLDER`."""

from __future__ import annotations

import json
from collections import Counter

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import STAGING
from raycurate.core.redaction import hide_credentials, redact
from raycurate.report.runs import StageOutput, open_run

_MOST_KINDS = 6


def describe(path: str) -> str:
    """A stage's output, a working folder of several, a model, a test set or documents; with what each holds.

    Raises:
        InputError: nothing is there.
    """
    if not storage.exists(path):
        raise storage.not_there(path)
    place = hide_credentials(storage.normalise(path))
    if not storage.is_dir(path):
        [entry] = storage.list_files(path)
        return f"{place}: a file of {entry.size:,} bytes"
    try:
        outputs = open_run(path).outputs
    except InputError:
        return f"{place}: {_without_manifest(path)}"
    if len(outputs) == 1 and outputs[0].name == ".":
        return "\n".join([f"{place}: the output of {outputs[0].stage}", *_lines(outputs[0])])
    lines = [f"{place}: a working folder with the outputs of {len(outputs)} stages"]
    for output in outputs:
        lines += [f"  {output.name}: the output of {output.stage}", *(f"  {line}" for line in _lines(output))]
    return "\n".join(lines)


def _lines(output: StageOutput) -> list[str]:
    manifest = output.manifest
    rows = [("state", output.problem or "whole"), ("remark", output.remark)]
    if manifest is not None:
        size = sum(f.size for f in manifest.files)
        rows += [
            ("made", manifest.created),
            ("from", ", ".join(redact(manifest.inputs))),
            ("counts", ", ".join(f"{name} {count:,}" for name, count in manifest.counts.items())),
            ("rejects", ", ".join(f"{reason} {count:,}" for reason, count in manifest.rejects.items())),
            ("files", f"{len(manifest.files)}, {size:,} bytes"),
        ]
    return [f"  {name:8}{value}" for name, value in rows if value]


def _without_manifest(path: str) -> str:
    if storage.exists(storage.join(path, STAGING)):
        return "an output whose stage has not ended; the same command again goes on from here"
    names = {storage.normalise(e.path).rpartition("/")[2] for e in storage.list_files(path, recursive=False)}
    if "modules.json" in names or "config.json" in names:
        return f"a model{_kind_of_model(path) if 'config.json' in names else ''}; model={path}"
    if {"corpus.jsonl", "queries.jsonl"} <= names:
        return f"a test set in BEIR's layout; `raycurate eval input={path}`"
    kinds = Counter(_extension(entry.path) for entry in storage.list_files(path))
    if not kinds:
        return "an empty folder"
    shown = ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in kinds.most_common(_MOST_KINDS))
    return f"no stage's output; files: {shown}"


def _kind_of_model(path: str) -> str:
    try:
        kind = json.loads(storage.read_text(storage.join(path, "config.json"))).get("model_type")
    except (ValueError, AttributeError):
        return ", its config.json cannot be read"
    return f" of type {kind}" if kind else ""


def _extension(path: str) -> str:
    name = path.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()}" if "." in name else ""
