"""Ends what is left of a Ray of our own when its program was killed.

Most of Ray's processes notice within seconds that their program is gone; two agents live on for a minute. So a
small process waits for the program's end and then ends all that belongs to that Ray's session. It runs this file
alone, and imports nothing but Python's own modules.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

_LOOK_S = 1.0
_BY_ITSELF_S = 10.0  # what Ray's processes get to end by themselves


def watch(session: str) -> None:
    """Start the process that looks after the Ray session in the folder `session`, for this program's lifetime."""
    if not os.path.isdir("/proc/self"):
        return
    command = [sys.executable, "-S", "-E", __file__, str(os.getpid()), session]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True, close_fds=True)


def end_after(program: int, session: str, *, by_itself_s: float = _BY_ITSELF_S) -> None:
    """Wait until `program` is gone, and kill what then is left of the session."""
    born = _born(program)
    while born and _born(program) == born:
        time.sleep(_LOOK_S)
    until = time.monotonic() + by_itself_s
    while _of_the_session(session) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    for process in _of_the_session(session):
        try:
            os.kill(process, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _of_the_session(session: str) -> list[int]:
    """Processes that name the session's folder in their command, but this one."""
    wanted, own = os.fsencode(session), os.getpid()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == own:
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as stream:
                command = stream.read()
        except OSError:
            continue
        if wanted in command:
            found.append(int(entry))
    return found


def _born(process: int) -> str:
    """When a process began; empty when it is gone or a zombie."""
    try:
        with open(f"/proc/{process}/stat") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


if __name__ == "__main__":
    end_after(int(sys.argv[1]), sys.argv[2])
