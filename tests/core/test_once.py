"""Folders that are made once: by one process at a time, whole or not at all, whatever happens to their maker."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raycurate.core.errors import RaycurateError
from raycurate.core.once import Discard, once

MAKER = """
import os, sys
from pathlib import Path
from raycurate.core.once import once

folder = Path(sys.argv[1])
print("asks", flush=True)
with once(folder) as temporary:
    if temporary is not None:
        (temporary / "first").write_text("first")
        with open(folder.parent / "made", "a") as count:
            count.write(f"{os.getpid()}\\n")
        print("half", flush=True)
        sys.stdin.readline()
        (temporary / "last").write_text("last")
assert sorted(p.name for p in folder.iterdir()) == ["first", "last"]
"""


def maker(folder: Path, *, until: str = "asks") -> subprocess.Popen[str]:
    """Another process that makes the folder and stops half-way until it is told a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for said in iter(process.stdout.readline, ""):
        if said == f"{until}\n":
            return process
    raise AssertionError(process.wait())


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    first = maker(folder, until="half")
    others = [maker(folder) for _ in range(3)]
    assert not folder.exists() and all(other.poll() is None for other in others)
    first.communicate("go on\n")
    for process in (first, *others):
        process.communicate()
        assert process.returncode == 0
    assert (tmp_path / "made").read_text() == f"{first.pid}\n"
    assert beside(folder) == ["folder", "made"]


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    first = maker(folder, until="half")
    second = maker(folder)
    first.kill()
    first.communicate()
    second.communicate("go on\n")
    assert second.returncode == 0
    assert (tmp_path / "made").read_text() == f"{first.pid}\n{second.pid}\n"
    assert beside(folder) == ["folder", "made"]  # neither its lock nor its half


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "folder"
    with pytest.raises(ZeroDivisionError), once(folder) as temporary:
        assert temporary is not None
        (temporary / "half").write_text("half")
        raise ZeroDivisionError
    with once(folder) as temporary:
        assert temporary is not None
        raise Discard
    assert beside(folder) == []
    with once(folder) as temporary:
        assert temporary is not None
    with once(folder) as temporary:
        assert temporary is None


def test_many_threads_make_it_once_though_each_maker_takes_its_lock_away(tmp_path: Path) -> None:
    made = []

    def ask(number: int) -> None:
        with once(tmp_path / str(number % 20)) as temporary:
            if temporary is not None:
                made.append(number % 20)
                (temporary / "x").write_text("x")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(400)))
    assert sorted(made) == list(range(20))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(20))


def test_a_folder_without_its_mark_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "half").write_text("half")
    with once(folder, mark="done") as temporary:
        assert temporary is not None
        (temporary / "done").write_text("")
    assert [path.name for path in folder.iterdir()] == ["done"]
    with once(folder, mark="done") as temporary:
        assert temporary is None


def test_what_another_machine_is_making_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / f".folder-node-7-{'0' * 32}"
    theirs.mkdir()
    with once(tmp_path / "folder") as temporary:
        assert temporary is not None
        (tmp_path / "folder").mkdir()  # and it is first
        (tmp_path / "folder" / "theirs").write_text("")
    assert beside(theirs) == [theirs.name, "folder"]
    assert (tmp_path / "folder" / "theirs").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RaycurateError, match=r"file/cache: the cache cannot be written.*RAYCURATE_CACHE"):
        once(tmp_path / "file" / "cache" / "folder").__enter__()
