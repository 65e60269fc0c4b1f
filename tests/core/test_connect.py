"""A Ray that is started here: who can reach it, what is on its workers' path, what is said when it does not start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycurate.core.errors import RaycurateError
from raycurate.encoders.base import MODULES_FROM, custom_engine
from raycurate.ray_runtime import connect

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("queue", "random", "calendar", "token", "secrets", "csv", "raycurate_trap")
TRAP = "import os, sys\nopen(os.environ['RC_TRAP'], 'a').write(f'{__name__} in {sys.argv[:1]} {os.getpid()}\\n')\n"
ENGINE = """
import numpy as np
from raycurate.models.contract import EmbeddingContract

class Own:
    accepts = "text"
    def __init__(self, options):
        self.contract = EmbeddingContract(weights="own", tokenizer="own", pooling="mean", modules=[], normalize=False,
            attention="bidirectional", prompts={}, max_length=9, dimension=4, engine="own", dtype="float32")
    def prepare(self, batch):
        return list(batch)
    def run(self, prepared):
        return np.ones((len(prepared), 4), np.float32)
    def close(self):
        pass
"""
SOCKETS = """
import json, psutil, sys
from raycurate.ray_runtime.connect import connect, disconnect
info = connect("local", num_cpus=1)
import ray

@ray.remote(num_cpus=0)
def path():
    import os, sys
    return [sys.path, os.getcwd()]

found, folder = ray.get(path.remote())
me = psutil.Process()
heard = {}
for process in [me, *me.children(recursive=True)]:
    for one in process.net_connections(kind="inet"):
        if one.status == psutil.CONN_LISTEN:
            heard.setdefault(one.laddr.ip, []).append(process.name())
print(json.dumps({"path": found, "folder": folder, "heard": heard, "owned": info.owned}))
disconnect(info)
"""


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with modules that are named as Python's own and leave a trace when somebody runs them."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(TRAP)
    (folder / "own_engine.py").write_text(ENGINE)
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("one text")
    return folder


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    cleared = ("RAY_ADDRESS", "PYTHONPATH", MODULES_FROM)
    environment = {name: value for name, value in os.environ.items() if name not in cleared}
    environment["RC_TRAP"] = str(folder.parent / "trap")
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def test_it_listens_on_loopback_only_and_its_workers_do_not_look_in_the_current_folder(trapped: Path) -> None:
    script = trapped.parent / "script"
    script.mkdir()
    (script / "sockets.py").write_text(SOCKETS)
    done = run([sys.executable, "-P", str(script / "sockets.py")], trapped)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["owned"] and found["folder"] == str(trapped)
    assert {"gcs_server", "raylet"} <= {name for names in found["heard"].values() for name in names}
    assert set(found["heard"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, found["heard"]
    assert str(trapped) not in found["path"] and "" not in found["path"]
    assert not (trapped.parent / "trap").exists()


def test_an_engine_of_the_current_folder_is_found_and_nothing_else_of_it_is_run(trapped: Path) -> None:
    command = [str(Path(sys.executable).parent / "raycurate"), "embed", "input=docs", "output=out", "model=own"]
    done = run([*command, "engine=own_engine:Own"], trapped)
    assert done.returncode == 0, done.stderr
    assert json.loads((trapped / "out" / "_manifest.json").read_text())["counts"]["documents"] == 1
    trap = trapped.parent / "trap"
    assert not trap.exists(), trap.read_text()


def test_the_folder_of_own_engines_is_the_last_on_the_path(trapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODULES_FROM, str(trapped))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    assert custom_engine("own_engine:Own").accepts == "text"
    assert sys.path == [*before, str(trapped)]
    monkeypatch.delitem(sys.modules, "own_engine")


# ---------------------------------------------------------------------------------------------- a slow or dead start


def node_that_comes_after(asked: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ray's own question for the node, which fails until it was asked so often."""
    from ray._private import services

    asks: list[int] = []

    def get_node(*_: object) -> dict[str, int]:
        asks.append(1)
        if len(asks) < asked:
            raise RuntimeError("not there yet")
        return {"node": 1}

    monkeypatch.setattr(services, "get_node", get_node)
    return asks


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[None]:
    """A child of that name."""
    program = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "raylet")
    process = subprocess.Popen([program, "600"])
    yield
    process.kill()
    process.wait()


@pytest.mark.usefixtures("raylet")
def test_a_node_that_is_slow_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    asks = node_that_comes_after(4, monkeypatch)
    own = services.get_node
    with connect._patience():
        assert services.get_node("address", "id") == {"node": 1}
    assert len(asks) == 4 and services.get_node is own


@pytest.mark.usefixtures("raylet")
def test_one_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    node_that_comes_after(10**9, monkeypatch)
    monkeypatch.setattr(connect, "START_S", 0.5)
    with connect._patience(), pytest.raises(RaycurateError, match="did not come up within 0 s") as caught:
        services.get_node("address", "id")
    assert "load" in str(caught.value) and "session_latest/logs" in str(caught.value)


@pytest.mark.usefixtures("raylet")
def test_children_are_told_apart_by_their_names() -> None:
    assert connect._child_lives("raylet") and not connect._child_lives("no_such_name")
