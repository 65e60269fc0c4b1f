"""What every kind of input becomes before it is split: documents by number, and questions that name theirs.

A question also says which *units* it comes from: the tuple of source files, the package, or whatever else must not
be torn apart by the split.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raycurate.data.training.inline import document_id
from raycurate.data.training.sdg import Reject

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)

Unit = tuple[str, ...]


def normalised(text: str) -> str:
    """`text` as questions are compared: NFKC, lower case, only letters and digits, one space between words."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


class Documents:
    """Texts in the order in which they first came, each once; `names` are the ids, files and sources that the input
    knows them by, as the groups of a deduplication do."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self.names: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def ids(self) -> list[str]:
        return self._ids

    def add(self, text: str, *names: str) -> int:
        """The row of `text`."""
        found = document_id(text)
        row = self._rows.setdefault(found, len(self.texts))
        if row == len(self.texts):
            self.texts.append(text)
            self._ids.append(found)
        for name in names:
            rows = self.names.setdefault(name, [])
            if not rows or rows[-1] != row:
                rows.append(row)
        return row

    def row_of_text(self, text: str) -> int | None:
        return self._rows.get(document_id(text))

    def rows_named(self, name: str) -> list[int]:
        """The documents that go by `name`: their own id here, or what the input calls them."""
        own = self._rows.get(name)
        return self.names.get(name, []) if own is None else [own, *self.names.get(name, [])]

    def table(self) -> pa.Table:
        """id, text."""
        return pa.table({"id": pa.array(self._ids, pa.string()), "text": pa.array(self.texts, pa.large_string())})


@dataclass(frozen=True, slots=True)
class Query:
    """A question, the rows of the documents that answer it, the units it comes from, and what is known about it.

    `split` is set where the input has split itself. `relevance`: the judgement of each positive where it is not 1.
    """

    text: str
    positives: tuple[int, ...]
    units: tuple[Unit, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    relevance: tuple[int, ...] | None = None


@dataclass
class Pairs:
    """Everything that an input holds.

    `scored_units`: the units that the split counts, where these are more than those of the questions that are left.
    `sources`: how many documents or files the input has, where that is not the size of the corpus.
    `left_out`: questions by the reason for which they are not there.
    """

    documents: Documents = field(default_factory=Documents)
    queries: list[Query] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    scored_units: set[Unit] | None = None
    sources: int | None = None

    @property
    def units(self) -> list[Unit]:
        """All units, sorted."""
        if self.scored_units is not None:
            return sorted(self.scored_units)
        return sorted({unit for query in self.queries for unit in query.units})
