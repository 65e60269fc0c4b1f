"""The driver's memory does not grow with the number of documents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.embed.test_resume import finish


def peak(folder: Path, documents: int) -> int:
    """Peak resident memory of the driver in MiB, embedding that many documents of about 500 bytes."""
    folder.mkdir()
    with (folder / "corpus.jsonl").open("w") as out:
        for row in range(documents):
            out.write(json.dumps({"id": str(row), "text": f"document {row} " + "some words " * 43}) + "\n")
    said = finish(
        {
            "input": str(folder / "corpus.jsonl"),
            "output": str(folder / "out"),
            "model": "hash",
            "engine": "tests.embed.hashing:HashEncoder",
        }
    )
    assert f"documents {documents:,}" in said
    found = re.search(r"driver peak (\d+) MiB", said)
    assert found
    return int(found.group(1))


@pytest.mark.slow
def test_driver_memory_is_flat(tmp_path: Path) -> None:
    """Ten times the documents, at most 1.2 times the driver's memory."""
    small, large = peak(tmp_path / "small", 20_000), peak(tmp_path / "large", 200_000)
    print(f"\ndriver peak: {small} MiB at 20,000 documents, {large} MiB at 200,000")
    assert large <= 1.2 * small
