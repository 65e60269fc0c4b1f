"""When a stage is done, and what keeps a half-written folder from looking whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycurate.core.errors import InputError, OutputExistsError
from raycurate.core.manifest import (
    Manifest,
    OutputFile,
    StageKey,
    commit,
    is_data,
    is_done,
    one_writer,
    require_whole,
    state_of,
    write_manifest,
)


def key(**options: object) -> StageKey:
    return StageKey(stage="embed", algorithm_version=1, input_fingerprint="abc", options=options)


def finished(folder: Path, stage_key: StageKey) -> Manifest:
    (folder / "a.parquet").write_bytes(b"12345")
    manifest = Manifest(key=stage_key, files=[OutputFile(path="a.parquet", size=5, rows=1)])
    write_manifest(str(folder), manifest)
    return manifest


def test_done_only_with_the_same_key(tmp_path: Path) -> None:
    finished(tmp_path, key(pooling="mean"))
    assert is_done(str(tmp_path), key(pooling="mean")) is not None
    with pytest.raises(OutputExistsError, match="pooling: 'mean' -> 'cls'"):
        is_done(str(tmp_path), key(pooling="cls"))
    assert is_done(str(tmp_path), key(pooling="cls"), overwrite=True) is None


def test_another_algorithm_version_is_another_result(tmp_path: Path) -> None:
    finished(tmp_path, key())
    with pytest.raises(OutputExistsError, match="algorithm version 1 -> 2"):
        is_done(str(tmp_path), key().model_copy(update={"algorithm_version": 2}))


def test_not_whole_when_a_file_is_gone_or_cut(tmp_path: Path) -> None:
    finished(tmp_path, key())
    assert require_whole(str(tmp_path)).files[0].rows == 1
    (tmp_path / "a.parquet").write_bytes(b"123")
    with pytest.raises(InputError, match=r"a\.parquet"):
        require_whole(str(tmp_path))
    with pytest.raises(OutputExistsError, match="missing"):
        is_done(str(tmp_path), key())


def test_no_manifest_is_not_an_output(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    with pytest.raises(InputError, match=r"no _manifest\.json"):
        require_whole(str(tmp_path))


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match=r"thesis\.txt"):
        is_done(str(tmp_path), key())
    assert is_done(str(tmp_path), key(), overwrite=True) is None
    (tmp_path / "empty").mkdir()
    assert is_done(str(tmp_path / "empty"), key()) is None
    with pytest.raises(OutputExistsError, match="a folder"):
        is_done(str(tmp_path / "thesis.txt"), key())


def test_what_a_killed_run_left_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "_staging").mkdir()
    (tmp_path / "embeddings-0.parquet").write_bytes(b"half")
    assert is_done(str(tmp_path), key()) is None


def test_an_output_with_the_names_of_before_is_whole_and_done_and_gets_the_names_of_today(tmp_path: Path) -> None:
    manifest = finished(tmp_path, key(pooling="mean"))
    manifest.contract = {"pooling": "mean"}
    manifest.files.append(OutputFile(path="rejects/a.jsonl", size=2))
    (tmp_path / "rejects").mkdir()
    (tmp_path / "rejects/a.jsonl").write_text("{}")
    (tmp_path / "_manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    (tmp_path / "contract.json").write_text('{"pooling": "mean"}')
    assert require_whole(str(tmp_path)) == is_done(str(tmp_path), key(pooling="mean")) == manifest
    (tmp_path / "b.parquet").write_bytes(b"123456")
    commit(str(tmp_path), Manifest(key=key(pooling="cls"), files=[OutputFile(path="b.parquet", size=6)]))
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {
        "_manifest.json",
        "b.parquet",
    }


def test_a_manifest_json_that_is_somebody_elses_is_kept(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "_staging").mkdir()
    (tmp_path / "a.parquet").write_bytes(b"12345")
    write_manifest(str(tmp_path), Manifest(key=key(), files=[]))
    commit(str(tmp_path), Manifest(key=key(), files=[OutputFile(path="a.parquet", size=5)]))
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web page"}'


@pytest.mark.parametrize("name", ["_manifest.json", "manifest.json", "_rejects/a.jsonl", "x/rejects/a.parquet"])
def test_what_we_note_beside_the_data_is_no_data(name: str) -> None:
    assert not is_data(name) and is_data("centroid=1/a.parquet") and is_data("documents/manifest.parquet")


def test_what_an_attempt_with_other_options_left_goes_at_the_commit(tmp_path: Path) -> None:
    """Its data would be read with the output's own, and its rejects are none of this output."""
    for name in ("_rejects/embeddings-0123abcd-00000.jsonl", "embeddings-0123abcd-00000.parquet", "notes.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "embeddings-ffffffff-00000.parquet").write_text("own")
    file = OutputFile(path="embeddings-ffffffff-00000.parquet", size=3)
    commit(str(tmp_path), Manifest(key=key(), files=[file]))
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["_manifest.json", "embeddings-ffffffff-00000.parquet", "notes.jsonl"]


def test_an_output_that_is_being_written_is_said_to_be(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    with one_writer(folder, key()) as done:
        assert done is None
        said = state_of(folder, key, lambda _: "")
        assert said.startswith("running: embed on ") and str(os.getpid()) in said
