"""Paths: a real S3-compatible server, local files, gs:// and fsspec's memory://."""

from __future__ import annotations

import gzip
import os
import uuid
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raycurate.core import storage
from raycurate.core.errors import ConfigError, InputError, RaycurateError


@pytest.fixture(params=["local", "s3", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder in each kind of storage."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    return str(tmp_path / "data") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_write_list_read_delete(root: str) -> None:
    names = ["a.txt", "sub/b.txt", "sub/deep/c.jsonl"]
    for name in names:
        storage.write_text(storage.join(root, name), f"ä {name}")
    listed = storage.list_files(root)
    assert [e.path for e in listed] == [storage.join(root, n) for n in names]
    assert [e.size for e in listed] == [len(f"ä {n}".encode()) for n in names]
    assert [storage.read_text(e.path) for e in listed] == [f"ä {n}" for n in names]
    assert [e.path for e in storage.list_files(root, recursive=False)] == [storage.join(root, "a.txt")]
    assert storage.is_dir(root) and storage.exists(storage.join(root, "sub/b.txt"))
    assert [e.path for e in storage.list_files(storage.join(root, "a.txt"))] == [storage.join(root, "a.txt")]
    storage.delete(storage.join(root, "sub"))
    assert [e.path for e in storage.list_files(root)] == [storage.join(root, "a.txt")]
    storage.delete(storage.join(root, "not-there"))


def test_an_error_while_writing_leaves_nothing(root: str) -> None:
    storage.write_text(storage.join(root, "whole.txt"), "old")
    with pytest.raises(ZeroDivisionError), storage.open_output(storage.join(root, "part.txt")) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), storage.open_output(storage.join(root, "whole.txt")) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert [e.path for e in storage.list_files(root)] == [storage.join(root, "whole.txt")]
    assert storage.read_text(storage.join(root, "whole.txt")) == "old"


def test_local_error_leaves_no_temporary_file_either(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), storage.open_output(str(tmp_path / "x")) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_file_is_not_there_before_it_is_whole(root: str) -> None:
    target = storage.join(root, "big.bin")
    with storage.open_output(target) as stream:
        stream.write(os.urandom(1 << 20))
        assert not storage.exists(target)
    assert storage.list_files(root)[0].size == 1 << 20


def test_a_file_is_copied_byte_by_byte(root: str, tmp_path: Path) -> None:
    there, back = storage.join(root, "new/folder/x.txt.gz"), tmp_path / "new" / "back.gz"
    for content in (b"", gzip.compress(os.urandom(1 << 20))):
        (tmp_path / "x.txt.gz").write_bytes(content)
        storage.copy_file(str(tmp_path / "x.txt.gz"), there)
        assert storage.read_bytes(there) == content
        storage.copy_file(there, str(back))
        assert back.read_bytes() == content
    with pytest.raises(OSError):
        storage.copy_file(storage.join(root, "none"), str(tmp_path / "none"))


def test_temporary_files_of_a_killed_write_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123-x.parquet").write_bytes(b"half")
    (tmp_path / "y.parquet").write_bytes(b"")
    assert [Path(e.path).name for e in storage.list_files(str(tmp_path))] == ["y.parquet"]


def test_globs(root: str) -> None:
    for name in ["a.txt", "b.md", "sub/c.txt", "sub/deep/d.txt", "part-1.x", "part-2.x"]:
        storage.write_text(storage.join(root, name), name)

    def names(pattern: str) -> list[str]:
        return [e.path.removeprefix(f"{root}/") for e in storage.list_files(storage.join(root, pattern))]

    assert names("*.txt") == ["a.txt"]
    assert names("*/*.txt") == ["sub/c.txt"]
    assert names("**/*.txt") == ["a.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert names("sub/**") == ["sub/c.txt", "sub/deep/d.txt"]
    assert names("part-[12].x") == ["part-1.x", "part-2.x"]
    with pytest.raises(InputError, match="no file matches"):
        names("*.parquet")


@pytest.mark.parametrize("pattern,expected", [("?.txt", ["a.txt"]), ("**/deep/*.txt", ["sub/deep/d.txt"])])
def test_more_globs(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    for name in ["a.txt", "bb.txt", "sub/deep/d.txt", "sub/indeep/e.txt"]:
        storage.write_text(str(tmp_path / name), name)
    found = [e.path.removeprefix(f"{tmp_path}/") for e in storage.list_files(str(tmp_path / pattern))]
    assert found == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    for name in ("report[1].txt", "report1.txt", "why?.md"):
        (tmp_path / name).write_text(name)
    for name in ("report[1].txt", "why?.md"):
        assert [Path(e.path).name for e in storage.list_files(str(tmp_path / name))] == [name]
    assert [Path(e.path).name for e in storage.list_files(str(tmp_path / "report[0-9].txt"))] == ["report1.txt"]
    assert [Path(e.path).name for e in storage.list_files(str(tmp_path / "[!r]*"))] == ["why?.md"]


def test_missing_bucket_and_missing_folder_say_so(s3: str, tmp_path: Path) -> None:
    for missing in ("s3://raycurate-no-such-bucket/docs", f"{s3}/no/such/prefix", str(tmp_path / "none")):
        with pytest.raises(InputError) as caught:
            storage.list_files(missing)
        assert missing in str(caught.value)
    with pytest.raises(RaycurateError, match=r"no-such-bucket.*cannot be written"):
        storage.write_text("s3://raycurate-no-such-bucket/x", "x")
    with pytest.raises(InputError, match="no/such/file"):
        storage.read_text(f"{s3}/no/such/file")


def test_gs_resolves_to_pyarrows_own_filesystem_without_network() -> None:
    found, inner = storage.filesystem("gs://anonymous@bucket/some/key")
    assert isinstance(found, pafs.GcsFileSystem)
    assert inner == "bucket/some/key"


def test_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no filesystem is known for 'nope://'.*s3://"):
        storage.filesystem("nope://x/y")


def test_hf_paths_name_a_data_set() -> None:
    found, inner = storage.filesystem("hf://org/dataset@main/sub")
    assert isinstance(found, pafs.PyFileSystem)
    assert inner == "datasets/org/dataset@main/sub"


def test_local_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("docs/") == f"{tmp_path}/docs"
    assert storage.normalise(f"file://{tmp_path}/x") == f"{tmp_path}/x"
    assert storage.normalise("s3://b/k/") == "s3://b/k"
    assert storage.join("s3://b/k/", "/a/", "c") == "s3://b/k/a/c"
    storage.write_text("plain.txt", "x")
    assert [e.path for e in storage.list_files("plain.txt")] == [f"{tmp_path}/plain.txt"]


def test_s3_options_in_the_path_itself(s3: str) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    folder = uuid.uuid4().hex
    options = f"?endpoint_override={endpoint}&scheme=http&region=us-east-1"
    storage.write_text(f"{s3}/{folder}/a.txt", "x")
    (entry,) = storage.list_files(f"{s3}/{folder}{options}")
    assert entry.path == f"{s3}/{folder}/a.txt{options}"
    assert storage.read_text(entry.path) == "x"
    assert storage.list_files(f"{s3}/{folder}/*.txt{options}") == [entry]


def test_a_path_that_is_not_there_is_told_with_what_is_beside_it(tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", ".hidden"):
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=rf"Did you mean {tmp_path}/corpus\.jsonl\?"):
        storage.list_files(str(tmp_path / "corpsu.jsonl"))
    with pytest.raises(InputError, match=rf"In {tmp_path}: corpus\.jsonl, queries\.jsonl$"):
        storage.list_files(str(tmp_path / "x"))
    with pytest.raises(InputError, match=rf"There is no folder {tmp_path}/y either"):
        storage.list_files(str(tmp_path / "y" / "x"))


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda path: storage.write_text(path, "x"), storage.make_dir):
        with pytest.raises(RaycurateError, match=rf"{tmp_path}/file/a/b: its folder cannot be made .*permissions"):
            write(str(tmp_path / "file" / "a" / "b"))
