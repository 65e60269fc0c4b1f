"""What a person sees: the project's own lines. What Ray and other libraries say goes to a log file.

Ray writes from many places: Python loggers, warnings, its C++ core (straight to file descriptor 2) and the lines of
workers that it forwards. `quiet` points descriptor 2 to a log file while a command runs and puts a filter in place of
`sys.stderr` and `sys.stdout`, which lets through what is ours. Progress of a worker, which arrives as a forwarded line,
becomes a status line here.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from raycurate.core.cache import cache_folder
from raycurate.core.errors import RaycurateError

PROGRESS_SECONDS = "RAYCURATE_PROGRESS_SECONDS"
"""Environment variable: seconds between two lines of progress where there is no terminal."""
_FROM_WORKER = re.compile(r"^(?:\x1b\[\d+m)?\(.+? pid=\d+[^)]*\)(?:\x1b\[0m)? ?")
_OWN_LINE = re.compile(r"^\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR|CRITICAL) (raycurate[\w.]*)")
_PROGRESS = re.compile(r"^[a-z][\w .-]*(?: \(.*\))?: [\d,]+(?:/[\d,]+)? \w+, [\d,.]+/s, ")
_TELLS = ("raycurate.training", "raycurate.stages.finetune")  # of workers: validations, checkpoints, ...
_REPEATED = re.compile(r"(?:\x1b\[\d+m)? ?\[repeated \d+x across cluster\].*$")


@contextmanager
def quiet(*, verbose: bool = False) -> Iterator[Path | None]:
    """While open, only the project's own lines reach the terminal; yields the log file that all others go to.

    Nothing is changed, and None is yielded, with `verbose`, and where `sys.stderr` is not the process's own (a test, a
    notebook).
    """
    if verbose or not _own_descriptor():
        yield None
        return
    path = _log_file()
    log = path.open("a", encoding="utf-8", errors="replace", buffering=1)
    before_out, before_err, descriptor = sys.stdout, sys.stderr, os.dup(2)
    terminal = os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="replace", buffering=1)
    seconds = os.environ.get(PROGRESS_SECONDS)
    if seconds is None and terminal.isatty():
        os.environ[PROGRESS_SECONDS] = "2"  # workers of a local Ray inherit it, and their lines become a status line
    status = _Status(terminal)
    before_err.flush()
    os.dup2(log.fileno(), 2)
    sys.stderr = _Filter(status, log, passes_others=False)
    sys.stdout = _Filter(_Status(before_out, status), log, passes_others=True)
    try:
        yield path
    finally:
        ours, sys.stdout, sys.stderr = sys.stdout, before_out, before_err
        with suppress(BrokenPipeError, ValueError):  # whoever reads has gone; the caller's own flush finds that too
            ours.flush()
        os.dup2(descriptor, 2)
        os.close(descriptor)
        status.clear()
        terminal.close()
        log.close()
        if seconds is None:
            os.environ.pop(PROGRESS_SECONDS, None)


def _own_descriptor() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _log_file() -> Path:
    """A file of this process in the user's cache, or in the temporary folder where that cannot be written."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder = cache_folder() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a"):
            return folder / name
    except (OSError, RaycurateError):
        return Path(tempfile.mkdtemp(prefix="raycurate-log-"), name)


class _Status:
    """A stream with a last line that is written over: lines go above it."""

    def __init__(self, stream: TextIO, above: _Status | None = None) -> None:
        self.stream = stream
        self._above = above
        self._shown = False
        self._said = 0.0
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._above is not None:
            self._above.clear()
        with self._lock:
            self._wipe()
            with _bars_aside(self.stream):
                self.stream.write(text)

    def progress(self, text: str) -> None:
        """A line of progress: the last one on a terminal; elsewhere it stays."""
        with self._lock:
            if self.stream.isatty():
                self.stream.write(f"\r\x1b[K{text[: shutil.get_terminal_size((120, 24)).columns - 1]}")
                self.stream.flush()
                self._shown = True
            else:
                self.stream.write(f"{text}\n")

    def clear(self) -> None:
        """Take the last line away."""
        with self._lock:
            self._wipe()

    def _wipe(self) -> None:
        if self._shown:
            self.stream.write("\r\x1b[K")
            self._shown = False


@contextmanager
def _bars_aside(stream: TextIO) -> Iterator[None]:
    """While open, a bar on `stream` is taken away."""
    bars = sys.modules.get("tqdm")
    if bars is None:
        yield
        return
    with bars.tqdm.external_write_mode(file=stream):
        yield


class _Filter(io.TextIOBase):
    """A text stream that sorts lines: the project's own to the terminal, all others to the log.

    Args:
        passes_others: whether lines that no worker wrote go to the terminal too (what a command prints).
    """

    def __init__(self, status: _Status, log: TextIO, *, passes_others: bool) -> None:
        self._status = status
        self._log = log
        self._passes_others = passes_others
        self._begun: dict[int, str] = {}

    @property
    def terminal(self) -> TextIO:
        """Where bars are drawn."""
        return self._status.stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._status.stream.encoding or "utf-8"

    def isatty(self) -> bool:
        return self._status.stream.isatty()

    def fileno(self) -> int:
        return self._log.fileno() if not self._passes_others else self._status.stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Sort the lines that are whole; what a thread has begun waits for its end."""
        me = threading.get_ident()
        begun = self._begun.pop(me, "") + text
        *lines, rest = begun.split("\n")
        for line in lines:
            self._sort(line)
        if rest:
            self._begun[me] = rest
        return len(text)

    def flush(self) -> None:
        for me in list(self._begun):
            rest = self._begun.pop(me, "")
            if rest and self._passes_others:
                self._status.line(rest)
            elif rest:
                self._log.write(rest)
        self._status.stream.flush()

    def _sort(self, line: str) -> None:
        forwarded = _FROM_WORKER.match(line)
        inner = _REPEATED.sub("", line[forwarded.end() :]) if forwarded else line
        if _PROGRESS.match(inner):
            self._status.progress(inner)
            return
        own = _OWN_LINE.match(inner)
        told = own and (not forwarded or own.group(1) not in ("DEBUG", "INFO") or own.group(2).startswith(_TELLS))
        if told or (self._passes_others and not forwarded):
            self._status.line(f"{inner}\n")
        else:
            self._log.write(f"{line}\n")


def progress_stream(stream: Any) -> Any:
    """The stream that a bar is drawn on: behind the filter, which would take a bar's line for another's."""
    return stream.terminal if isinstance(stream, _Filter) else stream
