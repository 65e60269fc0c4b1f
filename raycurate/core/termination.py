"""SIGTERM, as schedulers and `kill` send it, ends a command as Ctrl-C does: what is finished is kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class SigtermIsCtrlC:
    """While open, SIGTERM becomes Ctrl-C; `came` says whether one did.

    Ray puts a handler of its own in place when it starts, so `take` is called again after that. Outside the main
    thread, which alone gets signals, nothing is changed.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGTERM)
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def take(self) -> None:
        """Make SIGTERM ours."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)  # a training has its own way of ending then
        else:
            raise KeyboardInterrupt  # a shell's background process ignores Ctrl-C, but not this
