"""`verify` reads every byte; whether a stage is done is a matter of sizes; a hostile manifest deletes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycurate.core.checksums import checksum
from raycurate.core.errors import InputError
from raycurate.core.manifest import Manifest, OutputFile, StageKey, commit, is_done, read_manifest, verify


def key(**options: object) -> StageKey:
    return StageKey(stage="embed", algorithm_version=1, input_fingerprint="abc", options=options)


def finished(folder: Path, **options: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a.parquet").write_bytes(b"12345")
    commit(str(folder), Manifest(key=key(**options), files=[OutputFile(path="a.parquet", size=5)]))


def test_a_file_overwritten_at_equal_size_is_found_by_verify_and_is_done_still(tmp_path: Path) -> None:
    finished(tmp_path)
    assert verify(str(tmp_path)).files[0].checksum == checksum(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").write_bytes(b"12354")
    assert is_done(str(tmp_path), key()) is not None
    with pytest.raises(InputError, match=r"1 of the 1 files .* other bytes .* first a\.parquet"):
        verify(str(tmp_path))


def test_an_output_of_before_has_no_checksums_and_is_whole(tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / "_manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][0]["checksum"]
    path.write_text(json.dumps(manifest))
    assert verify(str(tmp_path)).files[0].checksum is None


@pytest.mark.parametrize(
    "path", ["../victim", ".", "", "/etc/passwd", "a/../../victim", "a//b", "a/./b", "s3://b/k", "..", "a\\b", "a/"]
)
def test_a_manifest_that_leads_out_of_its_folder_is_no_manifest(tmp_path: Path, path: str) -> None:
    (tmp_path / "victim").write_text("dear")
    finished(tmp_path / "out")
    hostile = json.loads((tmp_path / "out/_manifest.json").read_text())
    hostile["files"].append({"path": path, "size": 4})
    (tmp_path / "out/_manifest.json").write_text(json.dumps(hostile))
    with pytest.raises(InputError, match="not a raycurate manifest"):
        read_manifest(str(tmp_path / "out"))
    with pytest.raises(InputError):
        is_done(str(tmp_path / "out"), key(x=1), overwrite=True)
    assert (tmp_path / "victim").read_text() == "dear"


def test_only_what_is_still_as_listed_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished(out)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_bytes(b"dear")
    (out / "link").symlink_to(tmp_path / "precious")
    (out / "folder").mkdir()
    (out / "folder/note.txt").write_bytes(b"dear")
    (out / "changed.parquet").write_bytes(b"changed by hand")
    old = json.loads((out / "_manifest.json").read_text())
    old["files"] += [{"path": name, "size": 4} for name in ("link/file", "link", "folder", "changed.parquet", "gone")]
    (out / "_manifest.json").write_text(json.dumps(old))
    (out / "b.parquet").write_bytes(b"1")
    commit(str(out), Manifest(key=key(x=1), files=[OutputFile(path="b.parquet", size=1)]))
    assert not (out / "a.parquet").exists()
    assert (tmp_path / "precious/file").exists() and (out / "folder/note.txt").exists() and (out / "link").is_symlink()
    assert (out / "changed.parquet").read_bytes() == b"changed by hand"
