"""The documents without their duplicates.

The ids to remove travel as one sorted array of 64-bit hashes through the object store, which every node holds once
and each reader searches: 8 bytes a duplicate, 0.8 GB for 100 million. Beyond some billions of duplicates, where that
array no longer fits a node beside the readers, a join partitioned by hash would be needed.

What is removed is counted: each id that was decided on must be the id of one document, else nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError, RaycurateError
from raycurate.data.documents.counting import count_documents
from raycurate.data.documents.documents import DocumentsOptions, Listing, read_documents
from raycurate.data.documents.ids import id_strings
from raycurate.data.documents.rows import TEXT_CUT
from raycurate.ray_runtime.cluster import capacity, data_context, remote_task
from raycurate.stages.dedup.clusters import contains
from raycurate.stages.dedup.ranking import hashed_ids
from raycurate.streams.finalise import Finalised, Layout, finalise
from raycurate.streams.repeated_ids import rename_repeated, renamed_keys
from raycurate.streams.staging import REJECT_REASON, ROW_KEY, StagingSink, committed_ref
from raycurate.streams.watch import write_staged

REMOVED = "_removed"  # the column that is true where the document is a duplicate
_NAMED = 5  # ids shown in an error

_WORKING = (ROW_KEY, TEXT_CUT, REJECT_REASON, "reject_detail", REMOVED)  # columns that only the run needs


class Remove:
    """Marks the good rows whose id is among the removed, of which only the id stays.

    Args:
        removed: the sorted hashes of their ids, or a reference to them.
        renamed: row keys of the documents that `embed` gave ids of their own, or a reference to them.
    """

    def __init__(self, removed: Any, renamed: Any) -> None:
        self.removed, self.renamed = removed, renamed

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        keys, renamed = (
            ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in (self.removed, self.renamed)
        )
        table = rename_repeated(table, "id", renamed)
        gone = contains(keys, hashed_ids(table["id"]))
        gone &= pc.is_null(table[REJECT_REASON]).to_numpy(zero_copy_only=False)
        if not gone.any():
            return table
        mark = pa.array(np.ones(int(gone.sum()), bool))
        removed = table.filter(pa.array(gone)).select([ROW_KEY, "id"]).append_column(REMOVED, mark)
        return pa.concat_tables([table.filter(pa.array(~gone)), removed], promote_options="default")


def removed_keys(paths: list[str]) -> Any:
    """Reference to the sorted hashes of the ids in these files of duplicates; made by a task, not on the driver."""
    return remote_task(_removed_keys, name="RemovedKeys", num_cpus=0).remote(paths)


def _removed_keys(paths: list[str]) -> np.ndarray:
    parts = [np.empty(0, np.uint64)]
    for path in paths:
        filesystem, inner = storage.filesystem(path)
        parts.append(hashed_ids(pq.read_table(inner, columns=["id"], filesystem=filesystem)["id"]))
    return np.sort(np.concatenate(parts))


@dataclass(frozen=True)
class Removal:
    """duplicates: files of the ids to remove. removed: `removed_keys` of them. renamed: files that list the documents
    that `embed` gave ids of their own."""

    duplicates: list[str]
    removed: Any
    renamed: list[str]


def write_documents(
    options: DocumentsOptions, listing: Listing, removal: Removal, output: str, staging: str, *, name: str
) -> Finalised:
    """Read the documents again and write those that are kept to `output`, rejects beside them; goes on after a kill.

    Raises:
        InputError: an id to remove is that of no document, or of several.
        RaycurateError: the documents cannot be read or written.
    """
    done_keys, rows, _ = committed_ref(staging)
    task_cpus = 0.5 if capacity().largest_node.cpu <= 2 else 1.0
    renamed = remote_task(renamed_keys, name="RenamedKeys", num_cpus=0).remote(removal.renamed)
    dataset = read_documents(
        options.input,
        **_fields(options),
        listing=listing,
        done_keys=done_keys if rows else None,
        num_cpus=task_cpus,
    ).map_batches(
        Remove(removal.removed, renamed),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=task_cpus,
    )
    data_context(dataset)
    sink = StagingSink(staging, name="Documents")
    write_staged(dataset, sink, label="documents", num_cpus=task_cpus, total=lambda: count_documents(listing))
    _check_removed(staging, removal, where=str(options.input))
    schema = _schema(staging)
    if schema is None:
        raise RaycurateError("every document was removed", where=output)
    layout = Layout(name=name, columns=schema.names, sums=[], schema=schema, left_out=REMOVED)
    return finalise(staging, output, layout, known=rows + sink.rows)


def _check_removed(staging: str, removal: Removal, *, where: str) -> None:
    """See that what was removed is what was decided, document by document."""
    import ray

    paths = [entry.path for entry in storage.list_files(staging) if entry.path.endswith(".parquet")]
    batches = [paths[i : i + 200] for i in range(0, len(paths), 200)]
    met = remote_task(_met, name="RemovedMet", num_cpus=0.5)
    compare = remote_task(_compare, name="RemovedCompared", num_cpus=0.5)
    missing, several, count = ray.get(compare.remote(removal.removed, *[met.remote(batch) for batch in batches]))
    if not len(missing) and not len(several):
        return
    examples = remote_task(_examples, name="RemovedExamples", num_cpus=0)
    wrong = missing if len(missing) else several
    ids, documents = ray.get(examples.remote(removal.duplicates, paths, wrong[:_NAMED]))
    shown = ", ".join(map(repr, ids)) + (", ..." if len(wrong) > len(ids) else "")
    if len(missing):
        raise InputError(
            f"{len(missing):,} of the {count:,} ids to remove are those of no document: {shown}; the documents have "
            f"ids such as {', '.join(map(repr, documents))}",
            where=where,
            fix="Give the documents that were embedded, read as they were then (document_options: id_field, ...); "
            "nothing was removed",
        )
    raise InputError(
        f"{len(several):,} of the {count:,} ids to remove are those of several documents each: {shown}",
        where=where,
        fix="Embed again with repeated_ids=rename, which tells such documents apart; nothing was removed",
    )


def _met(paths: list[str]) -> np.ndarray:
    """(hash of the id, row key) of the documents that were marked as removed, uint64 [2, n]."""
    parts = [np.empty((2, 0), np.uint64)]
    for path in paths:
        filesystem, inner = storage.filesystem(path)
        file = pq.ParquetFile(inner, filesystem=filesystem)
        if REMOVED not in file.schema_arrow.names:
            continue
        table = file.read(columns=[ROW_KEY, "id", REMOVED])
        table = table.filter(pc.is_valid(table[REMOVED]))
        parts.append(np.stack([hashed_ids(table["id"]), table[ROW_KEY].to_numpy()]))
    return np.concatenate(parts, axis=1)


def _compare(removed: np.ndarray, *parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Hashes of ids that no document has, of ids that several have, and how many ids there are."""
    rows = np.unique(np.concatenate([np.empty((2, 0), np.uint64), *parts], axis=1), axis=1)  # once committed twice
    met, counts = np.unique(rows[0], return_counts=True)
    wanted = np.unique(removed)
    return np.setdiff1d(wanted, met, assume_unique=True), met[counts > 1], len(wanted)


def _examples(duplicates: list[str], staged: list[str], hashes: np.ndarray) -> tuple[list[str], list[str]]:
    """The ids of these hashes among the duplicates, and some ids of documents."""
    ids: list[str] = []
    for path in duplicates:
        filesystem, inner = storage.filesystem(path)
        column = pq.read_table(inner, columns=["id"], filesystem=filesystem)["id"]
        ids += id_strings(column.filter(pa.array(np.isin(hashed_ids(column), hashes)))).to_pylist()
        if len(ids) >= len(hashes):
            break
    documents: list[str] = []
    for path in staged[:1]:
        filesystem, inner = storage.filesystem(path)
        documents += pc.drop_null(pq.read_table(inner, columns=["id"], filesystem=filesystem)["id"]).to_pylist()[:3]
    return ids, documents


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
    return pa.schema([field for field in whole if field.name not in _WORKING])
