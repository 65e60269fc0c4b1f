"""Mining that is really killed: what was embedded is not embedded again, and the output is the same."""

from __future__ import annotations

import json
import signal
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests.processes import PATIENCE_S, finish, start, wait_until

pytestmark = pytest.mark.slow

DOCUMENTS, QUESTIONS = 4000, 200


def write(folder: Path) -> list[str]:
    """Inline training data: a question a line, with its positive and many documents as negatives."""
    random = np.random.default_rng(0)
    texts = [" ".join(f"word{n}" for n in random.integers(0, 500, 60)) + f" end{d}" for d in range(DOCUMENTS)]
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(QUESTIONS):
            own = texts[number * 20 : (number + 1) * 20]
            question = " ".join(own[0].split()[:4])
            file.write(json.dumps({"query": question, "pos_doc": own[0], "neg_doc": own[1:]}) + "\n")
    return texts


def mine(folder: Path, name: str, delay: float) -> list[str]:
    """The command; only its result-affecting options are the same for every delay."""
    encoder = {
        "engine": "tests.embed.hashing:HashEncoder",
        "engine_kwargs": {"log": str(folder / f"{name}.log"), "delay": delay},
        "concurrency": 1,
    }
    return [
        "mine",
        f"input={folder / 'pairs.jsonl'}",
        f"output={folder / name}",
        "model=words",
        f"encoder={json.dumps(encoder)}",
        f"cache={folder / name}-cache",
        "hard_neg_margin_type=abs",
        "hard_neg_margin=0.1",
    ]


def encoded(folder: Path, name: str) -> Counter[str]:
    path = folder / f"{name}.log"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def files(cache: Path) -> list[Path]:
    """What is there whole."""
    return [path for path in cache.rglob("*.parquet") if not path.name.startswith(".")]


def test_a_killed_mining_goes_on_with_what_was_embedded(tmp_path: Path) -> None:
    texts = write(tmp_path)
    finish(start(*mine(tmp_path, "calm", 0.0)))
    command = mine(tmp_path, "killed", 0.5)
    cache = tmp_path / "killed-cache"
    process = start(*command)
    wait_until(lambda: len(files(cache)) >= 3, process, "some texts were embedded")
    of_its_ray = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(of_its_ray, timeout=PATIENCE_S)  # encoders end with the block that they have begun
    kept = {key for path in files(cache) for key in pq.read_table(path, columns=["id"])["id"].to_pylist()}
    assert 0 < len(kept) < DOCUMENTS and not (tmp_path / "killed" / "_manifest.json").exists()
    before = encoded(tmp_path, "killed")
    finish(start(*command))
    after = encoded(tmp_path, "killed")
    assert set(after) >= {str(zlib.crc32(text.encode())) for text in texts}
    # Embedded twice at most: what was on its way when the driver was killed, not what was in the cache.
    again = sum((after - before).values()) - (len(set(after)) - len(kept))
    assert again == 0, f"{again} of {len(kept)} kept texts were embedded again"
    for name in ("pairs_mined.automodel.json", "pairs_mined.automodel_unrolled.json"):
        calm, killed = (json.loads((tmp_path / run / name).read_text())["data"] for run in ("calm", "killed"))
        assert calm == killed and len(calm) == QUESTIONS
    assert "nothing to do" in finish(start(*command))
