"""Clusters -> neighbours and edges -> duplicates -> kept documents.

    (visitors, with probe > 1) ; pairwise ; decide ; documents ; (recall)

Neighbours and edges are the long part and are kept: another eps or decision is decided anew over them, in seconds.
Killed at any point and started again, the stage goes on piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raycurate.clustering.centroids import CENTROIDS
from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.manifest import (
    RENAMED,
    OutputFile,
    StageKey,
    delete_listed,
    delete_manifest,
    missing_files,
    read_manifest,
    staging_folder,
)
from raycurate.core.observe import get_logger
from raycurate.data.documents.documents import LONGEST_TEXT, DocumentsOptions, Listing, list_documents
from raycurate.ray_runtime.capacity import OperatorDemand, asked_gpus
from raycurate.ray_runtime.cluster import capacity, check_plan, remote_task
from raycurate.stage import Made, Run
from raycurate.stages.dedup import recall as recalling
from raycurate.stages.dedup.clusters import (
    Clusters,
    Reader,
    earlier_corpus,
    open_clusters,
    reader_of,
    refuse_repeated_ids,
)
from raycurate.stages.dedup.comparing import PairRun, Resources, compare_all, first_pass, items_of
from raycurate.stages.dedup.config import ALGORITHM_VERSION, DedupConfig
from raycurate.stages.dedup.decide import Rule
from raycurate.stages.dedup.documents import Removal, removed_keys, write_documents
from raycurate.stages.dedup.neighbours import PairOptions
from raycurate.stages.dedup.probe import merge_homes, stage_visitors
from raycurate.stages.dedup.ranking import ranking_columns
from raycurate.stages.dedup.result import decide_all, default_sweep
from raycurate.streams.finalise import Finalised

log = get_logger(__name__)

_ROWS_A_BATCH = 200_000  # of clusters that one task reads for probing or for the recall


@dataclass(frozen=True)
class Inputs:
    """Everything that was checked: the clusters, those of an earlier corpus, the documents and how to read them.

    renamed: files that list the documents that got ids of their own when they were embedded.
    """

    clusters: Clusters
    old: Clusters | None
    old_duplicates: list[str]
    documents: DocumentsOptions | None
    listing: Listing | None
    renamed: list[str]

    @property
    def fingerprint(self) -> str:
        listed = self.listing.fingerprint if self.listing else ""
        return fingerprint([self.clusters.fingerprint, self.old.fingerprint if self.old else "", listed])

    @property
    def pairs_fingerprint(self) -> str:
        return fingerprint([self.clusters.fingerprint, self.old.fingerprint if self.old else ""])


def open_inputs(config: DedupConfig) -> Inputs:
    """List and check what the stage reads.

    Raises:
        InputError: clusters, documents or an earlier corpus that are not there, not whole or do not fit together.
        ContractError: a new batch whose vectors were made in another way than the earlier corpus's.
    """
    names: dict[str, Any] = {
        "id_field": config.id_field,
        "embedding_field": config.embedding_field,
        "columns": ranking_columns(config.which_to_keep),
    }
    clusters = open_clusters(config.input, **names)
    old, old_duplicates = None, list[str]()
    if config.against is not None:
        path, old_duplicates = earlier_corpus(config.against)
        old = open_clusters(path, **names)
        theirs, ours = old.centroids, clusters.centroids
        if theirs is None or ours is None or not np.array_equal(theirs, ours):
            raise InputError(
                f"its centroids are not those of {path}, which the earlier corpus was clustered with",
                where=config.input,
                fix=f"Cluster the new batch with `raycurate kmeans centroids={path}`",
            )
        if old.contract and clusters.contract:
            clusters.contract.require_same(old.contract, here=config.input, there=path)
    if config.probe > 1 and clusters.centroids is None:
        raise InputError(
            f"probe={config.probe} needs the centroids, and there is no file {CENTROIDS}",
            where=config.input,
            fix="Cluster the embeddings with `raycurate kmeans`, or leave probe out",
        )
    documents, renamed = _documents(config)
    listing = list_documents(documents) if documents else None
    return Inputs(clusters, old, old_duplicates, documents, listing, renamed)


def _documents(config: DedupConfig) -> tuple[DocumentsOptions | None, list[str]]:
    """How the documents are read: as the embeddings' manifest says, where it can be found, and as the user says; and
    the files that list which of them got ids of their own there."""
    if config.documents is None:
        return None, []
    values: dict[str, Any] = {}
    renamed: list[str] = []
    clustered = read_manifest(config.input)
    embedded = read_manifest(clustered.inputs[0]) if clustered and len(clustered.inputs) == 1 else None
    if clustered is not None and embedded is not None and embedded.key.stage == "embed":
        listed = [file.path for file in embedded.files if file.path.startswith(f"{RENAMED}/")]
        renamed = [storage.join(clustered.inputs[0], path) for path in listed]
    if embedded is not None and embedded.key.stage == "embed":
        known = (
            DocumentsOptions.model_fields.keys() - DocumentsOptions.operational_keys() - {"input", "metadata_fields"}
        )
        values = {name: value for name, value in embedded.key.options.items() if name in known}
    values |= {"max_chars": LONGEST_TEXT}  # a document that was embedded by its beginning is written whole
    values |= config.document_options | {"input": config.documents}
    return DocumentsOptions.parse(values, where="document_options"), renamed


def pairs_key(config: DedupConfig, inputs: Inputs) -> str:
    """What decides the neighbours and edges."""
    return fingerprint([ALGORITHM_VERSION, inputs.pairs_fingerprint, config.pair_keys()])


def plan_run(config: DedupConfig, inputs: Inputs) -> tuple[Resources, str]:
    """What a task gets, and the device; needs a running Ray.

    Raises:
        RaycurateError: options or cluster cannot be used.
    """
    room = capacity()
    asked = asked_gpus(room, config.device, {"actors.num_gpus": config.actors.num_gpus}, where="dedup")
    automatic = config.device == "cuda" or (config.device == "auto" and room.largest.gpu > 0)
    gpu = automatic if asked is None else asked > 0
    args = config.actors.ray_remote_args()
    cpus = args.pop("num_cpus", 1.0)
    gpus = args.pop("num_gpus", 1.0 if gpu else 0.0)
    resources = Resources(cpus, gpus, args)
    demand = OperatorDemand(
        "Pairwise",
        1,
        cpus,
        num_gpus=gpus,
        resources=config.actors.resources,
        kind="tasks",
        label_selector=config.actors.label_selector,
    )
    report = check_plan([demand], room)
    rows = inputs.clusters.total
    log.info(
        "dedup: %s rows in %s clusters, the largest of %s; %s",
        f"{rows:,}",
        f"{len(inputs.clusters.rows):,}",
        f"{int(inputs.clusters.rows.max()):,}",
        "cuda" if gpu else "cpu",
    )
    if report.waits_for_nodes:
        log.info("dedup: %s", report.waits_for_nodes)
    return resources, "cuda" if gpu else "cpu"


def describe(config: DedupConfig, inputs: Inputs) -> list[str]:
    """What a run would do on the cluster that is connected."""
    resources, device = plan_run(config, inputs)
    rows = inputs.clusters.rows.astype(np.float64)
    return [
        f"input    {inputs.clusters.total:,} rows, {len(rows):,} clusters, dimension {inputs.clusters.dimension}",
        f"plan     {(rows * (rows - 1) / 2).sum() * config.probe**2:,.0f} pairs at most to compare on {device}",
        f"operator Pairwise: {resources.cpus:g} CPU, {resources.gpus:g} GPU a task",
    ]


def deduplicate(config: DedupConfig, inputs: Inputs, run: Run) -> Made:
    """Find, decide and remove; see the module."""
    resources, device = plan_run(config, inputs)
    key, clock = run.key, run.clock
    refuse_repeated_ids(inputs.clusters, config.id_field)
    precision = first_pass(resources, device)
    pairs = _pairs(config, inputs, resources, device)
    clock.lap("pairwise")
    # Without an eps nothing is removed: what each of the usual ones would remove is counted.
    rule = Rule(1 - config.score_floor if config.eps is None else config.eps, config.decision)
    name = f"part-{key.fingerprint()[:8]}" if config.eps is not None else None
    counted = decide_all(config.output, pairs, rule, default_sweep(config.score_floor), probe=config.probe, write=name)
    clock.lap("decide")
    settings: dict[str, Any] = {
        "sweep": {f"{eps:g}": removed for eps, removed in (counted.sweep or {}).items()},
        "pairs_key": pairs_key(config, inputs),
        "first_pass": precision,
    }
    duplicates = counted.files or []
    documents = _kept_documents(config, inputs, key, duplicates)
    if documents is not None:
        clock.lap("documents")
    if config.recall_sample:
        settings["recall"] = vars(_recall(config, inputs, pairs, rule))
        clock.lap("recall")
    counts = {
        "rows": counted.rows,
        "removed": counted.removed if config.eps is not None else 0,
        "clusters": len(inputs.clusters.rows),
        "edges": sum(file.rows or 0 for file in pairs if file.path.startswith("edges/")),
    }
    if documents is not None:
        counts["documents"] = documents.rows
    contract = inputs.clusters.contract
    return Made(
        [*pairs, *duplicates, *(documents.files if documents else [])],
        counts,
        documents.rejects if documents else {},
        settings,
        contract=contract.model_dump(mode="json") if contract else None,
    )


def _kept_documents(
    config: DedupConfig, inputs: Inputs, key: StageKey, duplicates: list[OutputFile]
) -> Finalised | None:
    """`documents/`: what is left of the documents; None when they were not given. Paths are the output's."""
    if inputs.documents is None or inputs.listing is None:
        return None
    paths = [storage.join(config.output, file.path) for file in duplicates]
    removal = Removal(paths, removed_keys(paths), inputs.renamed)
    staging = staging_folder(config.output, f"kept-{key.fingerprint()}")
    folder, name = storage.join(config.output, "documents"), f"part-{key.fingerprint()[:8]}"
    written = write_documents(inputs.documents, inputs.listing, removal, folder, staging, name=name)
    written.files = [file.model_copy(update={"path": f"documents/{file.path}"}) for file in written.files]
    return written


def _pairs(config: DedupConfig, inputs: Inputs, resources: Resources, device: str) -> list[OutputFile]:
    """The files of neighbours and edges: an earlier run's, if they are of the same pairs, else made now."""
    before = read_manifest(config.output)
    key = pairs_key(config, inputs)
    if before is not None:
        kept = [file for file in before.files if file.path.startswith(("neighbors/", "edges/"))]
        if before.settings.get("pairs_key") == key and not missing_files(config.output, before):
            log.info("dedup: neighbours and edges are there already; deciding anew")
            return kept
        # The names of these files are fixed: from here on the old output is no longer whole.
        delete_manifest(config.output)
        delete_listed(config.output, before.files)
    staging = staging_folder(config.output, f"pairs-{key}")
    reader = _reader(config, inputs)
    options = PairOptions(config.which_to_keep, config.random_state, config.score_floor, device, config.tile_rows)
    rows = inputs.clusters.rows + (inputs.old.rows if inputs.old else 0)
    probe = min(config.probe, len(rows))
    if probe == 1:
        items = items_of(rows, config.tile_rows, skip=inputs.clusters.rows == 0)
        return compare_all(PairRun(reader, options, config.output, staging, resources), items)
    reader, visiting = _visitors(reader, inputs, probe, storage.join(staging, "visitors"))
    items = items_of(rows + visiting, config.tile_rows)
    partial = storage.join(staging, "partial")
    found = compare_all(PairRun(reader, replace(options, partial=True), partial, staging, resources), items)
    return _merge(found, partial, config.output, inputs.clusters.rows)


def _reader(config: DedupConfig, inputs: Inputs) -> Reader:
    fields = (config.id_field, config.embedding_field, config.text_field)
    reader = reader_of(inputs.clusters, which_to_keep=config.which_to_keep, fields=fields, old=inputs.old)
    return reader if inputs.old is None else replace(reader, dropped=removed_keys(inputs.old_duplicates))


def _batches(rows_K: np.ndarray) -> list[list[int]]:
    """Clusters that have rows, several together up to _ROWS_A_BATCH."""
    batches: list[list[int]] = []
    size = _ROWS_A_BATCH
    for k, rows in enumerate(rows_K.tolist()):
        if not rows:
            continue
        if size >= _ROWS_A_BATCH:
            batches.append([])
            size = 0
        batches[-1].append(k)
        size += rows
    return batches


def _visitors(reader: Reader, inputs: Inputs, probe: int, folder: str) -> tuple[Reader, np.ndarray]:
    """Stage every row's visits; the reader that sees them, and how many each cluster has."""
    import ray

    rows = inputs.clusters.rows + (inputs.old.rows if inputs.old else 0)
    task = remote_task(stage_visitors, name="Visitors", num_cpus=0.5)
    centroids = ray.put(inputs.clusters.centroids)
    shared = ray.put(reader)
    counted = [
        task.remote(shared, batch, centroids, probe, storage.join(folder, f"part-{number:05d}.parquet"))
        for number, batch in enumerate(_batches(rows))
    ]
    return replace(reader, visitors=folder), np.sum(ray.get(counted), axis=0)


def _merge(found: list[OutputFile], partial: str, output: str, rows_K: np.ndarray) -> list[OutputFile]:
    import ray

    names = [f.path.removeprefix("edges/").removesuffix(".parquet") for f in found if f.path.startswith("edges/")]
    task = remote_task(merge_homes, name="MergeHomes", num_cpus=0.5)
    parts = ray.get([task.remote(partial, names, homes, output) for homes in _batches(rows_K)])
    return [file for part in parts for file in part]


def _recall(config: DedupConfig, inputs: Inputs, pairs: list[OutputFile], rule: Rule) -> recalling.Recall:
    fields = (config.id_field, config.embedding_field, config.text_field)
    reader = replace(reader_of(inputs.clusters, which_to_keep=[], fields=fields), text_field=None)
    names = [f.path.removeprefix("edges/").removesuffix(".parquet") for f in pairs if f.path.startswith("edges/")]
    batches = _batches(inputs.clusters.rows)
    sample = config.recall_sample
    return recalling.measure(reader, batches, sample=sample, output=config.output, names=names, rule=rule)
