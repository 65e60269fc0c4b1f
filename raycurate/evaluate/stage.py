"""The eval stage: a test set and systems -> metrics with intervals, comparisons, and the questions that changed.

    find the test set and the systems ; search with each, one after the other ; compare ; write ; fail on drift, if any

What each system answered is kept in the staging as soon as it is known, so a killed run goes on with the next.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.cluster import ensure_ray, require_ray
from raycurate.core.config import fingerprint
from raycurate.core.errors import RaycurateError
from raycurate.core.manifest import (
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
from raycurate.core.observe import Clock, get_logger
from raycurate.data.beir import BeirData, read_beir, require_judgements
from raycurate.encoders.declared import of_the_model
from raycurate.evaluate.collections import locate, name_of
from raycurate.evaluate.compare import CompareOptions, Comparison, compare
from raycurate.evaluate.config import ALGORITHM_VERSION, EvalConfig
from raycurate.evaluate.result import CHANGES, HITS, PER_QUERY, RESULTS, EvalResult, drift_lines
from raycurate.evaluate.retrieve import Retrieved
from raycurate.evaluate.systems import Answers, System, found_systems, write_hits

log = get_logger(__name__)


class DriftError(RaycurateError):
    """A system does not reproduce the one that it must be the same as."""


def stage_key(config: EvalConfig) -> StageKey:
    """What decides the result: the test set's files, the models, the options that affect it."""
    folder = locate(config.input, cache_dir=config.cache_dir)
    systems, missing = found_systems(config)
    return _key(config, folder, systems, missing)


def _key(config: EvalConfig, folder: str, systems: list[System], missing: dict[str, str]) -> StageKey:
    names = ("corpus.jsonl", "queries.jsonl", f"qrels/{config.split}.tsv")
    paths = [storage.join(folder, name) for name in names]
    entries = [entry for path in paths if storage.exists(path) for entry in storage.list_files(path)]
    models = {system.name: system.identity for system in systems}
    return StageKey(
        stage="eval",
        algorithm_version=ALGORITHM_VERSION,
        input_fingerprint=fingerprint([listing_fingerprint(entries), models, sorted(missing)]),
        options=config.result_keys(),
    )


def state(config: EvalConfig) -> str:
    """One phrase for `raycurate info`."""
    return state_of(
        config.output,
        lambda: stage_key(config),
        lambda manifest: f"{manifest.counts['systems']} systems on {manifest.counts['queries']:,} questions",
    )


def evaluate(input: str, output: str, **options: Any) -> EvalResult:
    """Judge and compare systems on a test set; needs a running Ray.

    Args:
        input: the test set, see `raycurate.evaluate.collections`.
        options: any option of `raycurate eval` (`raycurate eval --help`).

    Returns:
        The finished evaluation: `.metric("finetuned", "NDCG@10")`, `.comparison()`, `.per_query`, `.changes`.

    Raises:
        DriftError: a system differs from the one it must reproduce; all is written before.
        RaycurateError: an option, the test set or a model cannot be used.
    """
    require_ray("rc.evaluate")
    return run(EvalConfig.parse({**options, "input": input, "output": output}, where="rc.evaluate"))


def run(config: EvalConfig) -> EvalResult:
    """Evaluate into `config.output`. A finished output is left alone, unless a server is among the systems, which may
    answer otherwise than it did; a killed run goes on.

    Raises:
        DriftError: see `evaluate`.
        RaycurateError: the test set, a model or an option cannot be used.
    """
    folder = locate(config.input, cache_dir=config.cache_dir)
    systems, missing = found_systems(config)
    key = _key(config, folder, systems, missing)
    served = any(system.served for system in systems)
    with one_writer(config.output, key, overwrite=config.overwrite, again=served) as done:
        if done is None:
            return _evaluate(config, folder, key, systems, missing)
    return _checked(EvalResult(config.output, done, skipped=True), config)


def _evaluate(
    config: EvalConfig, folder: str, key: StageKey, systems: list[System], missing: dict[str, str]
) -> EvalResult:
    ensure_ray("eval")
    clock = Clock()
    staged = staging_folder(config.output, f"eval-{key.fingerprint()}")
    storage.make_dir(staged)
    data = require_judgements(read_beir(folder, config.split), folder, config.split)
    clock.lap("read")
    answers = Answers(config, data, staged)
    runs = answers.all(systems)
    clock.lap("search")
    comparison = compare(data, runs, _compare_options(config))
    clock.lap("compare")
    about = _metadata(config, folder, data, runs, systems)
    files = _write(config, comparison, runs, answers.depth, {**about, "missing": missing})
    manifest = Manifest(
        key=key,
        inputs=[config.input],
        files=files,
        counts={
            "systems": len(runs),
            "queries": next(iter(comparison.metrics.values())).queries,
            "documents": data.corpus.num_rows,
            "left_out": len(missing),
        },
        timings=clock.timings(),
        settings=config.redacted(),
        versions=package_versions("raycurate", "ray", "torch", "transformers", "pytrec-eval-terrier"),
    )
    commit(config.output, manifest)
    return _checked(EvalResult(config.output, manifest), config)


def _compare_options(config: EvalConfig) -> CompareOptions:
    same_as = {name: config.options_of(name).same_as for name in config.dense_names}
    return CompareOptions(
        k_values=config.k_values,
        ignore_identical_ids=config.ignore_identical_ids,
        changes=config.changes,
        seed=config.seed,
        same_as={name: other for name, other in same_as.items() if other is not None},
    )


def _checked(result: EvalResult, config: EvalConfig) -> EvalResult:
    """The result, unless a system has drifted and that is a failure."""
    if config.fail_on_drift and result.drifted:
        raise DriftError(
            "; ".join(drift_lines(result.metadata["drift"])),
            where=storage.join(result.output, RESULTS),
            fix="Compare precision, max_length, prompts and pooling of the two; fail_on_drift=false only reports it",
        )
    return result


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
