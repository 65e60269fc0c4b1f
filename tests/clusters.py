"""Real Ray heads for tests: started as processes of their own, ended by process, never by `ray stop`.

`ray stop` ends every Ray on the machine, the neighbour's too. Each head here gets free ports, its own token
and a temporary folder of its own with a short path (Ray puts Unix sockets in it, whose paths may have 107
characters), and only processes that belong to that folder are ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import requests

from tests.processes import PATIENCE_S

_UNSET_FOR_HEADS = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")


@dataclass(frozen=True)
class HeadNode:
    """A running head: how to reach it, and the environment a client process needs."""

    gcs_address: str
    dashboard: str
    metrics_port: int
    token: str | None
    log: Path
    env: dict[str, str] = field(repr=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def head_node(
    tmp_path: Path,
    *,
    num_cpus: int = 2,
    auth: Literal["token", "disabled"] = "disabled",
    timeout_s: float = PATIENCE_S,
    extra_args: tuple[str, ...] = (),
    extra_env: dict[str, str] | None = None,
) -> Iterator[HeadNode]:
    """A Ray head with a dashboard and a metrics port on 127.0.0.1.

    `HeadNode.env` is an environment for client processes: authentication set as the head wants it,
    RAY_ADDRESS unset. The head's own output goes to `tmp_path/ray-head.log`.
    """
    # Not under tmp_path: pytest's paths are too long for Ray's Unix sockets.
    session = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
    token = uuid.uuid4().hex if auth == "token" else None
    env = {k: v for k, v in os.environ.items() if k not in _UNSET_FOR_HEADS and not k.startswith("RAY_JOB")}
    env |= {"RAY_AUTH_MODE": auth, "RAY_USAGE_STATS_ENABLED": "0", **(extra_env or {})}
    if token:
        env["RAY_AUTH_TOKEN"] = token
    gcs, dashboard, agent, metrics = (free_port() for _ in range(4))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *(f"--port={gcs}", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", f"--num-cpus={num_cpus}"),
        *(f"--temp-dir={session}", "--object-store-memory=200000000", "--disable-usage-stats", *extra_args),
    ]
    log = tmp_path / "ray-head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_until_up(process, f"http://127.0.0.1:{dashboard}", agent, log, timeout_s)
        yield HeadNode(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", metrics, token, log, env)
    finally:
        _end(process, session)
        shutil.rmtree(session, ignore_errors=True)


def _wait_until_up(process: subprocess.Popen[bytes], dashboard: str, agent: int, log: Path, timeout_s: float) -> None:
    """Wait for the dashboard, and for the node's agent, which is what starts jobs."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the Ray head ended with {process.returncode}:\n{log.read_text()}")
        try:
            requests.get(f"{dashboard}/api/version", timeout=20)
            with socket.create_connection(("127.0.0.1", agent), timeout=20):
                return
        except (requests.ConnectionError, requests.Timeout, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the Ray head was not up after {timeout_s:g} s:\n{log.read_text()}")


def _end(process: subprocess.Popen[bytes], session: Path) -> None:
    """End the head and what it started: `--block` ends its children at SIGTERM; stragglers name our folder."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    left = {p.pid: p for p in started if p.is_running()}
    for candidate in psutil.process_iter(["cmdline"]):
        if any(f"{session}/" in part or part.endswith(f"={session}") for part in candidate.info["cmdline"] or []):
            left[candidate.pid] = candidate
    for straggler in left.values():
        try:
            straggler.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(left.values()), timeout=10)
