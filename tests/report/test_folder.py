"""What `raycurate info FOLDER` says of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycurate.cli import main
from raycurate.core.errors import InputError
from raycurate.core.manifest import Manifest, OutputFile, StageKey, write_manifest
from raycurate.report.folder import describe


def output(folder: Path, stage: str) -> str:
    folder.mkdir(parents=True)
    (folder / "a.parquet").write_bytes(b"1234")
    key = StageKey(stage=stage, algorithm_version=1, input_fingerprint="x", options={})
    files = [OutputFile(path="a.parquet", size=4, rows=2)]
    write_manifest(str(folder), Manifest(key=key, inputs=["docs"], files=files, counts={"documents": 2}))
    return str(folder)


def test_outputs_of_stages_whole_and_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed = output(tmp_path / "run" / "embeddings", "embed")
    output(tmp_path / "run" / "clusters", "kmeans")
    assert main(["info", embed]) == 0
    out = capsys.readouterr().out
    assert "the output of embed\n  state   whole\n" in out and "counts  documents 2" in out and "1, 4 bytes" in out
    (tmp_path / "run" / "clusters" / "a.parquet").unlink()
    said = describe(str(tmp_path / "run"))
    assert "outputs of 2 stages" in said and "1 of 1 files are missing" in said


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"_staging/x": ""}, "an output whose stage has not ended"),
        ({"config.json": json.dumps({"model_type": "bert"}), "x.safetensors": ""}, "a model of type bert"),
        ({"config.json": "[]"}, "its config.json cannot be read"),
        ({"modules.json": "[]"}, "a model"),
        ({"corpus.jsonl": "", "queries.jsonl": "", "qrels/test.tsv": ""}, "a test set in BEIR's layout"),
        ({"a.txt": "", "b/c.TXT": "", "d": ""}, "2 .txt, 1 without extension"),
        ({}, "an empty folder"),
    ],
)
def test_other_folders(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert said in describe(str(tmp_path))


def test_a_file_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1234")
    assert describe(str(tmp_path / "f")).endswith("a file of 4 bytes")
    with pytest.raises(InputError, match="no such file or folder"):
        describe(str(tmp_path / "g"))
