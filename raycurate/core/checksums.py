"""Checksums of an output's files: made once, before its manifest is written, and compared by `raycurate verify`.

A stage takes an output for done by the files' sizes, which a listing gives; only `verify` reads all bytes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from raycurate.core import storage

Tasks = Callable[[Callable[[list[str]], list[str]], list[list[str]]], list[list[str]]]
"""A function and its arguments -> its results, in order."""
_CHUNK = 1 << 22
_THREADS = 8
_ON_THE_DRIVER = 1 << 30  # bytes; more is read by tasks of the cluster, where one is connected
_A_TASK = 1 << 30


def checksum(path: str) -> str:
    """`blake2b:` and 32 hex digits over the bytes of a file."""
    digest = hashlib.blake2b(digest_size=16)
    filesystem, inner = storage.filesystem(path)
    with filesystem.open_input_stream(inner, compression=None) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return f"blake2b:{digest.hexdigest()}"


def checksums(files: Sequence[tuple[str, int]], *, tasks: Tasks | None = None) -> list[str]:
    """The checksums of files, given as path and size, in their order.

    Args:
        tasks: how work is spread over a cluster, for more than a machine should read alone.
    """
    if tasks is None or sum(size for _, size in files) <= _ON_THE_DRIVER:
        return _by_threads([path for path, _ in files])
    parts: list[list[str]] = []
    room = 0
    for path, size in files:
        if room <= 0:
            parts.append([])
            room = _A_TASK
        parts[-1].append(path)
        room -= size
    return [found for part in tasks(_by_threads, parts) for found in part]


def _by_threads(paths: list[str]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(checksum, paths))
