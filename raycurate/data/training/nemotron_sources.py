"""Texts of an `ids_only` sub-set, looked up in the public data set that they come from.

The original is loaded by the datasets library, which keeps it as Arrow files and maps them, so that a lookup in nine
million documents holds a batch of them in memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.errors import InputError, require
from raycurate.data.corpora.corpus import gather
from raycurate.data.documents.ids import is_string_like

SOURCE_CONFIG = "source_config.json"


@dataclass(frozen=True)
class Column:
    """A column of texts, of which `prefix` and a row number (`d_17`) is one."""

    name: str
    prefix: str
    texts: pa.ChunkedArray

    def lookup(self, ids: pa.Array, where: str) -> pa.Array:
        """The text of each id, null where the original has none.

        Raises:
            InputError: an id of another form, or a row that the original does not have.
        """
        ids = ids.cast(pa.string())
        fits = pc.fill_null(pc.match_substring_regex(ids, rf"^{self.prefix}_(0|[1-9][0-9]{{0,17}})$"), False)
        rows = np.zeros(0, np.int64)
        if pc.all(fits).as_py() or not len(ids):
            rows = pc.utf8_slice_codeunits(ids, len(self.prefix) + 1).cast(pa.int64()).to_numpy()
        bad = ids.filter(pc.invert(fits)) if len(rows) < len(ids) else ids.filter(pa.array(rows >= len(self.texts)))
        if len(bad):
            raise InputError(
                f"{bad[0].as_py()!r} is no row of {self.name}, which has {len(self.texts):,} rows "
                f"({self.prefix}_0 and so on)",
                where=where,
                fix="The original data set has changed, or is another one than the ids were made from",
            )
        return gather(self.texts, rows)


@dataclass(frozen=True)
class SourceTexts:
    """The original's documents and questions."""

    documents: Column
    questions: Column


def open_source(folder: str, cache_dir: str | None) -> SourceTexts:
    """The original data set that a sub-set's source_config.json names.

    Args:
        folder: of the sub-set.
        cache_dir: where the datasets library keeps it; None for its own cache.

    Raises:
        InputError: no such file, one of another form, or a data set that cannot be loaded.
        MissingDependencyError: the package `datasets` is not installed.
    """
    path = storage.join(folder, SOURCE_CONFIG)
    if not storage.exists(path):
        raise InputError(f"the sub-set has ids only and no {SOURCE_CONFIG} that says where its texts are", where=folder)
    try:
        config = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise InputError(f"it is not JSON ({error})", where=path) from None
    source = _member(config, "source_repo", path)
    loader = _member(config, "loader_config", path)
    if loader == "mteb":
        documents = _column((source, "corpus", "corpus"), "text", cache_dir, path)
        questions = _column((source, "queries", "queries"), "text", cache_dir, path)
    elif loader == "column":
        named = (
            source,
            _member(config, "subset", path) if "subset" in config else None,
            _member(config, "split", path),
        )
        documents = _column(named, _member(config, "document_column", path), cache_dir, path)
        questions = _column(named, _member(config, "query_column", path), cache_dir, path)
    else:
        raise InputError(f"loader_config={loader!r} is not known; it can be 'mteb' or 'column'", where=path)
    return SourceTexts(Column(f"{source} (documents)", "d", documents), Column(f"{source} (questions)", "q", questions))


def _member(config: Any, name: str, path: str) -> str:
    value = config.get(name) if isinstance(config, dict) else None
    if not isinstance(value, str) or not value:
        raise InputError(f"it must be an object in which '{name}' is a string, this is {value!r}", where=path)
    return value


def _column(named: tuple[str, str | None, str], column: str, cache_dir: str | None, path: str) -> pa.ChunkedArray:
    """A column of texts of (data set, config, split), as large strings, mapped into memory."""
    datasets = require("datasets", "hub", purpose="Restoring the texts of a sub-set that has ids only")
    source, config, split = named
    described = f"{source}{f', config {config}' if config else ''}, split {split}"
    try:
        table = datasets.load_dataset(source, config, split=split, cache_dir=cache_dir).with_format("arrow")[:]
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"the original data set ({described}) cannot be loaded ({type(error).__name__}: {error})",
            where=path,
            fix="Turn the network on (HF_HUB_OFFLINE unset); a gated one needs its terms accepted and HF_TOKEN",
        ) from error
    if column not in table.column_names:
        raise InputError(f"{described} has no column '{column}'; columns: {', '.join(table.column_names)}", where=path)
    if not is_string_like(table[column].type):
        raise InputError(f"column '{column}' of {described} holds {table[column].type}, not texts", where=path)
    return table[column].cast(pa.large_string())
