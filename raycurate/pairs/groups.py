"""Which documents are copies or near-duplicates of each other, as labels: documents of one label are alike.

Copies are found here (the same text but for case and spaces). Near-duplicates come from a deduplication's stored
pairs, or from a file that says which id is in which group; they name documents as the input does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import require_whole
from raycurate.data.documents.same_text import folded
from raycurate.data.documents.segments import extension_of
from raycurate.pairs.pairs import Documents

_OTHER = ("earlier_id", "kept_id", "max_id")
_SCORE = ("cosine", "cosine_sim_score")


class Unions:
    """Disjoint sets of the integers [0, count); a set is known by its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        self._parent[max(one, other)] = min(one, other)

    def labels(self) -> np.ndarray:
        """int64 [count]: the smallest member of each one's set."""
        return np.array([self.find(member) for member in range(len(self._parent))], np.int64)


def copies(documents: Documents) -> np.ndarray:
    """int64 [documents]: the first document with the same text but for case and spaces."""
    first: dict[str, int] = {}
    found = [first.setdefault(folded(text), row) for row, text in enumerate(documents.texts)]
    return np.array(found, np.int64)


def near_duplicates(documents: Documents, path: str, cosine: float, same: np.ndarray) -> np.ndarray:
    """int64 [documents]: labels by the groups in `path`, and by `same`, what `copies` gave.

    Raises:
        InputError: `path` holds no groups, pairs as far as `cosine` were not stored, or it names no document at all.
    """
    unions = Unions(len(documents))
    for row, first in enumerate(same.tolist()):
        unions.join(row, first)
    known = seen = 0
    example = ""
    for names in _groups(path, cosine):
        rows = [row for name in names for row in documents.rows_named(name)]
        seen += len(names)
        known += len(rows)
        example = example or next(iter(names), "")
        for row in rows[1:]:
            unions.join(rows[0], row)
    if seen and not known:
        raise InputError(
            f"none of its {seen} ids is a document of the input; the first is {example!r}",
            where=path,
            fix="Deduplicate what the pairs were made from: ids are matched with the documents' ids, source_id and "
            "file_name",
        )
    return unions.labels()


def _groups(path: str, cosine: float) -> Iterator[tuple[str, ...]]:
    """Ids that are alike, in twos or more."""
    if storage.is_dir(path):
        files = _dedup_files(path, cosine)
    elif storage.exists(path):
        files = [path]
    else:
        raise InputError("there is no such file or folder", where=path, fix="Set groups to a dedup output or a file")
    by_group: dict[str, list[str]] = {}
    for file in files:
        table = _table(file)
        if {"id", "group"} <= set(table.column_names):
            for name, group in _rows(table, "id", "group"):
                by_group.setdefault(group, []).append(name)
            continue
        other = next((c for c in _OTHER if c in table.column_names), None)
        if "id" not in table.column_names or other is None:
            raise InputError(
                f"there are no columns id and group; the columns are {', '.join(table.column_names)}",
                where=file,
                fix=f"Give a dedup output, or columns id and group, or id and one of {', '.join(_OTHER)}",
            )
        score = next((c for c in _SCORE if c in table.column_names), None)
        if score is not None:
            near = table[score].fill_null(0).cast(pa.float64()).to_numpy() >= cosine - 1e-9
            table = table.filter(pa.array(near))
        yield from _rows(table, "id", other)
    for names in by_group.values():
        yield tuple(names)


def _rows(table: pa.Table, *columns: str) -> Iterable[tuple[str, ...]]:
    whole = table.select(list(columns)).drop_null()
    return zip(*(whole[name].cast(pa.string()).to_pylist() for name in columns), strict=True)


def _dedup_files(path: str, cosine: float) -> list[str]:
    """The files of a dedup output's edges."""
    manifest = require_whole(path)
    floor = manifest.key.options.get("score_floor")
    if manifest.key.stage != "dedup" or floor is None:
        raise InputError(f"this is an output of {manifest.key.stage}, not of dedup", where=path)
    if cosine < float(floor) - 1e-9:
        raise InputError(
            f"group_cosine={cosine:g}: pairs below score_floor={float(floor):g} were not stored",
            where=path,
            fix=f"Set group_cosine to {float(floor):g} or more, or deduplicate again with a lower score_floor",
        )
    return [storage.join(path, file.path) for file in manifest.files if file.path.startswith("edges/")]


def _table(path: str) -> pa.Table:
    """A table of a file of groups; all its ids as they were written."""
    extension = extension_of(path)
    try:
        if extension == ".parquet":
            filesystem, inner = storage.filesystem(path)
            return pq.read_table(inner, filesystem=filesystem, partitioning=None)
        data = storage.read_bytes(path)
        if extension in (".csv", ".tsv"):
            delimiter = "\t" if extension == ".tsv" else ","
            head = pa.csv.ParseOptions(delimiter=delimiter)
            names = data.split(b"\n", 1)[0].decode().strip().lstrip("\ufeff").split(delimiter)
            types = dict.fromkeys((n for n in names if n not in _SCORE), pa.string())
            return pa.csv.read_csv(pa.BufferReader(data), parse_options=head, convert_options=_as(types))
        if extension == ".json":
            return _json_table(json.loads(data), path)
        if extension in (".jsonl", ".ndjson"):
            return _json_table([json.loads(line) for line in data.split(b"\n") if line.strip()], path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"its groups cannot be read ({error})", where=path) from error
    raise InputError(f"groups are not read from '{extension}'", where=path, fix="Use .parquet, .jsonl, .csv or .tsv")


def _as(types: dict[str, pa.DataType]) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(column_types=types)


def _json_table(value: object, path: str) -> pa.Table:
    """{id: group}, {group: [ids]} or [{"id", "group"}, ...]."""
    if isinstance(value, dict):
        rows = []
        for key, content in value.items():
            members = content if isinstance(content, list) else None
            rows += [(str(m), str(key)) for m in members] if members is not None else [(str(key), str(content))]
        return pa.table({"id": [r[0] for r in rows], "group": [r[1] for r in rows]})
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        names = sorted({name for row in value for name in row})
        return pa.table({name: _column(value, name) for name in names})
    raise InputError("its JSON is no mapping and no list of objects", where=path, fix='Write {"id": "group", ...}')


def _column(rows: list[dict], name: str) -> pa.Array:
    values = [row.get(name) for row in rows]
    if name in _SCORE:
        return pa.array(values, pa.float64())
    return pa.array([None if v is None else str(v) for v in values], pa.string())
