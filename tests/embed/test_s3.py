"""From a bucket to a bucket: input, staging, output and manifest on an S3-compatible server, killed in between."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raycurate.core import storage
from raycurate.core.manifest import require_whole
from tests.embed.test_resume import finish, start
from tests.processes import PATIENCE_S


@pytest.mark.slow
def test_embed_on_s3_goes_on_after_a_kill(s3: str, tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": None if i % 40 == 0 else f"text {i} " + "word " * 20} for i in range(400)]
    storage.write_text(f"{s3}/embed/in/a.jsonl", "\n".join(json.dumps(row) for row in rows))
    config = {
        "input": f"{s3}/embed/in",
        "output": f"{s3}/embed/out",
        "model": "hash",
        "engine": "tests.embed.hashing:HashEncoder",
        "engine_kwargs": {"delay": 0.3},
        "block_bytes": 2_500,
    }
    process = start(config)
    deadline = time.monotonic() + PATIENCE_S
    while not storage.exists(f"{s3}/embed/out/_staging") or len(storage.list_files(f"{s3}/embed/out/_staging")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not storage.exists(f"{s3}/embed/out/_manifest.json")
    assert "from an earlier attempt" in finish(config)
    manifest = require_whole(f"{s3}/embed/out")
    assert (manifest.counts["documents"], manifest.rejects) == (390, {"null_text": 10})
    filesystem, inner = storage.filesystem(f"{s3}/embed/out/{manifest.files[0].path}")
    assert pq.read_table(inner, columns=["id"], filesystem=filesystem)["id"].to_pylist() == [
        row["id"] for row in rows if row["text"] is not None
    ]
    assert not storage.exists(f"{s3}/embed/out/_staging")
