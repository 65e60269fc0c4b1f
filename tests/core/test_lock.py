"""One writer at a time: a living writer's lock is kept, a dead one's is taken over, a lost one is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycurate.core import storage
from raycurate.core.errors import OutputExistsError
from raycurate.core.lock import LOCK, OutputLock, OutputLockedError, output_lock, read_lock
from raycurate.core.manifest import Manifest, OutputFile, StageKey, commit, is_done, one_writer, require_whole

HOLDER = """
import sys
from raycurate.core.lock import output_lock
with output_lock(sys.argv[1], "embed"):
    print("held", flush=True)
    sys.stdin.read()
"""


def key(**options: object) -> StageKey:
    return StageKey(stage="embed", algorithm_version=1, input_fingerprint="abc", options=options)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Path | str, **more: object) -> None:
    """A lock of a process that cannot be seen from here."""
    lock = {"token": "theirs", "stage": "embed", "host": "node-7", "pid": 1, "machine": "another", "beat": 0} | more
    storage.write_text(storage.join(str(folder), LOCK), json.dumps(lock))


@pytest.mark.parametrize("paused", [False, True])
def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path, paused: bool) -> None:
    process = holder(tmp_path)
    if paused:
        process.send_signal(signal.SIGSTOP)
    with pytest.raises(OutputLockedError, match=rf"embed on .*, process {process.pid}, since "):
        output_lock(str(tmp_path), "kmeans").__enter__()
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert not tmp_path.exists()  # the folder held nothing but the lock


def test_a_killed_writers_lock_is_taken_over_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK).exists()
    with output_lock(str(tmp_path), "kmeans"):
        assert (read_lock(str(tmp_path)) or {})["stage"] == "kmeans"


def test_a_process_number_that_is_used_again_is_not_the_writer(tmp_path: Path) -> None:
    with output_lock(str(tmp_path / "a"), "embed"):
        lock = read_lock(str(tmp_path / "a")) or {}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / LOCK).write_text(json.dumps(lock | {"born": "1", "token": "theirs"}))
    with output_lock(str(tmp_path / "b"), "embed"):
        pass


def test_a_writer_elsewhere_lives_while_it_renews_its_lock(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    stop = threading.Event()

    def renew() -> None:
        beat = 0
        while not stop.wait(0.02):
            beat += 1
            elsewhere(tmp_path, beat=beat)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(OutputLockedError, match="node-7"):
            OutputLock(str(tmp_path), "embed", beat=1.0).acquire()
    finally:
        stop.set()
        thread.join()
    mine = OutputLock(str(tmp_path), "embed", beat=0.1)  # now it renews no more
    mine.acquire()
    mine.release()


def test_of_many_newcomers_to_a_dead_lock_one_gets_it(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    locks = [OutputLock(str(tmp_path), f"n{i}", beat=0.2) for i in range(8)]

    def get(lock: OutputLock) -> bool:
        try:
            lock.acquire()
        except OutputLockedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(get, locks)) == [False] * 7 + [True]
    for lock in locks:
        lock.release()


def test_a_newcomer_that_comes_late_leaves_the_lock_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw the dead lock, and moves away what is there by then: never another's, for however short a moment."""
    elsewhere(tmp_path)
    dead = read_lock(str(tmp_path)) or {}
    first, late = (OutputLock(str(tmp_path), name, beat=0.05) for name in ("first", "late"))
    first.acquire()
    moved: list[object] = []
    monkeypatch.setattr(os, "rename", lambda *paths: moved.append(paths))
    late._take_away(dead)
    assert not moved and (read_lock(str(tmp_path)) or {})["stage"] == "first"
    first.release()


def test_a_writer_that_was_taken_over_does_not_commit(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    (tmp_path / "_staging").mkdir()
    with pytest.raises(OutputLockedError, match="taken over"), one_writer(str(tmp_path), key()) as done:
        assert done is None
        elsewhere(tmp_path)
        commit(str(tmp_path), Manifest(key=key(), files=[OutputFile(path="a.parquet", size=5)]))
    assert not (tmp_path / "_manifest.json").exists() and (tmp_path / "_staging").exists()
    assert (read_lock(str(tmp_path)) or {})["token"] == "theirs"


def test_a_done_output_needs_no_lock_and_a_writers_staging_stays(tmp_path: Path) -> None:
    with one_writer(str(tmp_path), key()) as done:
        assert done is None
        (tmp_path / "a.parquet").write_bytes(b"12345")
        commit(str(tmp_path), Manifest(key=key(), files=[OutputFile(path="a.parquet", size=5)]))
    assert {p.name for p in tmp_path.iterdir()} == {"_manifest.json", "a.parquet"}
    with one_writer(str(tmp_path), key(pooling="cls"), overwrite=True):
        (tmp_path / "_staging").mkdir()
        with one_writer(str(tmp_path), key()) as other:
            assert other == require_whole(str(tmp_path))
        assert (tmp_path / "_staging").exists()


def test_a_lock_alone_is_nobody_elses_folder(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    assert is_done(str(tmp_path), key()) is None
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match="1 files"):
        is_done(str(tmp_path), key())


def test_a_folder_that_cannot_be_written_is_a_plain_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(Exception, match="written into"):
        OutputLock(str(tmp_path), "embed").acquire()


def test_on_an_object_store_one_of_two_gets_the_lock(s3: str) -> None:
    folder = f"{s3}/locked"
    locks = [OutputLock(folder, f"n{i}", beat=30, settle=0.5) for i in range(2)]

    def get(lock: OutputLock) -> bool:
        try:
            lock.acquire()
        except OutputLockedError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(get, locks)) == [False, True]
    for lock in locks:
        lock.release()
    assert read_lock(folder) is None
    elsewhere(folder)
    late = OutputLock(folder, "late", beat=0.1, settle=0.1)
    late.acquire()
    late.require_held()
    elsewhere(folder)
    with pytest.raises(OutputLockedError, match="taken over"):
        late.require_held()
    late.release()
    assert read_lock(folder) is not None  # theirs
