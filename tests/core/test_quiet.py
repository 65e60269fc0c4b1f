"""What reaches the terminal and what the log file, in a process of its own: descriptors are replaced there."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

PROGRAM = """
import logging, os, sys, warnings
from raycurate.core.observe import Progress, get_logger, setup_logging
from raycurate.core.quiet import quiet
setup_logging()
with quiet(verbose={verbose}) as path:
    os.write(2, b"[2026-11-28 15:07:35,789 E 1 1] core_worker.cc:2465: of the C++ core\\n")
    print("WARNING token.py:85 -- of a library", file=sys.stderr)
    warnings.warn("of a library too")
    logging.getLogger("ray").warning("of ray's logger")
    get_logger("raycurate.embed").info("embed: our own line")
    print("\\x1b[36m(MapWorker(MapBatches(Encode)) pid=7)\\x1b[0m 15:07:59 INFO raycurate.encoders: of a worker")
    print("(MapWorker(MapBatches(Encode)) pid=7, ip=10.0.0.1) 15:07:59 WARNING raycurate.encoders: a worker's warning",
          file=sys.stderr)
    print("(RayTrainWorker pid=8) 15:07:59 INFO raycurate.training.logs: step 3: val_loss 0.5")
    print("(RayTrainWorker pid=8) a print of a library in a worker")
    print("(RayTrainWorker pid=8) finetune (loss 0.5): 3/96 steps, 0.5/s, 6 s, 186 s to go")
    sys.stdout.write("half a ")
    sys.stdout.write("line\\n")
    print("the result")
    with Progress("embed", total=4, unit="document", every_s=0) as progress:
        progress.update(2, note="1 rejected")
print("printed at the end")
print("an error at the end", file=sys.stderr)
print(path, file=open({told!r}, "w"))
{last}
"""
OURS = [
    "embed: our own line", "a worker's warning", "step 3: val_loss 0.5", "half a line", "the result",
    "printed at the end", "an error at the end",
]  # fmt: skip
OTHERS = [
    "of the C++ core", "of a library", "of a library too", "of ray's logger", "of a worker",
    "a print of a library in a worker",
]  # fmt: skip


def run(folder: Path, *, terminal: bool = False, verbose: bool = False, last: str = "") -> tuple[str, str, int]:
    """What was shown, what the log holds, and the exit code."""
    told = str(folder / "told")
    code = PROGRAM.format(verbose=verbose, told=told, last=last)
    environment = os.environ | {"RAYCURATE_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-c", code]
    if not terminal:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        shown, status = done.stdout + done.stderr, done.returncode
    else:
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        process = subprocess.Popen(command, env=environment, stdout=follower, stderr=follower)
        os.close(follower)
        chunks = []
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:
                break  # the other end was closed
            if not chunk:
                break
            chunks.append(chunk)
        status = process.wait()
        os.close(leader)
        shown = b"".join(chunks).decode()
    path = Path(told).read_text().strip() if Path(told).exists() else "None"
    return shown, Path(path).read_text() if path != "None" else "", status


@pytest.mark.parametrize("terminal", [False, True])
def test_own_lines_are_shown_and_others_go_to_the_log(tmp_path, terminal):
    shown, log, status = run(tmp_path, terminal=terminal)
    assert status == 0, shown
    for line in OURS:
        assert shown.count(line) == 1, (line, shown)
        assert line not in log
    for line in OTHERS:
        assert f"{line}\n" in log, (line, log)
        assert f"{line}\n" not in shown.replace("\r", "")
    assert "finetune (loss 0.5): 3/96 steps" in shown
    assert "1 rejected" in shown
    assert ("\x1b[K" in shown) == terminal  # a status line that is written over, or a line that stays
    assert "(RayTrainWorker" not in shown


def test_verbose_changes_nothing(tmp_path):
    shown, log, status = run(tmp_path, verbose=True)
    assert status == 0
    assert log == ""
    for line in [*OURS, *OTHERS]:
        assert line in shown


def test_a_traceback_of_ours_is_shown(tmp_path):
    shown, _, status = run(tmp_path, last="raise RuntimeError('a bug')")
    assert status == 1
    assert "RuntimeError: a bug" in shown


def test_where_stderr_is_not_the_process_own_nothing_is_replaced(capsys):
    from raycurate.core.quiet import quiet

    with quiet() as path:
        print("seen", file=sys.stderr)
    assert path is None
    assert capsys.readouterr().err == "seen\n"
