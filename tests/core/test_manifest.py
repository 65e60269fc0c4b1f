"""When a stage is done, and what keeps a half-written folder from looking whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycurate.core.errors import InputError, OutputExistsError
from raycurate.core.manifest import Manifest, OutputFile, StageKey, is_done, require_whole, write_manifest


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
    with pytest.raises(InputError, match=r"no manifest\.json"):
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
