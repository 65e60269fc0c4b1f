"""A test set and systems -> metrics with intervals, comparisons, and the questions that changed.

    find the test set and the systems ; search with each, one after the other ; compare ; write ; fail on drift, if any

What each system answered is kept in the staging as soon as it is known, so a killed run goes on with the next.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.manifest import (
    OutputFile,
    listing_fingerprint,
)
from raycurate.core.observe import get_logger
from raycurate.data.corpora.beir import BeirData, read_beir, require_judgements
from raycurate.encoders.declared import of_the_model
from raycurate.retrieval.collections import locate, name_of
from raycurate.retrieval.results import CHANGES, HITS, PER_QUERY, RESULTS
from raycurate.retrieval.retrieve import Retrieved
from raycurate.stage import Made, Run
from raycurate.stages.eval.compare import CompareOptions, Comparison, compare
from raycurate.stages.eval.config import EvalConfig
from raycurate.stages.eval.systems import Answers, System, found_systems, write_hits

log = get_logger(__name__)


@dataclass(frozen=True)
class EvalInputs:
    """The test set's folder, and the systems: those that are there, and why others are missing."""

    folder: str
    systems: list[System]
    missing: dict[str, str]
    fingerprint: str


def open_inputs(config: EvalConfig) -> EvalInputs:
    """Find the test set and the systems.

    Raises:
        RaycurateError: the test set or a model cannot be used.
    """
    folder = locate(config.input, cache_dir=config.cache_dir)
    systems, missing = found_systems(config)
    names = ("corpus.jsonl", "queries.jsonl", f"qrels/{config.split}.tsv")
    paths = [storage.join(folder, name) for name in names]
    entries = [entry for path in paths if storage.exists(path) for entry in storage.list_files(path)]
    models = {system.name: system.identity for system in systems}
    return EvalInputs(folder, systems, missing, fingerprint([listing_fingerprint(entries), models, sorted(missing)]))


def evaluate(config: EvalConfig, inputs: EvalInputs, run: Run) -> Made:
    """Judge and compare; see the module."""
    folder, clock = inputs.folder, run.clock
    data = require_judgements(read_beir(folder, config.split), folder, config.split)
    clock.lap("read")
    answers = Answers(config, data, run.staging())
    runs = answers.all(inputs.systems)
    clock.lap("search")
    comparison = compare(data, runs, _compare_options(config))
    clock.lap("compare")
    about = _metadata(config, folder, data, runs, inputs.systems)
    files = _write(config, comparison, runs, answers.depth, {**about, "missing": inputs.missing})
    return Made(
        files,
        {
            "systems": len(runs),
            "queries": next(iter(comparison.metrics.values())).queries,
            "documents": data.corpus.num_rows,
            "left_out": len(inputs.missing),
        },
    )


def _compare_options(config: EvalConfig) -> CompareOptions:
    same_as = {name: config.options_of(name).same_as for name in config.dense_names}
    return CompareOptions(
        k_values=config.k_values,
        ignore_identical_ids=config.ignore_identical_ids,
        changes=config.changes,
        seed=config.seed,
        same_as={name: other for name, other in same_as.items() if other is not None},
    )


def _metadata(
    config: EvalConfig, folder: str, data: BeirData, runs: dict[str, Retrieved], systems: list[System]
) -> dict[str, Any]:
    judged = {query: found for query, found in data.qrels.items() if found}
    grades = {score for found in judged.values() for score in found.values() if score > 0}
    models = {system.name: system for system in systems}
    return {
        "collection": {
            "name": name_of(config.input),
            "path": folder,
            "split": config.split,
            "documents": data.corpus.num_rows,
            "queries": len(judged),
            "judgements": sum(map(len, judged.values())),
            "graded": len(grades) > 1,
        },
        "k_values": config.k_values,
        "primary_metric": _compare_options(config).metric,
        "ignore_identical_ids": config.ignore_identical_ids,
        "systems": {name: {**_kind(name, models.get(name)), **run.about} for name, run in runs.items()},
    }


def _kind(name: str, system: System | None) -> dict[str, Any]:
    if system is None:
        return {"kind": "fusion" if "+" in name else "bm25"}
    options = system.options
    return {
        "kind": "served" if system.served else "dense",
        "model": options.model,
        "encoder": of_the_model(options.encoder),
        "dimensions": options.dimensions,
        "quantization": options.quantization,
        "same_as": options.same_as,
    }


def _write(
    config: EvalConfig, comparison: Comparison, runs: dict[str, Retrieved], depth: int, about: dict[str, Any]
) -> list[OutputFile]:
    """All files but the manifest."""
    rows: dict[str, int | None] = {RESULTS: None, CHANGES: len(comparison.changes)}
    root = config.output
    storage.write_text(storage.join(root, RESULTS), json.dumps(comparison.results(**about), indent=2) + "\n")
    storage.write_text(storage.join(root, CHANGES), json.dumps(comparison.changes, indent=2, ensure_ascii=False) + "\n")
    table = comparison.per_query()
    with storage.open_output(storage.join(root, PER_QUERY)) as stream:
        pq.write_table(table, stream, compression="zstd")
    rows[PER_QUERY] = table.num_rows
    for name, found in runs.items():
        path = f"{HITS}/{name}.parquet"
        rows[path] = write_hits(storage.join(root, path), found, depth)
    sizes = {path: storage.list_files(storage.join(root, path))[0].size for path in rows}
    return [OutputFile(path=path, size=sizes[path], rows=count) for path, count in rows.items()]
