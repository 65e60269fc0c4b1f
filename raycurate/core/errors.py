"""The one error type for users.

Every message says what was wrong, where, and what to do about it; the command line prints it
without a traceback and exits with code 2. Anything else that escapes is a bug of ours and keeps
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from raycurate.core.redaction import hide_credentials


class RaycurateError(Exception):
    """Something the user can put right.

    Args:
        what: what was wrong, with the value that was seen.
        where: file, option, URL or stage it was found in.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        text = self.what.rstrip(".")
        if self.where:
            text = f"{self.where}: {text}"
        if self.fix:
            text = f"{text}. {self.fix}"
        return hide_credentials(text)

    def __reduce__(self):  # keyword arguments survive the trip from a Ray worker
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[RaycurateError], what: str, where: str | None, fix: str | None):
    return cls(what, where=where, fix=fix)


class ConfigError(RaycurateError):
    """A recipe, an option or an override that cannot be used."""


class InputError(RaycurateError):
    """Input data that is missing or cannot be read."""


class OutputExistsError(RaycurateError):
    """An output that is there already and was made from something else."""


class ContractError(RaycurateError):
    """Vectors made in different ways would be mixed."""


class MissingDependencyError(RaycurateError):
    """An optional package is not installed where it must run."""


class CapacityError(RaycurateError):
    """A plan that no allowed size of the cluster can run."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def require(module: str, extra: str, *, purpose: str):
    """Import and return `module`, or say which extra brings it.

    Raises:
        MissingDependencyError: the package, or something it needs, is not installed here.
    """
    import importlib
    import socket
    import sys

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package '{module}', which cannot be imported ({error})",
            where=f"{socket.gethostname()} ({sys.executable})",
            fix=f"Install it there with: pip install 'raycurate[{extra}]', or give this actor group "
            "an environment that has it (runtime_env, or label_selector for a node image)",
        ) from error
