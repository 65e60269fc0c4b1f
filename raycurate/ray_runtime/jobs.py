"""Send a stage to a cluster as a Ray job, follow its log, and say how it ended.

What travels is the recipe with its overrides applied and its references as they are written: `${env:HF_TOKEN}` is
filled in by the job, from the environment of the cluster, so no secret leaves this machine in a file, a command
line or a runtime_env (all three are shown in the dashboard). Paths of this machine mean nothing on another one
and are refused before anything is sent, all of them in one message.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import yaml

from raycurate.core import storage
from raycurate.core.config import SHARED_KEYS, Recipe
from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.core.places import is_no_path, kind_at
from raycurate.core.redaction import hide_credentials, redact
from raycurate.ray_runtime import private
from raycurate.ray_runtime.cluster import refuse_secrets
from raycurate.ray_runtime.connect import TOKEN_HELP

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RECIPE_FILE = "recipe.yaml"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_S = 0.5


@dataclass(frozen=True)
class JobResult:
    """A job as it was last seen; `message` is Ray's, with the last lines of the log when the job failed."""

    job_id: str
    status: str
    message: str
    address: str

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong so far: the job succeeded, or was not waited for."""
        return self.status not in ("FAILED", "STOPPED")

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def summary(self) -> str:
        """What a user wants to read last."""
        text = f"job {self.job_id} {self.status.lower()} ({self.address})"
        return text if self.status == "SUCCEEDED" or not self.message else f"{text}\n{self.message.rstrip()}"


def submit(
    stage: str,
    recipe: Recipe,
    *,
    types: Callable[[str], Any] = lambda _: Any,
    address: str | None = None,
    wait: bool = True,
    runtime_env: Mapping[str, Any] | None = None,
    python: str | None = None,
    shared_paths: Iterable[str] = (),
    module: str = "raycurate.cli",
    echo: Callable[[str], None] | None = None,
) -> JobResult:
    """Run `python -m MODULE STAGE -c recipe.yaml` as a job.

    Args:
        stage: a stage's name, or `run`.
        recipe: the recipe with its overrides; it is sent with its references as written.
        types: the name of a stage -> the model that declares its options, and which of them are paths.
        address: the dashboard (http://HOST:8265) or the cluster's host:port. Without it RAY_API_SERVER_ADDRESS,
            RAY_ADDRESS or the head on this machine.
        wait: follow the log and wait for the end.
        runtime_env: Ray's environment for the job; `working_dir` is taken by the recipe.
        python: interpreter on the head; this one's by default when the head is this machine, else `python`.
        shared_paths: prefixes of paths that every node has mounted.
        module: what is run; a module with a command line like that of `raycurate.cli`.
        echo: gets the log in pieces as they come; written to stdout by default.

    Raises:
        ConfigError: a secret as plain text, or paths of this machine for a cluster elsewhere.
        RaycurateError: the cluster cannot be reached, refuses the token, or refuses the job.
    """
    environment = _environment(runtime_env)
    _refuse_literal_secrets(recipe)
    client = _client(address)
    url = client.get_address()
    here = _head_is_here(url)
    if not here:
        _refuse_local_paths(stage, recipe, shared_paths, url, types)
    interpreter = python or (sys.executable if here else "python")
    entrypoint = shlex.join([interpreter, "-m", module, stage, "-c", RECIPE_FILE])
    with tempfile.TemporaryDirectory(prefix="raycurate-job-") as folder:
        text = yaml.safe_dump(recipe.values, sort_keys=False, allow_unicode=True)
        Path(folder, RECIPE_FILE).write_text(text, encoding="utf-8")
        try:
            job = client.submit_job(
                entrypoint=entrypoint,
                submission_id=f"raycurate-{stage}-{uuid.uuid4().hex[:12]}",
                runtime_env={**environment, "working_dir": folder},
                metadata={"raycurate_stage": stage, "raycurate_recipe": hide_credentials(recipe.source)},
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise RaycurateError(f"the cluster refused the job ({error})", where=url) from error
    if wait:
        _follow(client, job, echo or _to_stdout)
    details = client.get_job_info(job)
    return JobResult(job, str(details.status), details.message or "", url)


def _environment(given: Mapping[str, Any] | None) -> dict[str, Any]:
    environment = dict(given or {})
    if "working_dir" in environment:
        raise ConfigError(
            "working_dir is taken by the recipe that is sent along", where="runtime_env", fix="Use py_modules for code"
        )
    try:
        refuse_secrets(environment)
    except ValueError as error:
        raise ConfigError(str(error), where="runtime_env") from None
    return environment


def _refuse_literal_secrets(recipe: Recipe) -> None:
    found = [key for key, value, hidden in _pairs(recipe.values, redact(recipe.values)) if value != hidden]
    if found:
        raise ConfigError(
            f"{', '.join(found)} would be sent as plain text and shown in the dashboard",
            where=recipe.source,
            fix="Set it in the environment of the cluster and write ${env:NAME} in its place",
        )


def _pairs(value: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two values of one shape, each with its dotted key."""
    if isinstance(value, Mapping):
        for k, v in value.items():
            yield from _pairs(v, other[k], f"{key}.{k}" if key else str(k))
    elif isinstance(value, list | tuple):
        for v, o in zip(value, other, strict=True):
            yield from _pairs(v, o, key)
    else:
        yield key, value, other


def _refuse_local_paths(
    stage: str, recipe: Recipe, shared_paths: Iterable[str], url: str, types: Callable[[str], Any]
) -> None:
    prefixes = [p.rstrip("/") for p in shared_paths]
    sections = {k: v for k, v in recipe.values.items() if k in SHARED_KEYS or stage in (k, "run")}
    found = [
        f"{key}={value}"
        for key, value, _ in _pairs(sections, sections)
        if isinstance(value, str)
        and _is_path_here(value, kind_at(key.split("."), types))
        and not any(value == p or value.startswith(f"{p}/") for p in prefixes)
    ]
    if found:
        raise ConfigError(
            f"these are paths of this machine, which the cluster does not see: {', '.join(found)}",
            where=f"submitting to {url}",
            fix="Use s3:// or gs:// paths, or name the mount that every node has with --shared-path PREFIX",
        )


def _is_path_here(value: str, kind: str | None) -> bool:
    """Whether an option's value is a path of this machine, relative or not.

    Args:
        kind: what the option is declared to name; None for an option that is no place, whose value counts when it is
            an absolute path of something that is here.
    """
    if value.startswith("${") or not value:
        return False  # filled in over there, or from a value that is looked at itself
    if is_no_path(value) or storage.is_remote(value):
        return False
    absolute = value.startswith(("/", "~", "./", "../", "file://"))
    if kind is None:
        return absolute and os.path.exists(os.path.expanduser(value))
    if kind in ("model", "state"):  # org/name is a model of the hub unless there is a folder of that name
        return absolute or os.path.exists(value)
    return True


def _client(address: str | None) -> JobSubmissionClient:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if address and "://" not in address and address.endswith(":8265"):
        address = f"http://{address}"  # the dashboard's own port
    _use_token_of_this_machine(address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"))
    where = f"Ray's job server{f' at {address}' if address else ''}"
    try:
        with _said_address(address):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RaycurateError("the token is missing or wrong", where=where, fix=TOKEN_HELP) from error
    except (RuntimeError, ValueError, OSError) as error:
        _explain_unreachable(error, where)


def _explain_unreachable(error: BaseException, where: str) -> NoReturn:
    if "multiple active Ray instances" in str(error):
        raise RaycurateError(
            "several Rays run on this machine",
            where=where,
            fix="Say which with --address http://HOST:PORT, the address of its dashboard",
        ) from error
    raise RaycurateError(
        f"it cannot be reached ({error})",
        where=where,
        fix="Start a head with `ray start --head`, or give --address http://HOST:8265 (or RAY_API_SERVER_ADDRESS)",
    ) from error


@contextmanager
def _said_address(address: str | None) -> Iterator[None]:
    """Ray lets its environment variables override the address it is given; what the user said counts more."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    if address:
        os.environ[name] = address
    try:
        yield
    finally:
        if address and before is None:
            del os.environ[name]
        elif before is not None:
            os.environ[name] = before


def _use_token_of_this_machine(address: str | None) -> None:
    """Turn token authentication on for a head on this machine when a token is here and no mode was chosen.

    `ray start` and `ray.init` do the same. To another machine the token goes only where RAY_AUTH_MODE says so.
    """
    host = urlsplit(address if "://" in address else f"//{address}").hostname if address else None
    if host is None or _is_this_machine(host):
        private.use_token_if_there()


def _is_this_machine(host: str) -> bool:
    """Whether an address of `host` can be bound here, which only one's own can."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, _, _, place in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.bind((place[0], 0))
            return True
        except OSError:
            continue
    return False


def _head_is_here(url: str) -> bool:
    """Whether the head is this machine; asked of the cluster, since a forwarded port looks local and is not."""
    from ray.util.state import list_nodes

    if not _is_this_machine(urlsplit(url).hostname or ""):
        return False
    with _said_address(url):
        heads = list_nodes(address=url, filters=[("is_head_node", "=", "True"), ("state", "=", "ALIVE")])
    return bool(heads) and all(_is_this_machine(h.node_ip) for h in heads)


def _follow(client: JobSubmissionClient, job: str, echo: Callable[[str], None]) -> None:
    """Write the log as it comes until the job has ended; Ctrl-C leaves the job running."""
    import asyncio

    async def tail() -> None:
        async for piece in client.tail_job_logs(job):
            echo(piece)

    try:
        try:
            asyncio.run(tail())
        except RuntimeError as error:  # the connection was cut; the job goes on
            echo(f"(the log cannot be followed any more: {error}; waiting for the job)\n")
        while str(client.get_job_status(job)) not in _ENDED:
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        echo(f"\njob {job} goes on; stop it with: ray job stop {job} --address {client.get_address()}\n")
        raise


def _to_stdout(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()
