"""The clusters as deduplication reads them: which files, how many rows, and their rows in a fixed order.

A row is compared in its own cluster; with `probe` > 1 also, as a visitor, in the next nearest ones (probe.py); and
with `against` the kept rows of an earlier corpus are there too, marked `_old`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.clustering.assignment import fixed_size_lists
from raycurate.clustering.centroids import CENTROIDS, centroids_file, load_centroids
from raycurate.clustering.inputs import contract_of, dimension_of, files_of, id_type_of
from raycurate.clustering.shards import one_array, read_footers
from raycurate.clustering.vectors import unit_vectors
from raycurate.core import storage
from raycurate.core.errors import InputError, nearest
from raycurate.core.manifest import listing_fingerprint, read_manifest
from raycurate.core.storage import FileEntry
from raycurate.data.documents.ids import common_id_type, id_strings
from raycurate.models.contract import EmbeddingContract
from raycurate.ray_runtime.cluster import remote_task
from raycurate.stages.dedup.ranking import OLD, hashed_ids, ranking_columns

HOME = "_home"
VISITED = "_visited"
BATCH_ROWS = 16384
_NAMED = 5  # ids shown in an error
_FOLDER = re.compile(r"/centroid=(\d+)/[^/]+\.parquet$")


@dataclass(frozen=True)
class Clusters:
    """A clustered corpus. files: by centroid. rows: by centroid, int64 [k].

    centroids: [k, dim], None where no file has them. id_type: what the ids are, integers or strings. foreign: whether
    another tool made it, so that vectors may be spelled in any way and be of any length.
    """

    path: str
    files: dict[int, list[str]]
    rows: np.ndarray
    dimension: int
    centroids: np.ndarray | None
    id_type: pa.DataType
    foreign: bool
    columns: list[str]
    contract: EmbeddingContract | None
    fingerprint: str

    @property
    def total(self) -> int:
        return int(self.rows.sum())


def open_clusters(path: str, *, id_field: str, embedding_field: str, columns: list[str]) -> Clusters:
    """List and check the output of a k-means, ours or one with the same layout.

    Raises:
        InputError: no such folder, not whole, no clusters in it, or a column that is missing.
    """
    found: dict[int, list[FileEntry]] = {}
    for entry in files_of(path):
        match = _FOLDER.search(entry.path)
        if match:
            found.setdefault(int(match[1]), []).append(entry)
    if not found:
        raise InputError(
            "there are no centroid=K folders with Parquet files",
            where=path,
            fix="Give the output of `raycurate kmeans`",
        )
    centroids = load_centroids(path) if storage.exists(centroids_file(path)) else None
    entries = [entry for k in sorted(found) for entry in found[k]]
    footers = read_footers(entries, [id_field, embedding_field])
    manifest = read_manifest(path)
    foreign = manifest is None or manifest.key.stage != "kmeans"
    for footer in footers:
        missing = next((name for name in columns if name not in footer.schema.names), None)
        if missing is not None:
            close = nearest(missing, footer.schema.names)
            raise InputError(
                f"there is no column '{missing}' to rank by; the columns are {', '.join(footer.schema.names)}",
                where=footer.path,
                fix=f"Did you mean '{close}'?" if close else "Pass it through kmeans with metadata_fields",
            )
    sizes = {footer.path: footer.metadata.num_rows for footer in footers}
    rows = np.zeros(len(centroids) if centroids is not None else max(found) + 1, np.int64)
    for k, files in found.items():
        if k >= len(rows):
            raise InputError(f"centroid={k} is there, but {CENTROIDS} has {len(rows)} rows", where=path)
        rows[k] = sum(sizes[file.path] for file in files)
    return Clusters(
        path,
        {k: [file.path for file in files] for k, files in found.items()},
        rows,
        dimension_of(footers, embedding_field, where=path) if centroids is None else centroids.shape[1],
        centroids,
        id_type_of(footers, id_field),
        foreign,
        footers[0].schema.names,
        contract_of(footers),
        listing_fingerprint(entries),
    )


@dataclass(frozen=True)
class Reader:
    """How the rows of a cluster are read; what a task needs of it, small enough to send.

    id_type: of all ids. dimension: of vectors that are brought to unit length here; None where the k-means stage did.
    visitors: folder of staged visitors, or None. old: the clusters of an earlier corpus, and `dropped` the sorted
    hashes of the ids that were removed from it.
    """

    clusters: dict[int, list[str]]
    id_field: str
    embedding_field: str
    ranking: list[str]
    text_field: str | None
    id_type: pa.DataType
    dimension: int | None = None
    visitors: str | None = None
    old: dict[int, list[str]] = field(default_factory=dict)
    dropped: Any = None

    def batches(self, k: int, *, vectors: bool) -> Iterator[pa.Table]:
        """The rows of cluster k: id, ranking columns, `_home`, `_old`, text (if copies go by it), and the vectors.

        The order is the same at every call.
        """
        columns = [self.id_field, *self.ranking]
        if self.text_field is not None:
            columns.append(self.text_field)
        if vectors:
            columns.append(self.embedding_field)
        for files, old in ((self.old.get(k, []), True), (self.clusters.get(k, []), False)):
            for path in files:
                filesystem, inner = storage.filesystem(path)
                with filesystem.open_input_file(inner) as source:
                    for batch in pq.ParquetFile(source).iter_batches(BATCH_ROWS, columns=columns):
                        table = _marked(self._uniform(pa.Table.from_batches([batch]), path), k, old=old)
                        yield self._kept(table) if old else table
        if self.visitors is not None:
            wanted = [*columns, HOME, OLD]
            for entry in storage.list_files(self.visitors):
                filesystem, inner = storage.filesystem(entry.path)
                filters = [(VISITED, "=", k)]
                table = pq.read_table(inner, filesystem=filesystem, columns=wanted, filters=filters, partitioning=None)
                if table.num_rows:
                    yield table

    def _uniform(self, table: pa.Table, path: str) -> pa.Table:
        """The table with ids of the one type and, where another tool wrote it, vectors of unit length."""
        ids = table[self.id_field]
        ids = ids.cast(self.id_type) if pa.types.is_integer(self.id_type) else id_strings(ids)
        if ids.null_count:
            raise InputError(f"'{self.id_field}' is null or empty in {ids.null_count:,} rows", where=path)
        table = table.set_column(table.schema.get_field_index(self.id_field), self.id_field, ids)
        place = table.schema.get_field_index(self.embedding_field)
        if self.dimension is None or place < 0:
            return table
        found = unit_vectors(one_array(table[self.embedding_field]), self.dimension, where=path)
        if found.rejects:
            row, reason = found.rejects[0]
            raise InputError(
                f"{len(found.rejects):,} rows hold no vector to compare, first '{ids[row].as_py()}' ({reason})",
                where=path,
                fix="Leave them out, or cluster the embeddings with `raycurate kmeans`, which does",
            )
        return table.set_column(place, self.embedding_field, fixed_size_lists(found.rows_ND))

    def _kept(self, table: pa.Table) -> pa.Table:
        import ray

        dropped = ray.get(self.dropped) if isinstance(self.dropped, ray.ObjectRef) else self.dropped
        return table.filter(pa.array(~contains(dropped, hashed_ids(table[self.id_field]))))


def contains(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Which of `keys` are among `sorted_keys`; bool [n]."""
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[at] == keys


def _marked(table: pa.Table, k: int, *, old: bool) -> pa.Table:
    table = table.append_column(HOME, pa.array(np.full(table.num_rows, k, np.int32)))
    return table.append_column(OLD, pa.array(np.full(table.num_rows, old)))


def reader_of(
    clusters: Clusters, *, which_to_keep: str | list[str], fields: tuple[str, str, str], old: Clusters | None = None
) -> Reader:
    """A reader of these clusters (and those of an earlier corpus); fields: of the id, the vector and the text."""
    id_field, embedding_field, text_field = fields
    both = [clusters] if old is None else [clusters, old]
    return Reader(
        clusters.files,
        id_field,
        embedding_field,
        ranking_columns(which_to_keep),
        text_field if all(text_field in each.columns for each in both) else None,
        common_id_type(each.id_type for each in both),
        clusters.dimension if any(each.foreign for each in both) else None,
        old=old.files if old is not None else {},
    )


def refuse_repeated_ids(clusters: Clusters, id_field: str) -> None:
    """Raises InputError when rows of clusters that another tool made share an id; ours never do."""
    import ray

    if not clusters.foreign:
        return
    paths = [path for files in clusters.files.values() for path in files]
    shared = ray.get(remote_task(_shared_ids, name="SharedIds", num_cpus=0.5).remote(paths, id_field))
    if shared:
        raise InputError(
            f"rows share an id: {', '.join(map(repr, shared))}",
            where=f"column '{id_field}' of {clusters.path}",
            fix="Cluster the embeddings with `raycurate kmeans repeated_ids=rename`, which tells them apart",
        )


def _shared_ids(paths: list[str], id_field: str) -> list[str]:
    """Some of the ids that several rows have."""
    tables = []
    for path in paths:
        filesystem, inner = storage.filesystem(path)
        with filesystem.open_input_file(inner) as source:
            ids = pq.ParquetFile(source).read(columns=[id_field])[id_field]
        tables.append(pa.table({"key": hashed_ids(ids), "id": id_strings(ids)}))
    whole = pa.concat_tables(tables)
    keys, counts = np.unique(whole["key"].to_numpy(), return_counts=True)
    several = whole.filter(pa.array(np.isin(whole["key"].to_numpy(), keys[counts > 1])))
    return pc.unique(several["id"]).to_pylist()[:_NAMED]


def earlier_corpus(path: str) -> tuple[str, list[str]]:
    """The clusters that an earlier deduplication read, and the files of its duplicates.

    Raises:
        InputError: it is not the whole output of a deduplication.
    """
    manifest = read_manifest(path)
    if manifest is None or manifest.key.stage != "dedup":
        raise InputError("this is no finished output of a deduplication", where=path)
    files = [storage.join(path, f.path) for f in manifest.files if f.path.startswith("duplicates/")]
    return manifest.inputs[0], files
