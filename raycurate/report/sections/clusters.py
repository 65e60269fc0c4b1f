"""Clusters: how large they are, what the largest hold, and a map of the embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core.errors import InputError
from raycurate.core.manifest import is_data
from raycurate.report import charts
from raycurate.report.context import Context
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import Run, StageOutput
from raycurate.report.sampling import parquet_rows, random_rows
from raycurate.report.text import counted, cut, percent

_MAPPED = 4000  # documents on the map
_WIDE, _FITTED = 1024, 1500  # the directions of wider vectors come from so many rows: the decomposition takes n d^2
_NAMED = 6  # largest clusters that are named
_MEMBER_ROWS = 20_000  # of a cluster that are looked at for those nearest to its centre
_DUPLICATES_READ = 2_000_000
_PART = re.compile(r"^centroid=(\d+)/")


@dataclass(frozen=True)
class Cluster:
    """`nearest`: titles (ids where there is none) of the documents nearest to its centre."""

    number: int
    rows: int
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Projection:
    """A sample of embeddings on the two directions in which they vary most.

    Attributes:
        at_N2: float [n, 2]. removed_N: bool [n], duplicates that were removed.
        shares: of the sample's variance that each direction holds.
        mean_D, directions_2D: what projects further vectors.
    """

    at_N2: np.ndarray
    removed_N: np.ndarray
    shares: tuple[float, float]
    mean_D: np.ndarray
    directions_2D: np.ndarray


def section(context: Context) -> Section | None:
    """None where neither clusters nor embeddings are there."""
    kmeans, embed = context.run.of("kmeans"), context.run.of("embed")
    if kmeans is None and embed is None:
        return None
    clusters = _clusters(kmeans) if kmeans is not None else []
    largest = sorted(clusters, key=lambda c: (-c.rows, c.number))[:_NAMED]
    named = [_with_members(kmeans, cluster) for cluster in largest] if kmeans is not None else []
    mapped = kmeans or embed
    return make_section(
        "clusters",
        "Clusters",
        kmeans=kmeans,
        sizes=_sizes_chart(clusters) if kmeans is not None else None,
        map=_map_chart(context.run, mapped, named) if mapped is not None else None,
        largest=named,
    )


def _clusters(kmeans: StageOutput) -> list[Cluster]:
    rows: dict[int, int] = {}
    for file in kmeans.manifest.files if kmeans.manifest else []:
        part = _PART.match(file.path)
        if part:
            rows[int(part[1])] = rows.get(int(part[1]), 0) + (file.rows or 0)
    return [Cluster(n, count) for n, count in sorted(rows.items())]


def _sizes_chart(clusters: Sequence[Cluster]) -> charts.Chart:
    sizes = np.array([c.rows for c in clusters])
    says = (
        f"{counted(len(sizes), 'cluster')} with {sizes.min():,} to {sizes.max():,} documents; half have at most "
        f"{np.median(sizes):,.0f}. A cluster is searched for duplicates as one, so none should be very large."
    )
    words = charts.Words(
        "sizes", "Cluster sizes from the largest to the smallest", says, x="clusters, largest first", y="documents"
    )
    return charts.sizes(words, sizes)


def _with_members(kmeans: StageOutput, cluster: Cluster) -> Cluster:
    id_field = str(kmeans.options.get("id_field", "id"))
    title = "title" if "title" in (kmeans.options.get("metadata_fields") or []) else id_field
    files = kmeans.files(f"centroid={cluster.number}/", ".parquet")
    columns = list(dict.fromkeys([id_field, title, "cosine_dist_to_cent"]))
    members, _ = parquet_rows(files, columns, _MEMBER_ROWS)
    if members is None:
        return cluster
    nearest = members.take(
        pc.sort_indices(members, [("cosine_dist_to_cent", "ascending"), (id_field, "ascending")])[:3]
    )
    names = tuple(cut(str(row[title] or row[id_field]), 60) for row in nearest.to_pylist())
    return Cluster(cluster.number, cluster.rows, names)


# --- the map --------------------------------------------------------------------------------------


def _map_chart(run: Run, output: StageOutput, named: Sequence[Cluster]) -> charts.Chart | None:
    """None where there are too few embeddings."""
    found = _projection(run, output)
    if found is None:
        return None
    removed = int(found.removed_N.sum())
    says = (
        f"{counted(len(found.at_N2), 'document')}, "
        + ("all there are" if len(found.at_N2) == output.count("rows") else "taken at random")
        + ", on the two directions in which they vary most (principal components of the vectors, "
        f"{percent(found.shares[0])} and {percent(found.shares[1])} of the variance): what is far apart here is "
        "unlike, what is near need not be alike."
        + (f" {removed:,} of them, marked by crosses, were removed as duplicates." if removed else "")
        + (f" The numbers are the centres of the {len(named)} largest clusters." if named else "")
    )
    words = charts.Words("map", "Two-dimensional map of the embeddings", says)
    places = _centres(output, found, named)
    return charts.points(words, found.at_N2, found.removed_N, ("kept", "removed as a duplicate"), places=places)


def _projection(run: Run, output: StageOutput) -> Projection | None:
    id_field, field = (
        str(output.options.get("id_field") or "id") if output.stage == "kmeans" else "id",
        str(output.options.get("embedding_field", "embeddings")),
    )
    listed = output.manifest.files if output.manifest else []
    files = {output.path(f.path): f.rows or 0 for f in listed if f.path.endswith(".parquet") and is_data(f.path)}
    sample = random_rows(files, [id_field, field], _MAPPED)
    if sample is None or sample.num_rows < 3:
        return None
    vectors_ND = _matrix(sample[field], output.folder)
    vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
    mean_D = vectors_ND.mean(axis=0)
    fitted = len(vectors_ND) if vectors_ND.shape[1] <= _WIDE else _FITTED  # random rows, as all of the sample is
    _, singular, directions_RD = np.linalg.svd(vectors_ND[:fitted] - mean_D, full_matrices=False)
    if len(singular) < 2 or singular[0] == 0:
        return None
    # The sign of a direction is arbitrary: its largest component is made positive, so that a map looks the same twice.
    top_2D = directions_RD[:2]
    top_2D = top_2D * np.sign(top_2D[np.arange(2), np.abs(top_2D).argmax(axis=1)])[:, None]
    shares = singular[:2] ** 2 / np.sum(singular**2)
    removed_N = _removed(run, sample[id_field])
    at_N2 = (vectors_ND - mean_D) @ top_2D.T
    return Projection(at_N2, removed_N, (float(shares[0]), float(shares[1])), mean_D, top_2D)


def _matrix(column: pa.ChunkedArray, folder: str) -> np.ndarray:
    """float32 [n, d] of a fixed-size list column.

    Raises:
        InputError: it is something else, as of a multi-vector model.
    """
    if not pa.types.is_fixed_size_list(column.type):
        raise InputError(
            f"the embeddings are of type {column.type}; only one vector a document can be mapped", where=folder
        )
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    return flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, column.type.list_size)


def _removed(run: Run, ids: pa.ChunkedArray) -> np.ndarray:
    """Which of the ids were removed as duplicates, bool [n]."""
    dedup = run.of("dedup")
    found, _ = parquet_rows(dedup.files("duplicates/") if dedup else [], ["id"], _DUPLICATES_READ)
    if found is None:
        return np.zeros(len(ids), bool)
    return np.asarray(pc.is_in(ids.cast(pa.string()), found["id"].cast(pa.string()).combine_chunks()))


def _centres(output: StageOutput, found: Projection, named: Sequence[Cluster]) -> dict[str, np.ndarray]:
    if not named:
        return {}
    from raycurate.clustering.centroids import load_centroids

    centres_KD = load_centroids(output.folder)
    chosen = [c for c in named if c.number < len(centres_KD)]
    projected = (centres_KD[[c.number for c in chosen]] - found.mean_D) @ found.directions_2D.T
    return {str(place): at for place, at in enumerate(projected, 1)}
