"""Finding the outputs of a run, and where what they were made from lies after a move."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycurate.report.runs import _moved, open_run
from tests.report import outputs


@pytest.mark.parametrize(
    ("path", "then", "now", "expected"),
    [
        ("runs/q/corpus", "runs/q/embeddings", "/home/a/runs/q/embeddings", "/home/a/runs/q/corpus"),
        ("/old/q/corpus", "/old/q/embeddings", "/new/place/q/embeddings", "/new/place/q/corpus"),
        ("/old/q/corpus", "/old/q/embeddings", "s3://bucket/q/embeddings", "s3://bucket/q/corpus"),
        ("/elsewhere/corpus", "/old/q/embeddings", "/new/q/embeddings", None),
        ("/old/q/corpus", "/old/q/embeddings", "/old/q/embeddings", None),
        ("s3://bucket/corpus", "/old/q/embeddings", "/new/q/embeddings", None),
        ("s3://bucket/corpus", "runs/q/embeddings", "/home/runs/q/embeddings", None),
        ("/old/qq/corpus", "/old/q/embeddings", "/new/q2/embeddings", None),
    ],
)
def test_an_input_moves_with_its_run(path: str, then: str, now: str, expected: str | None):
    assert _moved(path, then, now) == expected


def test_a_moved_run_finds_its_corpus(tmp_path: Path):
    outputs.write_run(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    embed = open_run(str(tmp_path / "after")).of("embed")
    assert embed is not None
    assert embed.now(str(tmp_path / "before" / "corpus")) == str(tmp_path / "after" / "corpus")
    assert embed.now("hf://org/data") == "hf://org/data"


def test_outputs_are_known_by_their_manifest(tmp_path: Path):
    outputs.write_embeddings(tmp_path)
    (tmp_path / "embeddings").rename(tmp_path / "vectors")
    outputs.write_clusters(tmp_path / "deep")
    (tmp_path / "eval").mkdir()  # a user's own folder of that name is no stage's
    (tmp_path / "eval" / "notes.txt").write_text("mine")
    (tmp_path / "finetune" / "_staging").mkdir(parents=True)
    found = [(o.stage, o.name, o.whole) for o in open_run(str(tmp_path)).outputs]
    assert found == [("embed", "vectors", True), ("kmeans", "deep/clusters", True), ("finetune", "finetune", False)]


def test_of_several_outputs_the_usual_folder_comes_first_then_the_newest(tmp_path: Path):
    for name, created in (("a", "2026-11-20"), ("b", "2026-11-22"), ("c", "2026-11-21")):
        outputs.write_dedup(tmp_path / name)
        (tmp_path / name / "dedup").rename(tmp_path / f"dedup-{name}")
        outputs.write_manifest(tmp_path / f"dedup-{name}", "dedup", created=f"{created}T00:00:00+00:00")
    newest = open_run(str(tmp_path)).of("dedup")
    assert newest is not None and newest.name == "dedup-b"
    outputs.write_dedup(tmp_path)
    usual = open_run(str(tmp_path)).of("dedup")
    assert usual is not None and usual.name == "dedup"
