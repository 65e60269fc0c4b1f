"""Commands run as a user runs them, in processes that a test can look into and kill."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 1200.0
"""How long a test waits for what must come: many times what a quiet machine needs, so that it ends only what hangs."""


def start(*arguments: str) -> subprocess.Popen[str]:
    """`raycurate ARGUMENTS` with a local Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "raycurate.cli", *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE_S) -> str:
    """What it said; it must have succeeded."""
    said, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, said
    return said


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], what: str, timeout: float = PATIENCE_S
) -> None:
    """Wait for a condition while the process runs."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"the run ended before {what}:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"{what}: not in {timeout} s"
        time.sleep(0.01)


def tree(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return  # it ended meanwhile


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


class MemoryOf:
    """The largest memory of a process and all below it, in bytes; pages that several share count once."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while Path(f"/proc/{self.pid}").exists():
            self.peak = max(self.peak, sum(_proportional(pid) for pid in tree(self.pid)))
            time.sleep(0.5)


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
