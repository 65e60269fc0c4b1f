"""Every vector to its nearest centroid, as a Ray Data stream: read a piece, assign, stage.

    Vectors -> Assign -> Clusters (staging)

On CPUs reading and assigning are one task (Ray Data fuses them); on GPUs the assigning is an actor pool. Rows
without a usable vector stay in the stream with their reason. Blocks are sorted by centroid, rejects first, so
that the partitioned write (partition.py) reads only what it needs of a staging file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raycurate.clustering.shards import Piece, one_array, read_columns
from raycurate.clustering.vectors import unit_vectors
from raycurate.data.documents.ids import id_strings
from raycurate.streams.staging import REJECT_REASON, ROW_KEY

if TYPE_CHECKING:
    from ray.data import DataContext

    from raycurate.clustering.inputs import Embeddings
    from raycurate.clustering.options import VectorsOptions

CENTROID = "_centroid"
L2, COSINE = "l2_dist_to_cent", "cosine_dist_to_cent"
READ_BYTES = 64 * 1024 * 1024  # of vectors, in a read task
_REASONS = {
    "null_vector": "the vector is null",
    "non_finite_vector": "the vector has NaN or infinity in it",
    "zero_vector": "the vector has length 0, so no direction",
    "wrong_dimension": "the vector is of another dimension than the others",
    "missing_id": "the id is null or empty",
}


class VectorsDatasource(Datasource):
    """The rows of `pieces`: `_row_key`, id, vector of unit length (null in a reject), metadata, reject columns.

    Args:
        done_keys: reference to the sorted keys of rows to leave out, or None.
    """

    def __init__(self, inputs: Embeddings, options: VectorsOptions, done_keys: ray.ObjectRef | None) -> None:
        super().__init__()
        self._groups = _packed(inputs.pieces)
        self._options = options
        self._shape = (inputs.dimension, inputs.id_type)
        self._done_keys = done_keys

    @property
    def num_tasks(self) -> int:
        return len(self._groups)

    def get_name(self) -> str:
        return "Vectors"

    def estimate_inmemory_data_size(self) -> int:
        return sum(piece.size for group in self._groups for piece in group)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The read tasks, fixed when the datasource was made; `parallelism` is not looked at."""
        tasks = []
        for group in self._groups:
            metadata = BlockMetadata(None, sum(piece.size for piece in group), None)
            read = _reader(group, self._options, self._shape, self._done_keys)
            tasks.append(ReadTask(read, metadata, None, per_task_row_limit))
        return tasks


def _packed(pieces: list[Piece]) -> list[list[Piece]]:
    """Runs of pieces of at most READ_BYTES each, or of one larger piece."""
    groups: list[list[Piece]] = []
    size = READ_BYTES
    for piece in pieces:
        if size + piece.size > READ_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.size
    return groups


def _reader(
    pieces: list[Piece], options: VectorsOptions, shape: tuple[int, pa.DataType], done_keys: ray.ObjectRef | None
) -> Callable[[], Iterator[pa.Table]]:
    def vectors() -> Iterator[pa.Table]:
        done = None if done_keys is None else ray.get(done_keys)
        for piece in pieces:
            table = read_rows(piece, options, *shape)
            if done is not None and len(done):
                keys = table[ROW_KEY].to_numpy()
                at = np.minimum(np.searchsorted(done, keys), len(done) - 1)
                table = table.filter(pa.array(done[at] != keys))
            yield table

    return vectors


def read_rows(piece: Piece, options: VectorsOptions, dimension: int, id_type: pa.DataType) -> pa.Table:
    """All rows of a piece, in order, the unusable ones with a reason; ids as integers, or as `data.ids` spells them."""
    names = [options.id_field, options.embedding_field, *options.metadata_fields]
    table = read_columns(piece, names, id_field=options.id_field)
    found = unit_vectors(one_array(table[options.embedding_field]), dimension, where=piece.path)
    reasons = np.full(table.num_rows, None, object)
    for row, reason in found.rejects:
        reasons[row] = reason
    ids = table[options.id_field]
    ids = ids.cast(id_type) if pa.types.is_integer(id_type) else id_strings(ids)
    if ids.null_count:
        nameless = ids.is_null().to_numpy() & (reasons == None)  # noqa: E711 - elementwise
        reasons[nameless] = "missing_id"
    columns: dict[str, Any] = {
        ROW_KEY: pa.array(np.uint64(piece.number) + np.arange(table.num_rows, dtype=np.uint64)),
        options.id_field: ids,
        options.embedding_field: _spread(found.rows_ND, found.index_N, table.num_rows),
        **{name: table[name] for name in options.metadata_fields},
        "source": pa.array([piece.path] * table.num_rows, pa.string()),
        REJECT_REASON: pa.array(reasons, pa.string()),
        "reject_detail": pa.array([_REASONS.get(r) for r in reasons], pa.string()),
    }
    return pa.table(columns)


def fixed_size_lists(rows_ND: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows_ND.reshape(-1)), rows_ND.shape[1])


def as_matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Fixed-size lists without nulls as [n, dim], without a copy where the column is one chunk."""
    array = one_array(column) if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def _spread(rows_ND: np.ndarray, index_N: np.ndarray, count: int) -> pa.FixedSizeListArray:
    """The vectors at these places of `count` rows, null elsewhere."""
    values = fixed_size_lists(rows_ND)
    if len(index_N) == count:
        return values
    places = np.full(count, -1, np.int64)
    places[index_N] = np.arange(len(index_N))
    return values.take(pa.array(places, mask=places < 0))


class Assign:
    """Adds `_centroid` (-1 in a reject) and the two distances, and sorts the block by centroid.

    Args:
        centroids: float32 [k, dim], or a reference to it.
    """

    def __init__(self, centroids: np.ndarray | ray.ObjectRef, embedding_field: str, device: str = "cpu") -> None:
        self.centroids = centroids
        self.embedding_field = embedding_field
        self.device = device
        self._ready: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}

    def __call__(self, table: pa.Table) -> pa.Table:
        good = pc.is_null(table[REJECT_REASON]).to_numpy(zero_copy_only=False)
        labels = np.full(table.num_rows, -1, np.int32)
        distances = np.full((2, table.num_rows), np.nan, np.float32)
        if good.any():
            column = table[self.embedding_field]
            rows_ND = as_matrix(column if good.all() else column.filter(pa.array(good)))
            labels[good], distances[0, good], distances[1, good] = self._assign(rows_ND)
        table = table.append_column(CENTROID, pa.array(labels))
        for name, values in zip((L2, COSINE), distances, strict=True):
            table = table.append_column(name, pa.array(values, mask=np.isnan(values)))
        return table.take(pa.array(np.argsort(labels, kind="stable")))

    def _assign(self, rows_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch

        from raycurate.clustering.nearest import Centroids, assign
        from raycurate.models.devices import bfloat16_is_faster

        if self._ready is None:
            device = torch.device(self.device)
            given = ray.get(self.centroids) if isinstance(self.centroids, ray.ObjectRef) else self.centroids
            centres_KD = torch.from_numpy(given.copy()).to(device)  # the object store's own memory is read-only
            self._ready = (device, Centroids.of(centres_KD, rough=bfloat16_is_faster(device)), centres_KD.norm(dim=1))
        device, centroids, lengths_K = self._ready
        rows = torch.from_numpy(np.require(rows_ND, requirements=["W", "C"])).to(device)
        labels_N, squares_N = assign(rows, centroids)
        dots_N = (rows * centroids.centres_KD[labels_N]).sum(1)
        cosines_N = dots_N / lengths_K[labels_N].clamp_min(1e-30)
        return labels_N.cpu().numpy(), squares_N.sqrt().cpu().numpy(), (1 - cosines_N).cpu().numpy()
