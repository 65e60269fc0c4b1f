"""prep from a bucket to a bucket: what it writes there is what it writes on a local disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycurate.core import storage
from raycurate.core.manifest import require_whole
from raycurate.data.training.training import read_training_data
from tests.prep.records import records, write
from tests.prep.test_stage import prepare
from tests.processes import finish, start


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_from_bucket_to_bucket(s3: str, tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", records())
    prepare(tmp_path)
    storage.write_bytes(f"{s3}/pairs.jsonl", (tmp_path / "pairs.jsonl").read_bytes())
    encoder = json.dumps({"engine": "tests.embed.hashing:HashEncoder", "concurrency": 1})
    command = ["prep", f"input={s3}/pairs.jsonl", f"output={s3}/prep", f"cache={s3}/cache", "model=words"]
    # A Ray of its own: the workers of the tests' Ray were started without the server's address.
    finish(start(*command, f"encoder={encoder}"))
    manifest = require_whole(f"{s3}/prep")
    for name in ("train", "val"):
        for kind in (".json", "_mined.automodel.json", "_mined.automodel_unrolled.json"):
            there, here = (storage.read_text(f"{root}/prep/{name}{kind}") for root in (s3, str(tmp_path)))
            assert json.loads(there)["data"] == json.loads(here)["data"]
            assert json.loads(there)["corpus"] == json.loads(here)["corpus"]
    assert not storage.exists(f"{s3}/prep/_staging") and storage.list_files(f"{s3}/cache")
    data = read_training_data(f"{s3}/prep/train_mined.automodel.json", cache_dir=str(tmp_path / "arrow"))
    assert len(data) == manifest.settings["mined"]["train"]["questions"]
