"""How the folders of a run are reached, where that was said as options: keys, endpoints, regions, as fsspec names them.

What the environment says needs none of this. Options are held in memory, here and by the cluster for the processes of
the same job, and are written nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pyarrow import fs as pafs

from raycurate.core.errors import ConfigError, nearest

_here: dict[str, dict[str, Any]] = {}
_S3_NAMES = {  # fsspec's (s3fs's) names: pyarrow's
    "key": "access_key",
    "secret": "secret_key",
    "token": "session_token",
    "anon": "anonymous",
    "endpoint_url": "endpoint_override",
    "region_name": "region",
    "region": "region",
}


def use(paths: Iterable[str], options: Mapping[str, Any]) -> None:
    """Reach what lies at or under these paths with these options, in all processes of this job.

    Raises:
        ConfigError: a path that is local, or an option that nothing is known of.
    """
    from raycurate.core import storage

    if not options:
        return
    for path in paths:
        if not storage.is_remote(path):
            raise ConfigError("storage options are for URIs, this is a local path", where=path, fix="Leave them out")
        filesystem_with(path, options)
        _here[_root(path)] = dict(options)
    _tell_the_job()


def options_for(path: str) -> dict[str, Any] | None:
    """The options of the longest path that holds `path`; None where none were given."""
    known = {**_of_the_job(), **_here}
    holders = [root for root in known if path == root or path.startswith(root.rstrip("/") + "/")]
    return known[max(holders, key=len)] if holders else None


def filesystem_with(path: str, options: Mapping[str, Any]) -> tuple[pafs.FileSystem, str]:
    """The filesystem that holds `path`, made with these options, and the path as that filesystem names it.

    Raises:
        ConfigError: an option that nothing is known of.
    """
    scheme, _, inner = path.partition("://")
    try:
        if scheme == "s3":
            return pafs.S3FileSystem(**_for_s3(options)), inner
        import fsspec

        return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme, **options))), inner
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"no filesystem can be made with these storage options ({error})", where=path) from None


def _for_s3(options: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in options.items() if name != "client_kwargs"}
    flat |= options.get("client_kwargs") or {}
    made: dict[str, Any] = {}
    for name, value in flat.items():
        if name == "use_ssl":
            made["scheme"] = "https" if value else "http"
        elif name in _S3_NAMES:
            made[_S3_NAMES[name]] = value
        else:
            close = nearest(name, _S3_NAMES)
            raise ConfigError(
                f"'{name}' is no storage option of s3://; known are {', '.join(_S3_NAMES)}, use_ssl",
                where="storage_options",
                fix=f"Did you mean '{close}'?" if close else "Leave it out",
            )
    scheme, separator, host = str(made.get("endpoint_override", "")).rpartition("://")
    if separator:
        made |= {"endpoint_override": host, "scheme": scheme}
    return made


def _root(path: str) -> str:
    """A path without what is a glob in it."""
    parts = path.rstrip("/").split("/")
    globs = [place for place, part in enumerate(parts) if set(part) & set("*[")]
    return "/".join(parts[: globs[0]] if globs else parts)


def _tell_the_job() -> None:
    key = _job_key()
    if key is not None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(key, json.dumps({**_of_the_job(), **_here}).encode(), overwrite=True)


def _of_the_job() -> dict[str, dict[str, Any]]:
    """What the driver told; asked for anew each time, for a worker outlives the stage that it was started for."""
    key = _job_key()
    if key is None:
        return {}
    from ray.experimental.internal_kv import _internal_kv_get

    told: dict[str, dict[str, Any]] = json.loads(_internal_kv_get(key) or b"{}")
    return told


def _job_key() -> str | None:
    """Where the cluster keeps this job's options; None outside of Ray."""
    import sys

    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    return f"raycurate-access-{ray.get_runtime_context().get_job_id()}"
