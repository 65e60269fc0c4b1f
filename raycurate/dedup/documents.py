"""The documents without their duplicates.

The ids to remove travel as one sorted array of 64-bit hashes through the object store, which every node holds once
and each reader searches: 8 bytes a duplicate, 0.8 GB for 100 million. Beyond some billions of duplicates, where that
array no longer fits a node beside the readers, a join partitioned by hash would be needed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.cluster import capacity, data_context, remote_task
from raycurate.core.errors import RaycurateError
from raycurate.core.finalise import Finalised, Layout, finalise
from raycurate.core.staging import REJECT_REASON, ROW_KEY, StagingSink, committed_ref
from raycurate.core.watch import write_staged
from raycurate.data.counting import count_documents
from raycurate.data.documents import DocumentsOptions, Listing, read_documents
from raycurate.dedup.clusters import contains
from raycurate.dedup.ranking import hashed


class Remove:
    """Leaves out the good rows whose id is among the removed; a reject stays, to be written to the rejects."""

    def __init__(self, removed: Any) -> None:
        self.removed = removed

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        keys = ray.get(self.removed) if isinstance(self.removed, ray.ObjectRef) else self.removed
        gone = contains(keys, hashed(table["id"].fill_null("")))
        gone &= pc.is_null(table[REJECT_REASON]).to_numpy(zero_copy_only=False)
        return table.filter(pa.array(~gone))


def removed_keys(paths: list[str]) -> Any:
    """Reference to the sorted hashes of the ids in these files of duplicates; made by a task, not on the driver."""
    return remote_task(_removed_keys, name="RemovedKeys", num_cpus=0).remote(paths)


def _removed_keys(paths: list[str]) -> np.ndarray:
    parts = [np.empty(0, np.uint64)]
    for path in paths:
        filesystem, inner = storage.filesystem(path)
        parts.append(hashed(pq.read_table(inner, columns=["id"], filesystem=filesystem)["id"]))
    return np.sort(np.concatenate(parts))


def write_documents(
    options: DocumentsOptions, listing: Listing, removed: Any, output: str, staging: str, *, name: str
) -> Finalised:
    """Read the documents again and write those that are kept to `output`, rejects beside them; goes on after a kill.

    Raises:
        RaycurateError: the documents cannot be read or written.
    """
    done_keys, rows, _ = committed_ref(staging)
    task_cpus = 0.5 if capacity().largest_node.cpu <= 2 else 1.0
    dataset = read_documents(
        options.input,
        **_fields(options),
        listing=listing,
        done_keys=done_keys if rows else None,
        num_cpus=task_cpus,
    ).map_batches(Remove(removed), batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=task_cpus)
    data_context(dataset)
    sink = StagingSink(staging, name="Documents")
    write_staged(dataset, sink, label="documents", num_cpus=task_cpus, total=lambda: count_documents(listing))
    schema = _schema(staging)
    if schema is None:
        raise RaycurateError("every document was removed", where=output)
    return finalise(staging, output, Layout(name=name, columns=schema.names, sums=[], schema=schema))


def _fields(options: DocumentsOptions) -> dict[str, Any]:
    """All options but the input and, so that every column comes along, the list of columns."""
    left_out = {"input", "metadata_fields"}
    return {name: getattr(options, name) for name in DocumentsOptions.model_fields if name not in left_out}


def _schema(staging: str) -> pa.Schema | None:
    """The columns of all staged files together, without those that only the run needs."""
    schemas = []
    for entry in storage.list_files(staging):
        filesystem, inner = storage.filesystem(entry.path)
        schemas.append(pq.read_schema(inner, filesystem=filesystem).remove_metadata())
    if not schemas:
        return None
    whole = pa.unify_schemas(schemas, promote_options="permissive")
    return pa.schema([field for field in whole if field.name not in (ROW_KEY, REJECT_REASON, "reject_detail")])
