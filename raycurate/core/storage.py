"""Paths: local, s3://, gs://, hf:// and whatever fsspec knows, behind pyarrow.fs.

One rule keeps partial outputs from looking whole: a file appears under its name only when all its
bytes are there. Locally that is a temporary file and a rename; on an object store a PUT is atomic.
Folders are made whole by the manifest written last (core/manifest.py), never by a rename of the
folder, which no object store can do atomically.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from raycurate.core.errors import ConfigError, InputError, MissingDependencyError, RaycurateError, nearest

TEMPORARY = ".tmp-"
_COPIED_AT_ONCE = 16 * 2**20  # bytes of a file
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMES_SHOWN = 10  # of a folder, in an error


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file as a listing shows it: full path or URI, size in bytes, time of change in ns."""

    path: str
    size: int
    mtime_ns: int


def scheme_of(path: str) -> str:
    """`s3` for s3://bucket/key, `file` for a local path."""
    head, separator, _ = path.partition("://")
    return head.lower() if separator else "file"


def is_remote(path: str) -> bool:
    return scheme_of(path) not in ("file", "local")


def normalise(path: str | os.PathLike[str]) -> str:
    """A local path made absolute (with ~ expanded), a URI as it is, neither with a trailing slash."""
    text = os.fspath(path)
    if is_remote(text):
        return text.rstrip("/")
    text = text.split("://", 1)[1] if "://" in text else text
    return str(_at_home(text).absolute())


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user, or nobody's home is known
        if os.path.lexists(text):
            return Path(text)
        name = text.partition("/")[0]
        raise ConfigError(
            f"no home folder is known for '{name}' ({error})",
            where=text,
            fix=f"Write ./{name} for a folder of that name",
        ) from None


def without_options(path: str) -> str:
    """A URI without what follows its `?` (endpoint, region); a local path as it is, whatever marks are in it."""
    return path.partition("?")[0] if is_remote(path) else path


def join(base: str, *parts: str) -> str:
    """`base` and `parts` with one slash between them; works for URIs and local paths alike."""
    return posixpath.join(base.rstrip("/") or "/", *[p.strip("/") for p in parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that holds `path`, and the path as that filesystem names it.

    Credentials and endpoints are those that the run was given for the path (core/access.py), else they come from the
    environment as each cloud's own tools read them
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN, ...).

    Raises:
        ConfigError: no filesystem is known for the scheme.
        MissingDependencyError: the fsspec package for the scheme is not installed.
    """
    scheme = scheme_of(path)
    if scheme in ("file", "local"):
        return pafs.LocalFileSystem(), normalise(path)
    from raycurate.core.access import filesystem_with, options_for

    options = options_for(path)
    if options is not None:
        return filesystem_with(path, options)
    if scheme == "s3":
        return _s3(path)
    if scheme in ("gs", "gcs"):
        found, inner = pafs.FileSystem.from_uri("gs://" + path.split("://", 1)[1])
        return found, inner
    return _fsspec(scheme, path)


def _s3(path: str) -> tuple[pafs.FileSystem, str]:
    if "?" in path:  # options in the URI itself: endpoint_override, region, scheme
        return pafs.FileSystem.from_uri(path)
    options: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host, "scheme": scheme or "https"}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region:
        options["region"] = region
    if os.environ.get("RAYCURATE_S3_ANONYMOUS") == "1":
        options["anonymous"] = True
    return pafs.S3FileSystem(**options), path.split("://", 1)[1]


def _fsspec(scheme: str, path: str) -> tuple[pafs.FileSystem, str]:
    import fsspec

    inner = path.split("://", 1)[1]
    if scheme == "hf" and not inner.startswith(("datasets/", "spaces/", "buckets/")):
        # hf://org/dataset[@rev][/subdir] names a data set; the hub's filesystem wants its kind first.
        inner = f"datasets/{inner}"
    try:
        found = fsspec.filesystem(scheme)
    except ValueError as error:
        raise ConfigError(
            f"no filesystem is known for '{scheme}://'",
            where=path,
            fix="Use a local path, s3://, gs://, hf:// or a scheme that fsspec knows",
        ) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"'{scheme}://' paths need a package that is not installed ({error})", where=path
        ) from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(found)), inner


def exists(path: str) -> bool:
    found, inner = filesystem(path)
    return found.get_file_info(inner).type != pafs.FileType.NotFound


def not_there(path: str) -> InputError:
    """The error for a path that names nothing, with what lies beside it: most such paths are a slip of the pen."""
    fix = "Check the bucket and the path"
    if not is_remote(path):
        parent = Path(normalise(path)).parent
        try:
            names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
        except OSError:
            fix = f"There is no folder {parent} either" if not parent.exists() else f"{parent} cannot be listed"
        else:
            close = nearest(Path(path).name, names)
            shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
            fix = f"Did you mean {parent / close}?" if close else f"In {parent}: {shown or 'nothing'}"
    return InputError("there is no such file or folder", where=path, fix=fix)


def is_dir(path: str) -> bool:
    found, inner = filesystem(path)
    return found.get_file_info(inner).type == pafs.FileType.Directory


def _full(path: str, inner_root: str, inner: str) -> str:
    """The URI (or local path) of `inner`, which lies at or under `inner_root`, the inner form of `path`."""
    if not is_remote(path):
        return inner
    base = without_options(path)
    if inner.startswith("/") and not inner_root.startswith("/"):  # fsspec's memory:// lists with a slash in front
        inner = inner[1:]
    prefix = base[: len(base) - len(inner_root)] if base.endswith(inner_root) else scheme_of(path) + "://"
    return prefix + inner + path[len(base) :]


def _entry(path: str, inner_root: str, info: pafs.FileInfo) -> FileEntry:
    return FileEntry(_full(path, inner_root, info.path), info.size or 0, info.mtime_ns or 0)


def list_files(path: str, *, recursive: bool = True) -> list[FileEntry]:
    """Files at or under `path`, sorted by path; temporary files of unfinished writes are left out.

    `path` may be one file, a folder, or a glob: `*` and `[..]` within a name, `**` across folders and, in local
    paths, `?` (in a URI that begins the options). A local file whose own name has such a mark is that file.

    Raises:
        InputError: nothing is there, or it cannot be listed.
    """
    if is_glob(path):
        return _glob(path)
    found, inner = filesystem(path)
    try:
        info = found.get_file_info(inner)
        if info.type == pafs.FileType.File:
            return [_entry(path, inner, info)]
        if info.type == pafs.FileType.NotFound:
            raise not_there(path)
        infos = found.get_file_info(pafs.FileSelector(inner, recursive=recursive))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be listed ({error})", where=path) from error
    try:
        files = [i for i in infos if i.type == pafs.FileType.File and TEMPORARY not in i.base_name]
    except UnicodeDecodeError as error:
        fix = "Rename it (convmv does so for whole folders)"
        raise InputError(f"it holds a file whose name is not UTF-8 ({error.object!r})", where=path, fix=fix) from None
    return sorted((_entry(path, inner, i) for i in files), key=lambda e: e.path)


def is_glob(path: str) -> bool:
    """Whether `path` is a pattern; a local path that is there is that path, whatever marks are in it."""
    if is_remote(path):
        return any(mark in without_options(path) for mark in "*[")
    return any(mark in path for mark in "*[?") and not os.path.exists(normalise(path))


def glob_root(path: str) -> str | None:
    """The folder before the first mark of a pattern, with the options of a URI; None for what is no pattern."""
    if not is_glob(path):
        return None
    pattern = normalise(path)
    bare = without_options(pattern)
    first = min(bare.find(mark) for mark in "*[?" if mark in bare)
    return (bare[:first].rpartition("/")[0] or "/") + pattern[len(bare) :]


def _glob(pattern: str) -> list[FileEntry]:
    base = glob_root(pattern)
    assert base is not None
    pattern = normalise(pattern)
    bare = without_options(pattern)
    options = pattern[len(bare) :]
    if not exists(base):
        raise InputError("no file matches", where=pattern)
    wanted = re.compile(_glob_expression(bare) + re.escape(options))
    matched = [e for e in list_files(base) if wanted.fullmatch(e.path)]
    if not matched:
        raise InputError("no file matches", where=pattern)
    return matched


def _glob_expression(pattern: str) -> str:
    """The regular expression of a glob: `**/` is any number of whole folders, the other marks stay in one name."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]/]+\])", pattern)
    marks = [
        f"[{p[1:-1].replace('!', '^', 1) if p[1] == '!' else p[1:-1]}]" if p[:1] == "[" else p for p in parts[1::2]
    ]
    parts[1::2] = [meanings.get(m, m) for m in marks]
    parts[0::2] = [re.escape(p) for p in parts[0::2]]
    return "".join(parts)


def require_inside(path: str) -> str:
    """`path` when it is a plain relative one: no root, no `..`, no scheme, nothing empty.

    Raises:
        ValueError: it could lead out of the folder that it is relative to.
    """
    parts = path.split("/")
    if not path or "://" in path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"'{path}' is no plain path inside a folder")
    return path


def lies_inside(path: str, folder: str) -> bool:
    """Whether a file's own folder, links followed, is `folder` or inside it."""
    if is_remote(path):
        return path.startswith(folder.rstrip("/") + "/")
    place, root = os.path.realpath(os.path.dirname(normalise(path))), os.path.realpath(normalise(folder))
    return place == root or place.startswith(root.rstrip("/") + "/")


def file_size(path: str) -> int | None:
    """Bytes of a file; None when there is none, or it is a folder."""
    found, inner = filesystem(path)
    info = found.get_file_info(inner)
    return info.size if info.type == pafs.FileType.File else None


def private_folder(secret: str) -> Path:
    """A folder of this user alone under TMPDIR; processes of one machine that know the secret share it.

    Raises:
        RaycurateError: something that is not this user's own is there under its name.
    """
    place = Path(tempfile.gettempdir(), f"raycurate-{secret}")
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RaycurateError("it is not a folder of this user alone", where=str(place), fix="Delete it, or set TMPDIR")
    return place


def make_dir(path: str) -> None:
    found, inner = filesystem(path)
    if is_remote(path):
        found.create_dir(inner, recursive=True)
    else:
        _make_local(inner, path)


def _make_local(folder: str, path: str) -> None:
    """Make a local folder with those above it, for what is to be written to `path`."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise RaycurateError(
            f"its folder cannot be made ({error.strerror or error})",
            where=path,
            fix="Check the path and its permissions",
        ) from error


def delete(path: str) -> None:
    """Delete a file or a whole folder; what is not there is no error."""
    found, inner = filesystem(path)
    kind = found.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        found.delete_dir(inner)
    elif kind == pafs.FileType.File:
        found.delete_file(inner)


def copy_folder(uri: str, target: Path) -> None:
    """Copy the files under `uri` to a local folder; a store's keys are not trusted to lie inside it.

    Raises:
        InputError: nothing is there, or a key that leads elsewhere.
    """
    root = uri.rstrip("/") + "/"
    for entry in list_files(uri):
        try:
            relative = require_inside(entry.path.removeprefix(root) if entry.path.startswith(root) else "")
        except ValueError:
            raise InputError(f"its listing names '{entry.path}', which is not inside it", where=uri) from None
        copy_file(entry.path, str(target / relative))


def copy_file(source: str, target: str) -> None:
    """Copy one file in chunks, with the folders above it; a local target may be seen before it is whole."""
    origin, inner = filesystem(source)
    destination, place = filesystem(target)
    if not isinstance(destination, pafs.S3FileSystem):  # where folders are but prefixes
        destination.create_dir(posixpath.dirname(place), recursive=True)
    pafs.copy_files(
        inner, place, source_filesystem=origin, destination_filesystem=destination, chunk_size=_COPIED_AT_ONCE
    )


def read_bytes(path: str) -> bytes:
    """The whole file.

    Raises:
        InputError: it is not there or cannot be read.
    """
    found, inner = filesystem(path)
    try:
        with found.open_input_stream(inner, compression=None) as stream:
            return stream.read()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"it cannot be read ({error})", where=path) from error


def read_text(path: str) -> str:
    return read_bytes(path).decode("utf-8")


@contextmanager
def open_output(path: str) -> Iterator[pa.NativeFile]:
    """A binary stream whose bytes appear under `path` when the block ends without an error, else not at all.

    Raises:
        RaycurateError: the object store refuses it (no such bucket, no permission).
    """
    found, inner = filesystem(path)
    parent = posixpath.dirname(inner)
    if not isinstance(found, pafs.LocalFileSystem):
        # An object is visible only once its upload completes; on an error there is nothing to complete.
        buffer = pa.BufferOutputStream()
        yield buffer
        try:
            if not isinstance(found, pafs.S3FileSystem):
                found.create_dir(parent, recursive=True)
            with found.open_output_stream(inner, compression=None) as stream:
                stream.write(buffer.getvalue())
        except (OSError, pa.ArrowException) as error:
            raise RaycurateError(
                f"it cannot be written ({error})", where=path, fix="Check that the bucket is there and open to writing"
            ) from error
        return
    _make_local(parent, path)
    temporary = f"{parent}/{TEMPORARY}{uuid.uuid4().hex}-{posixpath.basename(inner)}"
    try:
        with found.open_output_stream(temporary, compression=None) as stream:
            yield stream
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, inner)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise RaycurateError(
                f"the disk is full ({os.strerror(error.errno)})",
                where=parent,
                fix="Make room there, or write to another disk; what is whole is kept, and the same command goes on",
            ) from error
        raise


def write_bytes(path: str, data: bytes) -> None:
    with open_output(path) as stream:
        stream.write(data)


def write_text(path: str, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))
