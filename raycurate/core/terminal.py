"""Standard output as a program may find it: closed, ASCII only, on a full disk, or with a reader that leaves early."""

from __future__ import annotations

import io
import os
import sys

from raycurate.core.errors import RaycurateError
from raycurate.core.redaction import hide_credentials


class ReaderLeft(Exception):
    """Whoever read stdout has gone, as `head` does, which is nobody's error."""


def make_usable() -> None:
    """Streams that can be written to, whatever was handed over; letters they cannot show are written as escapes.

    A closed one becomes /dev/null under its own number: the next file that is opened would get that number else, and
    all that this process or a child prints would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for as long as we run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a text, with no credentials in it, at once.

    Raises:
        ReaderLeft: nobody reads any more.
        RaycurateError: it cannot be written, as on a full disk.
    """
    try:
        print(hide_credentials(text), flush=True)
    except BrokenPipeError as error:
        _to_nowhere()
        raise ReaderLeft from error
    except OSError as error:
        _to_nowhere()
        raise RaycurateError(f"it cannot be written ({error.strerror})", where="standard output") from error


def reader_left() -> bool:
    """Write out what is pending; whether stdout's reader has gone."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        _to_nowhere()
        return True
    except (OSError, ValueError):
        _to_nowhere()
    return False


def _to_nowhere() -> None:
    """What is left in stdout's buffer, and what follows, goes to /dev/null; the interpreter's exit stays quiet."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
