"""One cluster's neighbours and edges: rank, collapse the copies, compare, and expand the copies again.

A cluster of at most `tile_rows` rows is one piece of work in memory. A larger one is first written in rank order,
chunk by chunk, to the staging folder (`order`); each chunk is then compared with those before it by a task of its
own (`compare_chunk`), and the chunks' results are put together (`merge`). No task holds more than two chunks of
vectors; the ids and ranking keys of one cluster are held whole.
"""

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.clustering.assignment import as_matrix
from raycurate.core import storage
from raycurate.core.manifest import OutputFile
from raycurate.stages.dedup.clusters import HOME, Reader
from raycurate.stages.dedup.pairwise import Found, compare
from raycurate.stages.dedup.ranking import OLD, content_hashes, hashed, rank, roots

_HOME_GROUP_ROWS = 16384


@dataclass(frozen=True)
class PairOptions:
    """What decides the pairs and how they are computed."""

    which_to_keep: str | list[str]
    seed: int
    floor: float
    device: str
    tile_rows: int
    partial: bool = False
    """Whether rows are compared in several clusters: `_home` stays with the results, which are sorted by it."""


@dataclass
class Ranked:
    """A cluster's rows in order of rank.

    rows: id, `_home` and `_old`. root_N: rank of the row that each is a copy of, or its own. first_new: rank of the
    first row that is not of an earlier corpus.
    """

    rows: pa.Table
    root_N: np.ndarray
    first_new: int

    @property
    def singles(self) -> np.ndarray:
        """Ranks of the rows that are no copies, int64 [m]."""
        return np.flatnonzero(self.root_N == np.arange(len(self.root_N)))

    @property
    def single_new(self) -> int:
        """How many of `singles` are of an earlier corpus."""
        return int(np.searchsorted(self.singles, self.first_new))


def read_cluster(reader: Reader, k: int, options: PairOptions) -> tuple[Ranked, np.ndarray]:
    """A whole cluster in memory: its rows in order, and the vectors of the singles, float32 [m, dim]."""
    table = pa.concat_tables(list(reader.batches(k, vectors=True)), promote_options="permissive").combine_chunks()
    vectors = as_matrix(table[reader.embedding_field])
    keys = table.drop_columns([reader.embedding_field])
    ranked, order = _ranked(keys, content_hashes(vectors), reader, options)
    return ranked, vectors[order[ranked.singles]].astype(np.float32, copy=False)


def _ranked(keys: pa.Table, hashes_N2: np.ndarray, reader: Reader, options: PairOptions) -> tuple[Ranked, np.ndarray]:
    order = rank(keys, which_to_keep=options.which_to_keep, id_field=reader.id_field, seed=options.seed)
    texts = None
    if reader.text_field is not None:
        texts = hashed(keys[reader.text_field].cast(pa.string()).fill_null(""))[order]
        empty = pc.is_null(keys[reader.text_field]).to_numpy(zero_copy_only=False)[order]
        texts[empty] = hashes_N2[order, 0][empty]  # no text: its own bytes
    root = roots(hashes_N2[order], texts)
    rows = keys.select([reader.id_field, HOME, OLD]).take(pa.array(order))
    first_new = int(pc.sum(rows[OLD].cast(pa.int64())).as_py() or 0)
    return Ranked(rows, root, first_new), order


def whole_cluster(reader: Reader, k: int, options: PairOptions) -> tuple[pa.Table, pa.Table]:
    """(neighbours, edges) of a cluster that fits in memory; see `expand`."""
    import torch

    ranked, singles_MD = read_cluster(reader, k, options)
    first = ranked.single_new
    columns = [(0, singles_MD[:first])] if first else []
    columns.append((first, singles_MD[first:]))
    found = compare(singles_MD[first:], first, columns, floor=options.floor, device=torch.device(options.device))
    return expand(ranked, found, reader.id_field)


def expand(ranked: Ranked, found: Found, id_field: str) -> tuple[pa.Table, pa.Table]:
    """What was found among the singles, for all rows but the old ones, in order of rank.

    Returns:
        neighbours: id, max_id, cosine_sim_score, `_home`. edges: id, earlier_id, cosine, `_home` (of id). A copy's
        edge is the one to the row that it is a copy of, its cosine exactly 1.
    """
    singles, count = ranked.singles, len(ranked.root_N)
    scores = np.ones(count, np.float32)
    nearest = ranked.root_N.copy()
    wanted = singles[ranked.single_new :]
    scores[wanted], nearest[wanted] = found.scores_N, singles[found.earlier_N]
    new = np.arange(ranked.first_new, count)
    ids, home = ranked.rows[id_field], ranked.rows[HOME]
    neighbours = pa.table(
        {
            "id": ids.take(pa.array(new)),
            "max_id": ids.take(pa.array(nearest[new])),
            "cosine_sim_score": pa.array(scores[new]),
            HOME: home.take(pa.array(new)),
        }
    )
    copies = new[ranked.root_N[new] != new]
    later = np.concatenate([singles[found.later_E], copies])
    earlier = np.concatenate([singles[found.first_E], ranked.root_N[copies]])
    cosines = np.concatenate([found.cosines_E, np.ones(len(copies), np.float32)])
    by_rank = np.lexsort((earlier, later))
    later, earlier = pa.array(later[by_rank]), pa.array(earlier[by_rank])
    edges = pa.table(
        {
            "id": ids.take(later),
            "earlier_id": ids.take(earlier),
            "cosine": pa.array(cosines[by_rank]),
            HOME: home.take(later),
        }
    )
    return neighbours, edges


# --- clusters that are cut into chunks --------------------------------------------------------------


def order(reader: Reader, k: int, options: PairOptions, folder: str) -> int:
    """Write cluster k to `folder` in order of rank: its rows, and the singles' vectors in chunks; returns how many
    chunks there are."""
    keys, hashes = [], []
    for table in reader.batches(k, vectors=True):
        hashes.append(content_hashes(as_matrix(table[reader.embedding_field])))
        keys.append(table.drop_columns([reader.embedding_field]))
    ranked, by_rank = _ranked(
        pa.concat_tables(keys, promote_options="permissive").combine_chunks(), np.concatenate(hashes), reader, options
    )
    singles = ranked.singles
    place = np.full(len(by_rank), -1, np.int64)  # of a row as it is read: its place among the singles
    place[by_rank[singles]] = np.arange(len(singles))
    with tempfile.TemporaryFile() as scratch:
        vectors: np.ndarray | None = None
        start = 0
        for table in reader.batches(k, vectors=True):
            rows = as_matrix(table[reader.embedding_field])
            if vectors is None:
                vectors = np.memmap(scratch, np.float32, "w+", shape=(len(singles), rows.shape[1]))
            here = place[start : start + len(rows)]
            vectors[here[here >= 0]] = rows[here >= 0]
            start += len(rows)
        assert vectors is not None  # a cluster that is cut has rows
        chunks = _bounds(ranked.single_new, len(singles), options.tile_rows)
        for number, (low, high) in enumerate(chunks):
            _save_array(_chunk(folder, number), vectors[low:high])
    _save_array(storage.join(folder, "roots.npy"), ranked.root_N)
    with storage.open_output(storage.join(folder, "rows.parquet")) as stream:
        pq.write_table(ranked.rows.replace_schema_metadata({"first_new": str(ranked.first_new)}), stream)
    return len(chunks)


def _bounds(first_new: int, count: int, rows: int) -> list[tuple[int, int]]:
    """Chunks of at most `rows`; none has both old and new rows."""
    edges = [*range(0, first_new, rows), *range(first_new, count, rows), count]
    return [(low, high) for low, high in itertools.pairwise(edges) if high > low]


def _chunk(folder: str, number: int) -> str:
    return storage.join(folder, f"chunk-{number:05d}.npy")


def _save_array(path: str, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, values)
    storage.write_bytes(path, buffer.getvalue())


def _load_array(path: str) -> np.ndarray:
    return np.load(io.BytesIO(storage.read_bytes(path)))


def _load_ranked(folder: str) -> Ranked:
    filesystem, inner = storage.filesystem(storage.join(folder, "rows.parquet"))
    rows = pq.read_table(inner, filesystem=filesystem)
    first_new = int(rows.schema.metadata[b"first_new"])
    return Ranked(rows, _load_array(storage.join(folder, "roots.npy")), first_new)


def compare_chunk(folder: str, number: int, options: PairOptions) -> None:
    """Compare one chunk of an ordered cluster with itself and those before it; the result lies beside it."""
    import torch

    ranked = _load_ranked(folder)
    bounds = _bounds(ranked.single_new, len(ranked.singles), options.tile_rows)
    low, _ = bounds[number]
    if low < ranked.single_new:
        return  # rows of an earlier corpus are compared with, not compared

    def columns() -> Iterator[tuple[int, np.ndarray]]:
        for earlier in range(number):
            yield bounds[earlier][0], _load_array(_chunk(folder, earlier))
        yield low, rows

    rows = _load_array(_chunk(folder, number))
    found = compare(rows, low, columns(), floor=options.floor, device=torch.device(options.device))
    buffer = io.BytesIO()
    np.savez(buffer, **vars(found))
    storage.write_bytes(storage.join(folder, f"found-{number:05d}.npz"), buffer.getvalue())


def merge(folder: str, options: PairOptions, id_field: str) -> tuple[pa.Table, pa.Table]:
    """(neighbours, edges) of an ordered cluster whose chunks have all been compared."""
    ranked = _load_ranked(folder)
    bounds = _bounds(ranked.single_new, len(ranked.singles), options.tile_rows)
    parts = []
    for number, (low, _) in enumerate(bounds):
        if low >= ranked.single_new:
            with np.load(io.BytesIO(storage.read_bytes(storage.join(folder, f"found-{number:05d}.npz")))) as file:
                parts.append({name: file[name] for name in file.files})
    whole = Found(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return expand(ranked, whole, id_field)


def write_tables(
    output: str, name: str, neighbours: pa.Table, edges: pa.Table, *, by_home: bool = False
) -> list[OutputFile]:
    """`neighbors/NAME.parquet` and `edges/NAME.parquet` under `output`; `by_home` keeps `_home` and sorts by it."""
    written = []
    for folder, found in (("neighbors", neighbours), ("edges", edges)):
        table = found.sort_by(HOME) if by_home else found.drop_columns([HOME])
        path = f"{folder}/{name}.parquet"
        with storage.open_output(storage.join(output, path)) as stream:
            pq.write_table(table, stream, compression="zstd", row_group_size=_HOME_GROUP_ROWS if by_home else None)
        [entry] = storage.list_files(storage.join(output, path))
        written.append(OutputFile(path=path, size=entry.size, rows=table.num_rows))
    return written
