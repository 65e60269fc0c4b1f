"""Folders that are made once: the first process of a machine makes a folder, the others wait for it and find it.

    with once(folder) as temporary:
        if temporary is not None:  # else it is there
            write_into(temporary)

What is written lies in a temporary folder beside it, which gets the folder's name when the block ends without an error.
So the folder is never seen half-made. A lock file, gone at the end, lets one process work at a time; where the file
system has no locks, or machines that share it do not share theirs, several make the folder and the first one's stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raycurate.core.errors import RaycurateError


class Discard(Exception):
    """Raised inside `once`: what the block wrote is not to be kept; that is no error."""


@contextmanager
def once(folder: Path, *, mark: str | None = None) -> Iterator[Path | None]:
    """A new folder to fill, which becomes `folder` at the end of the block; None when `folder` is there already.

    Args:
        mark: a file that a whole folder has; a folder without it is made anew.

    Raises:
        RaycurateError: nothing can be written beside `folder`.
    """
    if _is_whole(folder, mark):
        yield None
        return
    with _one_at_a_time(folder) as alone:
        if _is_whole(folder, mark):  # another process has made it while this one waited
            yield None
            return
        start = f".{folder.name}-{socket.gethostname()}-"
        temporary = folder.with_name(f"{start}{uuid.uuid4().hex}")
        if alone:  # so whoever left such a folder on this machine is dead
            for remnant in folder.parent.iterdir():
                if remnant.name.startswith(start) and len(remnant.name) == len(temporary.name):
                    shutil.rmtree(remnant, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            _publish(temporary, folder, mark)
        except Discard:
            pass
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path, mark: str | None) -> bool:
    return folder.is_dir() if mark is None else (folder / mark).is_file()


def _publish(temporary: Path, folder: Path, mark: str | None) -> None:
    """Give a finished folder its name; when another machine was first, its folder stays."""
    if _is_whole(folder, mark):
        return
    for path in temporary.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    if mark is not None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder, mark):
            raise


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Only one process of a machine, and one thread of it, is inside; False where the file system has no locks."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, alone = _locked(path)
    except OSError as error:
        raise RaycurateError(
            f"the cache cannot be written ({error})",
            where=str(path.parent),
            fix="Name another cache folder: with RAYCURATE_CACHE, or with the option that named this one",
        ) from error
    try:
        yield alone
    finally:
        path.unlink(missing_ok=True)
        if alone:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # by name: a process that was forked inside has the file open too
        os.close(descriptor)


def _locked(path: Path) -> tuple[int, bool]:
    """An open lock file, and whether it is locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            return descriptor, False
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, True
        except FileNotFoundError:
            pass
        os.close(descriptor)  # whoever held it has ended and taken the file away
