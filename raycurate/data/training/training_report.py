"""What is wrong with training data, all of it, in one error.

A problem in a training file that shows itself in the third hour costs three hours, and a reader that stops at
the first problem costs one run for each. So readers note problems here and go on; the error comes at the end.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from raycurate.core.errors import InputError

SHOWN = 20
"""How many problems an error shows before it only counts them."""

NAMED = 5
"""How many ids of one sort a problem names before it only counts them."""


class Problem(NamedTuple):
    """One thing that is wrong: its kind (a plural, for the counts), where it is, what it is, and what to do."""

    kind: str
    where: str
    what: str
    fix: str | None = None


class Rejected(NamedTuple):
    """A row that was left out: "file:line", why, and the row itself where it is at hand."""

    origin: str
    reason: str
    row: Any = None


class Problems:
    """Problems as they are found; the first `SHOWN` are kept whole, all are counted by kind.

    Args:
        drops_rows: problems of single rows are none, as these are left out; they are in `rejected`.
    """

    def __init__(self, subject: str = "the training data", *, drops_rows: bool = False) -> None:
        self._subject = subject
        self.drops_rows = drops_rows
        self.rejected: dict[str, Rejected] = {}
        self.first: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self._added = 0

    def add(self, kind: str, where: str, what: str, *, times: int = 1, fix: str | None = None) -> None:
        """Note a problem; `times` for one that stands for several of its kind, `fix` is what to do about it."""
        self.counts[kind] += times
        self._added += 1
        if len(self.first) < SHOWN:
            self.first.append(Problem(kind, where, what, fix))

    def add_row(
        self, kind: str, where: str, what: str, *, key: str = "", row: Any = None, fix: str | None = None
    ) -> None:
        """Note what is wrong with one row.

        Args:
            key: of the row among all, where several may stand at one place (a file of one line).
            row: as the file has it, where it is at hand.
        """
        if not self.drops_rows:
            self.add(kind, where, what, fix=fix)
            return
        before = self.rejected.get(key or where)
        reason = what if before is None else f"{before.reason}; {what}"
        self.rejected[key or where] = Rejected(where, reason, row)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __bool__(self) -> bool:
        return bool(self.counts)

    def raise_if_any(self) -> None:
        """Raise InputError with everything that was noted; nothing when nothing was."""
        if not self:
            return
        if self._added == 1:
            only = self.first[0]
            raise InputError(only.what, where=only.where, fix=only.fix)
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.most_common())
        lines = [f"{self._subject} has {self.total:,} problems: {kinds}"]
        lines += [f"  {p.where}: {p.what}" for p in self.first]
        if self._added > SHOWN:
            lines.append(f"  and {self._added - SHOWN:,} more")
        lines += dict.fromkeys(p.fix for p in self.first if p.fix)
        raise InputError("\n".join(lines))
