"""The k-means stage: embeddings -> centroid partitions.

    fit (actor group) ; Vectors -> Assign -> Clusters (staging) ; partition

The group's places are given back before the stream starts. Centroids are saved as the fit goes, staged rows as
the stream goes: a killed run goes on from both, and the output is whole when its manifest is there.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycurate.core import access, storage
from raycurate.core.cluster import capacity, data_context, ensure_ray, require_ray
from raycurate.core.contract import SCHEMA_KEY, EmbeddingContract
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.finalise import Finalised
from raycurate.core.manifest import (
    Manifest,
    OutputFile,
    StageKey,
    commit,
    one_writer,
    package_versions,
    read_manifest,
    staging_folder,
    state_of,
)
from raycurate.core.observe import Clock, get_logger
from raycurate.core.staging import RejectCounter, StagingSink, committed_ref, is_complete, mark_complete
from raycurate.core.watch import write_staged
from raycurate.kmeans.assignment import CENTROID, COSINE, L2, Assign, VectorsDatasource
from raycurate.kmeans.centroids import CENTROIDS, Centres, Given, given, keep, kept
from raycurate.kmeans.config import ALGORITHM_VERSION, KMeansConfig
from raycurate.kmeans.inputs import Embeddings, open_embeddings
from raycurate.kmeans.partition import PartitionLayout, partition
from raycurate.kmeans.plan import KMeansPlan, make_plan

log = get_logger(__name__)


@dataclass(frozen=True)
class KMeansResult:
    """Finished clusters: where they lie and what their manifest says."""

    output: str
    manifest: Manifest
    skipped: bool

    def centroids(self) -> np.ndarray:
        """Float32 [k, dim], as fitted."""
        return given(self.output)

    def summary(self) -> str:
        """The run in a few lines: rows, clusters and their sizes, inertia, rejects by reason, seconds by part."""
        counts, timings, settings = self.manifest.counts, self.manifest.timings, self.manifest.settings
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.manifest.rejects.items()))
        renamed = counts.get("renamed", 0)
        parts = ", ".join(f"{name} {timings.get(name, 0.0):.1f}" for name in ("read", "fit", "assign", "write"))
        lines = [
            f"rows      {counts['rows']:,} in {counts['clusters']:,} clusters ({counts['empty_clusters']:,} empty), "
            f"largest {counts['largest_cluster']:,}, dimension {counts['dimension']:,}",
            f"rejected  {sum(self.manifest.rejects.values()):,}" + (f"  ({reasons})" if reasons else ""),
            *([f"renamed   {renamed:,}  (their ids were taken; see _renamed/)"] if renamed else []),
            f"inertia   {settings['inertia']:.6g} ({settings['inertia'] / max(counts['rows'], 1):.4f} a row), "
            f"{counts['iterations']:,} iterations",
            *([] if self.skipped else [f"seconds in {parts}; wall {timings['wall']:.1f}"]),
            f"output {self.output}  ({len(self.manifest.files):,} files)",
        ]
        return "\n".join(lines)


def stage_key(config: KMeansConfig, inputs: Embeddings, centroids: Given) -> StageKey:
    """What decides the clusters: the input's listing and the options that affect them; given centroids by content."""
    options = config.result_keys() | centroids.by_content()
    return StageKey(
        stage="kmeans", algorithm_version=ALGORITHM_VERSION, input_fingerprint=inputs.fingerprint, options=options
    )


def plan_run(config: KMeansConfig) -> tuple[Embeddings, KMeansPlan, StageKey]:
    """Everything that is checked before any work; needs a running Ray.

    Raises:
        RaycurateError: input, options or cluster cannot be used.
    """
    inputs, own = _opened(config)
    return inputs, _planned(config, inputs, own), stage_key(config, inputs, own)


def _opened(config: KMeansConfig) -> tuple[Embeddings, Given]:
    _reach(config)
    inputs = open_embeddings(config)
    own = Given.of(config)
    if config.centroids is not None and own.centroids is not None:
        _check_centroids(own.centroids, config.centroids, inputs)
    return inputs, own


def _planned(config: KMeansConfig, inputs: Embeddings, own: Given) -> KMeansPlan:
    plan = make_plan(config, inputs, _clusters(config, inputs, own), own, capacity())
    waits = [report.waits_for_nodes for report in plan.check(capacity()) if report.waits_for_nodes]
    rows = f"{inputs.rows:,} vectors" if inputs.rows is not None else f"{len(inputs.files):,} files"
    log.info("kmeans: %s of dimension %d; %s", rows, inputs.dimension, plan.describe())
    for sentence in waits:
        log.info("kmeans: %s", sentence)
    return plan


def _reach(config: KMeansConfig) -> None:
    """Tell the storage layer how the run's folders are reached, where the options say it."""
    read = [config.input] if isinstance(config.input, str) else [*config.input]
    read += [path for path in (config.centroids, str(config.init)) if path is not None and storage.is_remote(path)]
    access.use(read, config.read_kwargs.storage_options)
    write = [path for path in (config.output, config.cache_path) if path is not None]
    access.use(write, config.write_kwargs.storage_options)


def _check_centroids(centroids: np.ndarray, path: str, inputs: Embeddings) -> None:
    """Centroids and vectors must be of one space: the dimension, and the contract where both have one."""
    if centroids.shape[1] != inputs.dimension:
        raise InputError(
            f"the centroids have {centroids.shape[1]} dimensions, the vectors {inputs.dimension}", where=path
        )
    made = None if path.endswith(".npy") else read_manifest(path)
    if made is not None and made.contract is not None and inputs.contract is not None:
        theirs = EmbeddingContract.model_validate(made.contract)
        _normalised(inputs.contract).require_same(theirs, here="the input", there=path)


def _normalised(contract: EmbeddingContract) -> EmbeddingContract:
    """Of the output: the vectors were scaled to unit length here, whatever the model's habit is."""
    return contract.model_copy(update={"normalize": True})


def _clusters(config: KMeansConfig, inputs: Embeddings, own: Given) -> int:
    if own.count is not None and (config.centroids is not None or config.n_clusters == "auto"):
        return own.count
    if config.n_clusters == "auto":
        if inputs.rows is None:
            raise ConfigError(
                "the rows of JSON Lines are not counted beforehand, so auto has no number to go by",
                where="n_clusters",
                fix="Set n_clusters",
            )
        return max(1, round(math.sqrt(inputs.rows)))
    if inputs.rows is not None and inputs.rows < config.n_clusters:
        raise InputError(
            f"{inputs.rows:,} rows cannot make {config.n_clusters:,} clusters",
            where="n_clusters",
            fix=f"Set n_clusters to {inputs.rows:,} or less",
        )
    return config.n_clusters


def describe_plan(config: KMeansConfig) -> str:
    """What a run would do on the cluster that is connected."""
    inputs, plan, key = plan_run(config)
    lines = [
        f"input    {len(inputs.files):,} files, {inputs.vector_bytes:,} bytes of vectors as float32",
        f"plan     {plan.describe()}",
        *(
            f"operator {op.name}: {op.workers_min} x {op.num_cpus:g} CPU, {op.num_gpus:g} GPU"
            for operators in plan.operators()
            for op in operators
        ),
        f"state    {state(config)}  (key {key.fingerprint()})",
    ]
    return "\n".join(lines)


def state(config: KMeansConfig) -> str:
    """One phrase for `raycurate info`."""
    _reach(config)
    return state_of(
        config.output,
        lambda: stage_key(config, open_embeddings(config), Given.of(config)),
        lambda manifest: f"{manifest.counts['rows']:,} rows in {manifest.counts['clusters']:,} clusters",
    )


def kmeans(input: str | list[str], output: str, **options: Any) -> KMeansResult:
    """Cluster the embeddings in `input` into `output`; needs a running Ray.

    Args:
        input: folder, file or glob of embeddings (Parquet or JSON Lines), or a list of them.
        options: any option of `raycurate kmeans` (`raycurate kmeans --help`).

    Raises:
        RaycurateError: an option, the input or the cluster cannot be used.
    """
    require_ray("rc.kmeans")
    return run(KMeansConfig.parse({**options, "input": input, "output": output}, where="rc.kmeans"))


def run(config: KMeansConfig) -> KMeansResult:
    """Cluster `config.input` into `config.output`; a finished output is left alone, a killed run goes on.

    Raises:
        RaycurateError: the input, an option or the cluster cannot be used; too many rejects.
    """
    inputs, own = _opened(config)
    key = stage_key(config, inputs, own)
    with one_writer(config.output, key, overwrite=config.overwrite) as done:
        if done is None:
            return _cluster(config, inputs, own, key)
    return KMeansResult(config.output, done, skipped=True)


def _cluster(config: KMeansConfig, inputs: Embeddings, own: Given, key: StageKey) -> KMeansResult:
    ensure_ray("kmeans")
    plan = _planned(config, inputs, own)
    staging = staging_folder(config.output, _staging_name(key, plan))
    clock = Clock()
    centres = _centres(plan, inputs, staging, key)
    clock.lap("fit")
    resumed, rows = _assign(plan, inputs, centres, storage.join(staging, "rows"))
    clock.lap("assign")
    layout = _layout(config, inputs, key)
    written = partition(storage.join(staging, "rows"), config.output, layout, len(centres.centroids), known=rows)
    clock.lap("write")
    if not written.rows:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(written.rejects.items()))
        raise InputError(f"no vector could be used ({reasons})", where=str(config.input))
    manifest = _manifest(plan, key, inputs, (centres, written))
    manifest.counts["resumed_rows"] = resumed
    manifest.timings = clock.timings() | {"read": round(centres.read_seconds, 3)}
    manifest.timings["fit"] = max(0.0, manifest.timings["fit"] - manifest.timings["read"])
    manifest.files.append(_write_centroids(config, centres.centroids))
    commit(config.output, manifest)
    return KMeansResult(config.output, manifest, skipped=False)


def _staging_name(key: StageKey, plan: KMeansPlan) -> str:
    """What fits and staged rows have in common; what is done about repeated ids is decided over them."""
    rows = {name: value for name, value in key.options.items() if name != "repeated_ids"}
    return f"{key.model_copy(update={'options': rows}).fingerprint()}-{plan.engine}"


def _centres(plan: KMeansPlan, inputs: Embeddings, staging: str, key: StageKey) -> Centres:
    """The centroids: given, fitted by an earlier attempt or run, or fitted now."""
    from raycurate.kmeans.fitting import fit_centres

    config = plan.config
    if plan.given.centroids is not None:
        return Centres(plan.given.centroids)
    name = f"{_staging_name(key, plan)}.npz"
    cached = storage.join(config.cache_path, name) if config.cache_path else None
    fitted = storage.join(staging, "centroids.npz")
    for place in [fitted, cached]:
        found = kept(place, k=plan.k, dim=inputs.dimension) if place else None
        if found is not None:
            log.info("kmeans: centroids that were fitted before, from %s", place)
            return found
    centres = fit_centres(plan, inputs, staging)
    for place in [fitted, cached]:
        if place:
            keep(place, centres)
    return centres


def _assign(plan: KMeansPlan, inputs: Embeddings, centres: Centres, staging: str) -> tuple[int, int]:
    """Assign every row not yet staged: how many an earlier attempt staged, and how many are there now."""
    import ray
    from ray.data import ActorPoolStrategy

    config = plan.config
    done_keys, rows, rejects = committed_ref(staging)
    if rows:
        log.info("kmeans: going on after %s rows that an earlier attempt assigned", f"{rows:,}")
    counter: Any = None
    if config.max_rejects is not None:
        counter = ray.remote(RejectCounter).options(num_cpus=0).remote(config.max_rejects, rejects)
        ray.get(counter.add.remote(0))
    if is_complete(staging, rows):
        return rows, rows
    source = VectorsDatasource(inputs, config, done_keys if rows else None)
    dataset = ray.data.read_datasource(source, override_num_blocks=source.num_tasks, num_cpus=plan.task_cpus)
    arguments = (ray.put(centres.centroids), config.embedding_field, plan.device)
    options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    if plan.assigners:
        compute = ActorPoolStrategy(min_size=1, max_size=plan.assigners)
        remote = {**plan.config.actors.ray_remote_args(), "num_cpus": plan.task_cpus, "num_gpus": plan.gpus}
        dataset = dataset.map_batches(Assign, fn_constructor_args=arguments, compute=compute, **options, **remote)
    else:
        dataset = dataset.map_batches(Assign(*arguments), num_cpus=plan.task_cpus, **options)
    data_context(dataset)
    sink = StagingSink(staging, counter, name="Clusters", sorted_by=CENTROID)
    write_staged(dataset, sink, label="assign", unit="row", num_cpus=plan.task_cpus, total=inputs.rows)
    mark_complete(staging, rows + sink.rows)
    return rows, rows + sink.rows


def _layout(config: KMeansConfig, inputs: Embeddings, key: StageKey) -> PartitionLayout:
    columns = [config.id_field, config.embedding_field, L2, COSINE, *config.metadata_fields]
    metadata = {SCHEMA_KEY: _normalised(inputs.contract).to_json().encode()} if inputs.contract else {}
    return PartitionLayout(
        f"part-{key.fingerprint()[:8]}", list(dict.fromkeys(columns)), config.id_field, metadata, config.repeated_ids
    )


def _manifest(plan: KMeansPlan, key: StageKey, inputs: Embeddings, done: tuple[Centres, Finalised]) -> Manifest:
    config = plan.config
    centres, written = done
    sizes: dict[str, int] = {}
    for file in written.files:
        if file.path.startswith("centroid="):
            folder = file.path.partition("/")[0]
            sizes[folder] = sizes.get(folder, 0) + (file.rows or 0)
    contract = _normalised(inputs.contract) if inputs.contract else None
    return Manifest(
        key=key,
        inputs=[config.input] if isinstance(config.input, str) else list(config.input),
        files=written.files,
        counts={
            "rows": written.rows,
            "clusters": len(centres.centroids),
            "empty_clusters": len(centres.centroids) - len(sizes),
            "largest_cluster": max(sizes.values()),
            "dimension": inputs.dimension,
            "iterations": centres.iterations,
            "fitted_rows": centres.rows,
            "renamed": written.renamed,
        },
        rejects=written.rejects,
        settings={
            **config.redacted(),
            "plan": plan.describe(),
            "inertia": written.sums["inertia"],
            "first_pass": centres.first_pass,
        },
        contract=contract.model_dump(mode="json") if contract else None,
        versions=package_versions("raycurate", "ray", "torch", "cuml-cu13", "pyarrow"),
    )


def _write_centroids(config: KMeansConfig, centroids: np.ndarray) -> OutputFile:
    buffer = io.BytesIO()
    np.save(buffer, centroids)
    storage.write_bytes(storage.join(config.output, CENTROIDS), buffer.getvalue())
    return OutputFile(path=CENTROIDS, size=buffer.getbuffer().nbytes)
