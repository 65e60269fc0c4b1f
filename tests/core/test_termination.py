"""SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from raycurate.core.termination import SigtermIsCtrlC

PROGRAM = """
import signal, sys, time
from raycurate import cli
{before}
def wait(options):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as Ray does when it starts
    options.sigterm.take()
    print("ready", flush=True)
    time.sleep(600)
cli._COMMANDS["list_commands"] = wait
sys.exit(cli.main([]))
"""


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)"], ids=["shell", "background"])
def test_the_exit_code_is_143_and_the_message_that_of_ctrl_c(before):
    command = [sys.executable, "-c", PROGRAM.format(before=before)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 143, said
    assert "give the same command again" in said
    assert "Traceback" not in said


def test_the_handler_before_is_there_again():
    before = signal.getsignal(signal.SIGTERM)
    with SigtermIsCtrlC() as sigterm:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert sigterm.came
    assert signal.getsignal(signal.SIGTERM) is before
