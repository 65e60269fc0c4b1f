"""Embeddings -> centroid partitions.

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

from raycurate.clustering.assignment import CENTROID, COSINE, L2, Assign, VectorsDatasource
from raycurate.clustering.centroids import CENTROIDS, FittedCentroids, GivenCentroids, load_fit, save_fit
from raycurate.clustering.inputs import Embeddings, open_embeddings
from raycurate.core import access, storage
from raycurate.core.errors import ConfigError, InputError
from raycurate.core.manifest import (
    OutputFile,
    StageKey,
    read_manifest,
)
from raycurate.core.observe import get_logger
from raycurate.models.contract import SCHEMA_KEY, EmbeddingContract
from raycurate.ray_runtime.cluster import capacity, data_context
from raycurate.stage import Made, Run
from raycurate.stages.kmeans.config import KMeansConfig
from raycurate.stages.kmeans.partition import PartitionLayout, partition
from raycurate.stages.kmeans.plan import KMeansPlan, make_plan
from raycurate.streams.finalise import Finalised
from raycurate.streams.staging import RejectCounter, StagingSink, committed_ref, is_complete, mark_complete
from raycurate.streams.watch import write_staged

log = get_logger(__name__)


@dataclass(frozen=True)
class KMeansInputs:
    """The embeddings, and the centroids that were given, if any were."""

    embeddings: Embeddings
    given: GivenCentroids

    @property
    def fingerprint(self) -> str:
        return self.embeddings.fingerprint


def open_inputs(config: KMeansConfig) -> KMeansInputs:
    """List and check the embeddings and given centroids.

    Raises:
        RaycurateError: input or options cannot be used.
    """
    _reach(config)
    inputs = open_embeddings(config)
    own = GivenCentroids.of(config)
    if config.centroids is not None and own.centroids is not None:
        _check_centroids(own.centroids, config.centroids, inputs)
    return KMeansInputs(inputs, own)


def plan_run(config: KMeansConfig, opened: KMeansInputs) -> KMeansPlan:
    """How the run would be laid out; needs a running Ray.

    Raises:
        RaycurateError: options or cluster cannot be used.
    """
    inputs, own = opened.embeddings, opened.given
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


def _clusters(config: KMeansConfig, inputs: Embeddings, own: GivenCentroids) -> int:
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


def describe(plan: KMeansPlan, inputs: Embeddings) -> list[str]:
    """What a run would do on the cluster that is connected."""
    return [
        f"input    {len(inputs.files):,} files, {inputs.vector_bytes:,} bytes of vectors as float32",
        f"plan     {plan.describe()}",
        *(
            f"operator {op.name}: {op.workers_min} x {op.num_cpus:g} CPU, {op.num_gpus:g} GPU"
            for operators in plan.operators()
            for op in operators
        ),
    ]


def cluster(config: KMeansConfig, opened: KMeansInputs, run: Run) -> Made:
    """Cluster the embeddings; see the module."""
    inputs, key, clock = opened.embeddings, run.key, run.clock
    plan = plan_run(config, opened)
    staging = run.staging(_staging_name(key, plan))
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
    made = _made(plan, inputs, centres, written)
    made.counts["resumed_rows"] = resumed
    read = round(centres.read_seconds, 3)
    made.timings = {"read": read, "fit": max(0.0, clock.timings()["fit"] - read)}
    made.files.append(_write_centroids(config, centres.centroids))
    return made


def _staging_name(key: StageKey, plan: KMeansPlan) -> str:
    """What fits and staged rows have in common; what is done about repeated ids is decided over them."""
    rows = {name: value for name, value in key.options.items() if name != "repeated_ids"}
    return f"{key.model_copy(update={'options': rows}).fingerprint()}-{plan.config.engine}"


def _centres(plan: KMeansPlan, inputs: Embeddings, staging: str, key: StageKey) -> FittedCentroids:
    """The centroids: given, fitted by an earlier attempt or run, or fitted now."""
    from raycurate.stages.kmeans.fitting import fit_centres

    config = plan.config
    if plan.given.centroids is not None:
        return FittedCentroids(plan.given.centroids)
    name = f"{_staging_name(key, plan)}.npz"
    cached = storage.join(config.cache_path, name) if config.cache_path else None
    fitted = storage.join(staging, "centroids.npz")
    for place in [fitted, cached]:
        found = load_fit(place, k=config.k, dim=inputs.dimension) if place else None
        if found is not None:
            log.info("kmeans: centroids that were fitted before, from %s", place)
            return found
    centres = fit_centres(plan, inputs, staging)
    for place in [fitted, cached]:
        if place:
            save_fit(place, centres)
    return centres


def _assign(plan: KMeansPlan, inputs: Embeddings, centres: FittedCentroids, staging: str) -> tuple[int, int]:
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


def _made(plan: KMeansPlan, inputs: Embeddings, centres: FittedCentroids, written: Finalised) -> Made:
    sizes: dict[str, int] = {}
    for file in written.files:
        if file.path.startswith("centroid="):
            folder = file.path.partition("/")[0]
            sizes[folder] = sizes.get(folder, 0) + (file.rows or 0)
    contract = _normalised(inputs.contract) if inputs.contract else None
    return Made(
        written.files,
        {
            "rows": written.rows,
            "clusters": len(centres.centroids),
            "empty_clusters": len(centres.centroids) - len(sizes),
            "largest_cluster": max(sizes.values()),
            "dimension": inputs.dimension,
            "iterations": centres.iterations,
            "fitted_rows": centres.rows,
            "renamed": written.renamed,
        },
        written.rejects,
        {"plan": plan.describe(), "inertia": written.sums["inertia"], "first_pass": centres.first_pass},
        contract=contract.model_dump(mode="json") if contract else None,
    )


def _write_centroids(config: KMeansConfig, centroids: np.ndarray) -> OutputFile:
    buffer = io.BytesIO()
    np.save(buffer, centroids)
    storage.write_bytes(storage.join(config.output, CENTROIDS), buffer.getvalue())
    return OutputFile(path=CENTROIDS, size=buffer.getbuffer().nbytes)
