"""One writer at a time: the lock that a run keeps in its output while it works.

The lock is a small file, `_lock.json`, which says who writes: host, process, since when. Its holder renews it every
few seconds. A local file is made by O_EXCL; on an object store, which has no such thing, the writer puts its own
token, waits, and holds the lock if the token is still there. A lock whose process is gone is taken over at once where
that can be seen (same machine), else after it has not been renewed for three beats; clocks are never compared.

A holder that was paused for so long that another took over finds out when it renews the lock, and before it commits.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from raycurate.core import storage
from raycurate.core.errors import RaycurateError
from raycurate.core.observe import get_logger

LOCK = "_lock.json"
BEAT_S = 10.0
SETTLE_S = 2.0
_held: dict[str, OutputLock] = {}
log = get_logger(__name__)


class OutputLockedError(RaycurateError):
    """Another run writes into this output, or has taken it over."""


class OutputLock:
    """The lock of one output folder.

    Args:
        folder: the output.
        stage: who wants it, for others to read.
        beat: seconds between two renewals.
        settle: seconds within which two writers of an object store see each other's token.
    """

    def __init__(self, folder: str, stage: str, *, beat: float = BEAT_S, settle: float = SETTLE_S) -> None:
        self.folder, self.stage, self.beat, self.settle = storage.normalise(folder), stage, beat, settle
        self.path = storage.join(self.folder, LOCK)
        self.token = uuid.uuid4().hex
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="output-lock", daemon=True)
        self._since = datetime.now(UTC).isoformat(timespec="seconds")

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputLockedError: another run holds it and is alive.
        """
        while not self._create():
            there = read_lock(self.folder)
            if there is None:
                continue  # released in between
            if _is_alive(there, self.folder, self.beat):
                raise OutputLockedError(
                    f"another run writes into this output: {describe(there)}",
                    where=self.folder,
                    fix=f"Wait for its end or stop it, or use another output folder. Where no such run is left, "
                    f"delete {self.path}",
                )
            log.info("%s: taking over the output of a run that is gone: %s", self.stage, describe(there))
            self._take_away(there)
        self._thread.start()

    def require_held(self) -> None:
        """Raises OutputLockedError when another run has taken over."""
        there = read_lock(self.folder)
        if there is None or there.get("token") != self.token:
            who = describe(there) if there else "somebody deleted the lock"
            raise OutputLockedError(
                f"this run was paused for so long that its output was taken over ({who})",
                where=self.folder,
                fix="Nothing was committed by this run; give the same command again once the other run has ended",
            )

    def release(self) -> None:
        """Give the lock back; a folder that holds nothing else goes too."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(self.beat)
        with suppress(OSError, RaycurateError):
            there = read_lock(self.folder)
            if there is not None and there.get("token") == self.token:
                storage.delete(self.path)
                if not storage.is_remote(self.folder):
                    os.rmdir(self.folder)  # only when it is empty

    def _content(self) -> bytes:
        me = {"token": self.token, "stage": self.stage, "since": self._since, "beat": self._beats, **_process()}
        return (json.dumps(me, indent=2) + "\n").encode()

    def _create(self) -> bool:
        """Make the lock if there is none."""
        if not storage.is_remote(self.folder):
            storage.make_dir(self.folder)
            try:
                return _create_whole(self.path, self._content())
            except OSError as error:
                raise RaycurateError(
                    f"it cannot be written into ({error.strerror or error})",
                    where=self.folder,
                    fix="Check its permissions and the room on its disk, or use another output folder",
                ) from error
        if read_lock(self.folder) is not None:
            return False
        storage.write_bytes(self.path, self._content())
        time.sleep(self.settle)
        there = read_lock(self.folder)
        return there is not None and there.get("token") == self.token

    def _take_away(self, dead: dict[str, Any]) -> None:
        """Remove a dead run's lock, and no other that has come in its place."""
        if storage.is_remote(self.folder):
            storage.delete(self.path)
            return
        with _one_at_a_time(self.folder):
            # A newcomer that looked earlier must not move the lock that another has made since, even for a moment.
            if (read_lock(self.folder) or {}).get("token") == dead.get("token"):
                self._move_away(dead)

    def _move_away(self, dead: dict[str, Any]) -> None:
        aside = _beside(self.path)
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return  # its run has come back to life, and ended
        if _parse(_bytes(aside)).get("token") != dead.get("token"):
            with suppress(FileExistsError):
                os.link(aside, self.path)  # it was a live one: back with it
        os.unlink(aside)

    def _renew(self) -> None:
        while not self._stopped.wait(self.beat):
            self._beats += 1
            with suppress(OSError, pa.ArrowException, RaycurateError):  # a store that is away for a moment
                there = read_lock(self.folder)
                if there is not None and there.get("token") == self.token:
                    storage.write_bytes(self.path, self._content())


@contextmanager
def output_lock(folder: str, stage: str) -> Iterator[OutputLock]:
    """Hold the lock of an output for the length of a block.

    Raises:
        OutputLockedError: another run holds it.
    """
    lock = OutputLock(folder, stage)
    lock.acquire()
    _held[lock.folder] = lock
    try:
        yield lock
    finally:
        del _held[lock.folder]
        lock.release()


def require_held(folder: str) -> None:
    """Raise OutputLockedError when this process took the lock of `folder` and has lost it since."""
    lock = _held.get(storage.normalise(folder))
    if lock is not None:
        lock.require_held()


def read_lock(folder: str) -> dict[str, Any] | None:
    """What the lock of an output says; None when there is none."""
    path = storage.join(folder, LOCK)
    for _ in range(2):  # it may go between the look and the reading
        if not storage.exists(path):
            return None
        with suppress(RaycurateError):
            return _parse(storage.read_bytes(path))
    return None


def is_locked(folder: str) -> bool:
    """Whether a run that may be alive holds the lock."""
    there = read_lock(folder)
    return there is not None and not _is_gone(there)


def describe(lock: dict[str, Any]) -> str:
    """Who holds a lock, in words."""
    since = str(lock.get("since", ""))
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()
        age = f", for {seconds / 3600:.1f} h" if seconds >= 3600 else f", for {max(0.0, seconds):.0f} s"
    except (ValueError, TypeError):
        age = ""
    stage, host, pid = (lock.get(name, "?") for name in ("stage", "host", "pid"))
    return f"{stage} on {host}, process {pid}, since {since}{age}"


@contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Only one process of this machine, and one thread of it, is inside; all are where a file system cannot do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which gives it back


def _create_whole(path: str, content: bytes) -> bool:
    """Make a local file that is never seen half-written, unless there is one."""
    temporary = _beside(path)
    with open(temporary, "xb") as stream:
        stream.write(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    finally:
        os.unlink(temporary)
    return True


def _beside(path: str) -> str:
    """A name that no other has and that listings leave out."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f"{storage.TEMPORARY}{uuid.uuid4().hex}-{name}")


def _bytes(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _parse(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _process() -> dict[str, Any]:
    """This process, so that a later one on the same machine can tell whether it is gone."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}


def _machine() -> str:
    """The boot and the space of process numbers; containers may share a host's name and not its processes."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            return f"{stream.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process began, in ticks since the boot; empty when it is gone, or this system does not say."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            after_name = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in ("Z", "X") else after_name[19]


def _is_gone(lock: dict[str, Any]) -> bool:
    """Whether it can be seen from here that the process of a lock is gone."""
    here = _machine()
    return bool(here) and lock.get("machine") == here and _born(int(lock.get("pid", 0))) != lock.get("born")


def _is_alive(lock: dict[str, Any], folder: str, beat: float) -> bool:
    if _is_gone(lock):
        return False
    if _machine() and lock.get("machine") == _machine():
        return True
    log.info("the output has a lock: %s; waiting to see whether that run renews it", describe(lock))
    until = time.monotonic() + 3 * beat
    while time.monotonic() < until:
        time.sleep(beat / 10)
        now = read_lock(folder)
        if now is None or now.get("token") != lock.get("token"):
            return now is not None
        if now.get("beat") != lock.get("beat"):
            return True
    return False
