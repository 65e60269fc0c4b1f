"""What a killed program leaves of its Ray is ended; what is another's is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from raycurate.ray_runtime.leftovers import end_after
from tests.processes import PATIENCE_S

SLEEP = "import time; time.sleep(3600)"


def test_what_names_the_session_is_ended_once_the_program_is_gone(tmp_path: Path) -> None:
    session = str(tmp_path / "session_1")
    program = subprocess.Popen([sys.executable, "-c", SLEEP])
    agent = subprocess.Popen([sys.executable, "-c", SLEEP, f"--session-dir={session}"])
    other = subprocess.Popen([sys.executable, "-c", SLEEP, f"--session-dir={tmp_path}/session_2"])
    try:
        program.kill()
        program.wait(PATIENCE_S)
        end_after(program.pid, session, by_itself_s=0)
        assert agent.wait(PATIENCE_S) == -9 and other.poll() is None
    finally:
        for process in (agent, other):
            process.kill()
            process.wait(PATIENCE_S)
