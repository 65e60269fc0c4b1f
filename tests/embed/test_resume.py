"""Runs that are really killed: every input row ends exactly once in the output or the rejects."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raycurate.core.lock import OutputLockedError
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.stages.embed.stage import STAGE
from tests.embed.hashing import hash_vector
from tests.processes import PATIENCE_S

ROWS = 1_200
ROOT = Path(__file__).resolve().parents[2]


def text_of(row: int) -> str | None:
    """Every 50th row is a reject."""
    return None if row % 50 == 0 else f"document {row} " + "word " * (row % 30)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part in range(3):
        rows = range(part, ROWS, 3)
        lines = [json.dumps({"id": f"row-{row}", "text": text_of(row)}) for row in rows]
        (folder / f"part-{part}.jsonl").write_text("\n".join(lines))
    return folder


def options(corpus: Path, output: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pids").mkdir(exist_ok=True)
    kwargs = {"delay": 0.25, "pids": str(tmp_path / "pids"), "log": str(tmp_path / "log")}
    return {
        "input": str(corpus),
        "output": str(output),
        "model": "hash",
        "engine": "tests.embed.hashing:HashEncoder",
        "engine_kwargs": kwargs,
        "block_bytes": 2_000,
        "concurrency": 2,
    }


def start(config: dict[str, Any], cpus: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.embed.run_embed", str(cpus), json.dumps(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(config: dict[str, Any]) -> str:
    process = start(config)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def staged(output: Path) -> int:
    return len(list((output / "_staging").rglob("*.parquet"))) if (output / "_staging").is_dir() else 0


def wait_for_staged(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while staged(output) < count:
        assert process.poll() is None, f"the run ended before it was killed:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"{staged(output)} staging files"
        time.sleep(0.02)


def check_output(output: Path) -> None:
    manifest = json.loads((output / "_manifest.json").read_text())
    tables = [pq.read_table(output / f["path"]) for f in manifest["files"] if f["path"].endswith(".parquet")]
    ids = [i for table in tables for i in table["id"].to_pylist()]
    vectors = np.concatenate([np.stack(table["embeddings"].to_pylist()) for table in tables])
    rejects = [
        json.loads(line)["id"]
        for f in manifest["files"]
        if f["path"].startswith("_rejects/")
        for line in (output / f["path"]).read_text().splitlines()
    ]
    assert sorted(ids) == sorted(f"row-{row}" for row in range(ROWS) if text_of(row) is not None)
    assert sorted(rejects) == sorted(f"row-{row}" for row in range(ROWS) if text_of(row) is None)
    assert manifest["counts"]["documents"] == len(ids)
    assert manifest["rejects"] == {"null_text": len(rejects)}
    for name, vector in zip(ids, vectors, strict=True):
        expected = text_of(int(name.removeprefix("row-")))
        assert expected is not None
        np.testing.assert_array_equal(vector, hash_vector(expected))
    assert not (output / "_staging").exists()


def encoded_more_than_once(tmp_path: Path) -> int:
    """Documents whose text went through the model again; the texts are all different."""
    counts = collections.Counter((tmp_path / "log").read_text().split())
    known = {str(zlib.crc32(text.encode())) for row in range(ROWS) if (text := text_of(row)) is not None}
    assert known <= counts.keys()
    return sum(n - 1 for n in counts.values())


def test_actor_and_driver_killed_then_resumed_on_two_cpus(corpus: Path, tmp_path: Path) -> None:
    """kill -9 of an encoder actor (the run goes on), then of the driver (a second run goes on), on 2 CPUs."""
    output = tmp_path / "out"
    config = options(corpus, output, tmp_path)
    process = start(config)
    wait_for_staged(process, output, 2)
    process.send_signal(signal.SIGSTOP)  # a paused run keeps its output to itself
    with pytest.raises(OutputLockedError, match=f"process {process.pid}, "):
        STAGE.run(EmbedConfig.parse(config, where="test"))
    process.send_signal(signal.SIGCONT)
    actor = int(next((tmp_path / "pids").iterdir()).name)
    os.kill(actor, signal.SIGKILL)
    wait_for_staged(process, output, 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "_manifest.json").exists()
    done_before = staged(output)

    said = finish(config)
    check_output(output)
    assert "from an earlier attempt" in said
    # Two kills, each losing at most the blocks then in the pool: 2 actors x 4 in flight, and those being written.
    rows_a_block = ROWS // 3 / 10
    assert encoded_more_than_once(tmp_path) <= 2 * 12 * rows_a_block
    assert done_before >= 6

    again = finish(config)
    assert again.splitlines()[-1] == said.splitlines()[-1]
    assert "nothing to do" in again


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 4, 9, 14])
def test_driver_killed_at_different_moments(corpus: Path, tmp_path: Path, blocks: int) -> None:
    output = tmp_path / "out"
    config = options(corpus, output, tmp_path)
    process = start(config)
    wait_for_staged(process, output, blocks)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(config)
    check_output(output)


@pytest.mark.slow
def test_every_worker_process_killed_once(corpus: Path, tmp_path: Path) -> None:
    """Read, tokenise and write workers die too; Ray starts their tasks again within the same run."""
    import psutil

    output = tmp_path / "out"
    process = start(options(corpus, output, tmp_path))
    wait_for_staged(process, output, 3)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.name().startswith("ray::"):
            child.kill()
    said, _ = process.communicate(timeout=PATIENCE_S)
    if process.returncode != 0:  # Ray may give a run up when all its workers die at once; the next one goes on
        said = finish(options(corpus, output, tmp_path))
    check_output(output)
    assert "documents" in said


@pytest.mark.slow
def test_killed_while_finalising(corpus: Path, tmp_path: Path) -> None:
    """The manifest comes last: a folder with all its data but no manifest is finished by the next run."""
    output = tmp_path / "out"
    config = options(corpus, output, tmp_path)
    process = start(config)
    deadline = time.monotonic() + PATIENCE_S
    while not list(output.glob("_staging/*/complete.json")) and not (output / "_manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "_manifest.json").exists()
    for encoder in (tmp_path / "pids").iterdir():
        encoder.unlink()
    assert "every row is staged" in finish(config)
    check_output(output)
    assert len(list((tmp_path / "pids").iterdir())) <= 1  # the one that was asked for its contract, and no pool of two
