"""What sections share: the run, and its documents, which are read once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from raycurate.core.errors import RaycurateError
from raycurate.report.rendering import Section
from raycurate.report.runs import Run
from raycurate.report.sampling import Documents, read_corpus


class Context:
    """A run that is being reported on."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def corpus(self) -> tuple[Documents | None, str]:
        """The run's documents, or a part of them; where they cannot be read, None and why."""
        try:
            found = read_corpus(self.run)
        except RaycurateError as error:
            return None, str(error)
        return found, "" if found is not None else "the run does not say what its corpus was"


SectionMaker = Callable[[Context], Section | None]
"""Makes a section of what a run has for it; None where it has nothing."""
