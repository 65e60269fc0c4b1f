"""Reach Ray or start it.

Only the command line and the jobs call `connect`; the library itself never starts or ends a Ray. The rules
are few: a Ray that is connected already is used, an address is attached to, a job never starts a second
cluster, and what was only attached to is never shut down. `ray.init(address="local")` is used for a Ray of
our own, because a stale address file or a neighbour's cluster would otherwise be joined by accident.

A Ray that is started here listens on this machine's loopback alone: nobody else has business with it. And no Ray
of ours puts the current folder on its workers' path, where a file named as a module of Python's own
(queue.py) would be run in its place.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.core.observe import get_logger
from raycurate.ray_runtime import leftovers, private

TOKEN_HELP = (
    "This cluster asks for Ray's token: set RAY_AUTH_MODE=token and give the token of the cluster in RAY_AUTH_TOKEN, "
    "in a file named by RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
)
START_S = 120.0  # Ray's own limit of 30 s is too short where other work runs
_SLOW_S = 20.0
_LOOPBACK = "127.0.0.1"
_ADDRESS_SPACE = 24 << 30  # bytes that a process of Ray may map; it uses little of it
_SOCKET_PATH = 107  # bytes, Linux's limit
_IN_SESSION = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
log = get_logger(__name__)


@dataclass(frozen=True)
class ClusterInfo:
    """The Ray this process is connected to; `owned` when this process started it."""

    address: str
    owned: bool
    dashboard: str | None
    in_job: bool


def in_job() -> bool:
    """Whether this process is the entrypoint of a Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connect(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    dashboard: bool = False,
    environment: dict[str, str] | None = None,
) -> ClusterInfo:
    """Connect to Ray: the one that is connected already, else `address`, else RAY_ADDRESS, else a new local one.

    Args:
        address: `host:port` of a cluster's GCS, `auto` for the one running here, `local` for a new one.
        num_cpus: logical CPUs of a Ray that is started here.
        dashboard: whether a Ray that is started here gets a dashboard.
        environment: variables that all workers of this program get.

    Raises:
        ConfigError: an address of a kind that cannot be used here, or `num_cpus` for a cluster that runs already.
        RaycurateError: nobody answers, versions differ, the token is missing or wrong, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        return _info(owned=False)
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(target)
    if target == "local":
        if in_job():
            raise ConfigError(
                "a job runs on the cluster it was submitted to and does not start another",
                where=f"address {target}" if address else "RAY_ADDRESS, which is not set in this job",
                fix="Leave the address out",
            )
        os.environ.update(environment or {})  # what it starts inherits it
        _start(num_cpus=num_cpus, include_dashboard=dashboard)
        leftovers.watch(private.own_node().get_session_dir_path())
        return _info(owned=True)
    if num_cpus is not None:
        raise ConfigError(
            f"num_cpus={num_cpus} sets the size of a Ray that is started here, and {target} runs already",
            fix="Leave num_cpus out, or use address=local",
        )
    _knock(target)
    extra: dict[str, Any] = {"runtime_env": {"env_vars": environment}} if environment else {}
    if not in_job():
        extra["job_config"] = private.own_path_job()
    try:
        ray.init(address=target, logging_level=logging.WARNING, **extra)
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        _explain_connection(error, target)
    return _info(owned=False)


def disconnect(info: ClusterInfo) -> None:
    """End the Ray that `connect` started; leave any other as it is."""
    import ray

    if info.owned and ray.is_initialized():
        ray.shutdown()


def _info(*, owned: bool) -> ClusterInfo:
    import ray

    context = ray.get_runtime_context()
    url = private.own_node().address_info.get("webui_url")
    return ClusterInfo(context.gcs_address, owned, f"http://{url}" if url else None, in_job())


# ------------------------------------------------------------------------ a Ray of our own


def _start(**options: Any) -> None:
    """Start a Ray on this machine and connect to it.

    Raises:
        RaycurateError: it does not start; within seconds where that can be known, else after START_S.
    """
    import ray

    _check_limits()
    began = time.monotonic()
    try:
        with private.on_address(_LOOPBACK) as place, _patience():
            options |= {"job_config": private.own_path_job(), "logging_level": logging.WARNING}
            ray.init(address="local", **place, **options)
    except (Exception, SystemExit) as error:
        ray.shutdown()
        if isinstance(error, RaycurateError):
            raise
        _explain_start(error, time.monotonic() - began)


def _patience() -> AbstractContextManager[None]:
    """Wait up to START_S for the node to come up, as long as its processes live; Ray itself waits 30 s."""
    return private.asking_for_node(_until_it_answers)


def _until_it_answers(ask: Callable[..., Any]) -> Callable[..., Any]:
    deadline = time.monotonic() + START_S

    def ask_until(*arguments: Any) -> Any:
        warned = False
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                left = deadline - time.monotonic()
                if left <= 0 or not _child_lives("raylet"):
                    raise RaycurateError(
                        f"it did not come up within {START_S:.0f} s" if left <= 0 else "its node process ended at once",
                        where="starting Ray on this machine",
                        fix=f"{_load()}; its logs are in {_temporary()}/ray/session_latest/logs",
                    ) from None
                if left < START_S - _SLOW_S and not warned:
                    warned = True
                    log.warning("Ray is slow to start (%s); waiting up to %.0f s", _load(), START_S)
                time.sleep(0.2)

    return ask_until


def _load() -> str:
    return f"This machine's load is {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def _child_lives(name: str) -> bool:
    """Whether a process of this name was started here and runs."""
    children = [c for task in Path("/proc/self/task").glob("*/children") for c in task.read_text().split()]
    if not children:
        return True  # nobody can tell, or they are not listed here
    states = []
    for child in children:
        try:
            status = Path(f"/proc/{child}/stat").read_text()
        except OSError:
            continue
        if f"({name})" in status:
            states.append(status.rpartition(")")[2].split()[0])
    return any(state not in ("Z", "X") for state in states)


def _temporary() -> str:
    """Where Ray puts its sessions."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _check_limits() -> None:
    """What would let Ray hang or die without a word."""
    where = "starting Ray on this machine"
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < _ADDRESS_SPACE:
        raise RaycurateError(
            f"a process may map {most / 2**30:.1f} GiB of memory only, and Ray's map more than they use",
            where=where,
            fix=f"Set `ulimit -v unlimited` (or {_ADDRESS_SPACE >> 10}) in this shell",
        )
    folder = os.path.abspath(_temporary())
    if len(os.fsencode(folder)) + _IN_SESSION > _SOCKET_PATH:
        raise RaycurateError(
            f"the path is too long for Ray's sockets ({_SOCKET_PATH - _IN_SESSION} bytes at most)",
            where=f"TMPDIR={folder}",
            fix="Set RAY_TMPDIR=/tmp, or another short path",
        )


def _explain_start(error: BaseException, after_s: float) -> NoReturn:
    where = "starting Ray on this machine"
    logs = f"its logs are in {_temporary()}/ray/session_latest/logs"
    if isinstance(error, OSError) and error.filename:
        raise RaycurateError(
            f"{where} failed ({error.strerror})",
            where=str(error.filename),
            fix="Ray keeps its token in ~/.ray and its sessions in TMPDIR: set HOME and TMPDIR to folders that can be "
            "written to",
        ) from error
    said = str(error).strip().splitlines()
    what = said[0] if said else type(error).__name__
    raise RaycurateError(f"it failed after {after_s:.0f} s ({what})", where=where, fix=f"{_load()}; {logs}") from error


# ------------------------------------------------------------------------ a Ray that runs already


def _check_address(target: str) -> None:
    if target.startswith(("http://", "https://")):
        raise ConfigError(
            "that is the address of a dashboard, which takes jobs",
            where=f"address {target}",
            fix="Send a job there with `raycurate submit STAGE --address ...`, or give the cluster's host:port",
        )
    if target.startswith("ray://"):
        raise ConfigError(
            "Ray Client (ray://) cannot run Ray Data pipelines well",
            where=f"address {target}",
            fix="Send a job: `raycurate submit STAGE --address http://HOST:8265`",
        )


def _knock(target: str) -> None:
    """Fail at once when nobody listens or the token is refused.

    Ray itself tries a wrong token twenty times, and a dead address for a minute before it ends the process.
    """
    from ray.exceptions import RayError

    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, which Ray looks up by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        private.ask_gcs(target)
    except (OSError, RuntimeError, RayError) as error:
        _explain_connection(error, target)


def _explain_connection(error: BaseException, target: str) -> NoReturn:
    from ray.exceptions import AuthenticationError

    where = f"Ray at {target}"
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    if any(isinstance(e, AuthenticationError) or "InvalidAuthToken" in str(e) for e in chain):
        raise RaycurateError("the token is missing or wrong", where=where, fix=TOKEN_HELP) from error
    mismatch = next((str(e) for e in chain if "Version mismatch" in str(e)), None)
    if mismatch:
        raise RaycurateError(
            mismatch, where=where, fix="Use the same Ray and the same Python (major.minor) here and on the cluster"
        ) from error
    raise RaycurateError(
        f"it cannot be reached ({error})",
        where=where,
        fix="Check that it runs and that RAY_ADDRESS is its host:port, or unset RAY_ADDRESS to run on this machine",
    ) from error
