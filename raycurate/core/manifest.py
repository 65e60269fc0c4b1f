"""What a stage read, wrote, counted and was configured with.

A stage's output folder is whole when its `_manifest.json`, always written last, lists the files and they
are there with the sizes it says. A stage is done when the key in its manifest equals the key it would
have now: the fingerprint of its input listing, its result-affecting options and the integer version of
its algorithm. Nothing else is consulted, so a person can see with `cat` why a stage runs or is skipped.

What lies beside the data has a name that begins with `_`, because pandas, pyarrow, Spark and Ray leave such names
out when they read a folder of Parquet files. Outputs that were written before have the same files without the `_`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raycurate.core import storage
from raycurate.core.checksums import Tasks, checksums
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError, OutputExistsError, RaycurateError
from raycurate.core.lock import LOCK, is_locked, output_lock, read_lock, require_held
from raycurate.core.lock import describe as describe_lock
from raycurate.core.observe import get_logger
from raycurate.core.redaction import redact
from raycurate.core.storage import FileEntry

MANIFEST = "_manifest.json"
CONTRACT = "_contract.json"
REJECTS = "_rejects"
RENAMED = "_renamed"
STAGING = "_staging"
OLD_MANIFEST, OLD_CONTRACT, OLD_REJECTS = "manifest.json", "contract.json", "rejects"
OWN_FILES = frozenset({MANIFEST, CONTRACT, LOCK, OLD_MANIFEST, OLD_CONTRACT})
OWN_FOLDERS = frozenset({REJECTS, OLD_REJECTS, RENAMED, STAGING})
FORMAT_VERSION = 1
_OF_AN_ATTEMPT = re.compile(r"(^|/)[a-z]+-[0-9a-f]{8}(-\d{5})?\.(parquet|jsonl)$")
log = get_logger(__name__)


class OutputFile(BaseModel):
    """One file of an output: its path relative to the folder, its size in bytes, its rows, its checksum.

    A manifest is a file that anybody may have written, so its paths are not trusted: they stay inside the folder.
    """

    path: str
    size: int
    rows: int | None = None
    checksum: str | None = None

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        return storage.require_inside(value)


class StageKey(BaseModel):
    """What decides a stage's result; two runs with equal keys have equal outputs."""

    stage: str
    algorithm_version: int
    input_fingerprint: str
    options: dict[str, Any]

    @field_validator("options")
    @classmethod
    def _without_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        return redact(value)

    def fingerprint(self) -> str:
        return fingerprint(self.model_dump(mode="json"))

    def differences(self, other: StageKey) -> list[str]:
        """One phrase for each thing in which `other` (now) differs from this (then)."""
        found = []
        if self.stage != other.stage:
            found.append(f"stage {self.stage} -> {other.stage}")
        if self.algorithm_version != other.algorithm_version:
            found.append(f"algorithm version {self.algorithm_version} -> {other.algorithm_version}")
        if self.input_fingerprint != other.input_fingerprint:
            found.append("the input's files (path, size or time of change)")
        for name in sorted(self.options.keys() | other.options.keys()):
            then, now = self.options.get(name), other.options.get(name)
            if then != now:
                found.append(f"{name}: {then!r} -> {now!r}")
        return found


class Manifest(BaseModel):
    """The record beside an output. `counts`, `rejects` and `timings` add up over all attempts of the run."""

    model_config = ConfigDict(extra="ignore")

    format_version: int = FORMAT_VERSION
    key: StageKey
    inputs: list[str] = Field(default_factory=list)
    files: list[OutputFile]
    counts: dict[str, int] = Field(default_factory=dict)
    rejects: dict[str, int] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    contract: dict[str, Any] | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @field_validator("inputs", "settings")
    @classmethod
    def _without_secrets(cls, value: Any) -> Any:
        return redact(value)


def listing_fingerprint(entries: list[FileEntry]) -> str:
    """Fingerprint of an input listing: path, size and time of change of each file."""
    return fingerprint(sorted((e.path, e.size, e.mtime_ns) for e in entries))


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions; those that are absent are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def staging_folder(output: str, name: str) -> str:
    """Where the work of the run called `name` waits until the output is made whole."""
    return storage.join(output, STAGING, name)


def is_data(path: str) -> bool:
    """Whether a file of an output, named relative to its folder, holds data, and not what we note beside them."""
    *folders, name = path.split("/")
    return name not in OWN_FILES and OWN_FOLDERS.isdisjoint(folders)


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Make `folder` whole. The caller has written every file it lists."""
    storage.write_text(storage.join(folder, MANIFEST), manifest.model_dump_json(indent=2) + "\n")


def manifest_path(folder: str) -> str | None:
    """Where the manifest of `folder` is, by its name of today or of before; None when there is none."""
    paths = (storage.join(folder, name) for name in (MANIFEST, OLD_MANIFEST))
    return next((path for path in paths if storage.exists(path)), None)


def delete_manifest(folder: str) -> None:
    """From now on `folder` is no longer whole."""
    while (path := manifest_path(folder)) is not None:
        storage.delete(path)


def read_manifest(folder: str) -> Manifest | None:
    """The manifest of `folder`, or None when it has none (it is absent, or its run has not ended).

    Raises:
        InputError: the manifest cannot be read as one.
    """
    path = manifest_path(folder)
    if path is None:
        return None
    try:
        return Manifest.model_validate(json.loads(storage.read_text(path)))
    except ValueError as error:
        raise InputError(f"it is not a raycurate manifest ({error})", where=path) from error


def missing_files(folder: str, manifest: Manifest) -> list[str]:
    """Files the manifest lists that are absent or have another size."""
    if not storage.exists(folder):
        return [f.path for f in manifest.files]
    sizes = {entry.path: entry.size for entry in storage.list_files(folder)}
    root = storage.normalise(folder)
    return [f.path for f in manifest.files if sizes.get(storage.join(root, f.path)) != f.size]


def require_whole(folder: str) -> Manifest:
    """The manifest of an output that another stage is about to read.

    Raises:
        InputError: no manifest, or files missing from what it lists.
    """
    manifest = read_manifest(folder)
    if manifest is None and not storage.exists(folder):
        raise storage.not_there(folder)
    if manifest is None:
        raise InputError(
            f"this folder has no {MANIFEST}, so it is not a finished output",
            where=folder,
            fix="Run the stage that writes it to its end",
        )
    gone = missing_files(folder, manifest)
    if gone:
        raise InputError(
            f"{len(gone)} of the {len(manifest.files)} files its manifest lists are missing or have another size, "
            f"first {gone[0]}",
            where=folder,
            fix="Restore them, or run the stage again with overwrite=true",
        )
    return manifest


def is_done(folder: str, key: StageKey, *, overwrite: bool = False) -> Manifest | None:
    """The manifest when `folder` holds exactly what `key` would make; None when the stage has to run.

    Raises:
        OutputExistsError: something else is there and `overwrite` was not given.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        if not overwrite:
            _refuse_foreign(folder)
        return None
    changed = manifest.key.differences(key)  # an option that is new since then and not given is no difference
    if not changed and not missing_files(folder, manifest):
        return manifest
    if overwrite:
        return None
    changed = changed or ["files that its manifest lists are missing"]
    raise OutputExistsError(
        "an output made from something else is there; it differs in " + "; ".join(changed),
        where=folder,
        fix=f"Use another output folder, overwrite=true, or `raycurate run -c RECIPE --force {key.stage}`",
    )


def already_done(folder: str, key: StageKey, *, overwrite: bool = False) -> Manifest | None:
    """`is_done` for a stage about to run: it says so, and drops what a run killed while it committed has left."""
    manifest = is_done(folder, key, overwrite=overwrite)
    if manifest is not None:
        if not is_locked(folder):
            storage.delete(storage.join(folder, STAGING))
        log.info("%s: %s is done, nothing to do", key.stage, folder)
    return manifest


@contextmanager
def one_writer(
    folder: str, key: StageKey, *, overwrite: bool = False, again: bool = False
) -> Iterator[Manifest | None]:
    """What a stage does around its work: the manifest when the output is done; else None, and the output is locked.

    Args:
        again: the work is to be done although its result is there.

    Raises:
        OutputExistsError: something else is there and `overwrite` was not given.
        OutputLockedError: another run writes there.
    """
    look = is_done if again else already_done
    done = look(folder, key, overwrite=overwrite)
    if done is not None and not again:
        yield done
        return
    with output_lock(folder, key.stage):
        done = look(folder, key, overwrite=overwrite)  # another run may just have ended
        yield None if again else done


def _refuse_foreign(folder: str) -> None:
    """A folder of somebody else's files is never written into; what a killed run left behind is its own."""
    if not storage.exists(folder):
        return
    if not storage.is_dir(folder):
        raise OutputExistsError("the output must be a folder; this is a file", where=folder)
    root = storage.normalise(folder)
    if storage.exists(storage.join(folder, STAGING)):
        return
    ours = (storage.join(root, STAGING) + "/", storage.join(root, LOCK))
    others = [e.path for e in storage.list_files(folder) if not e.path.startswith(ours)]
    if others:
        raise OutputExistsError(
            f"the folder holds {len(others)} files that no manifest speaks of, first {others[0]}",
            where=folder,
            fix="Use an empty folder, or overwrite=true",
        )


def state_of(folder: str, make_key: Callable[[], StageKey], describe: Callable[[Manifest], str]) -> str:
    """One phrase for `raycurate info`: done (as `describe` says), running, changed (and what), interrupted, not run, or
    what is in the way.

    Args:
        make_key: the key that a run would have now.
    """
    try:
        manifest = read_manifest(folder)
        if is_locked(folder):
            return f"running: {describe_lock(read_lock(folder) or {})}"
        if manifest is None:
            staged = storage.exists(storage.join(folder, STAGING))
            return "interrupted; a new run goes on" if staged else "not run"
        changed = manifest.key.differences(make_key())
        if not changed and missing_files(folder, manifest):
            changed = ["files are missing"]
        return "changed: " + "; ".join(changed) if changed else f"done, {describe(manifest)}"
    except RaycurateError as error:
        return f"cannot run: {error}"


def commit(folder: str, manifest: Manifest, *, tasks: Tasks | None = None) -> None:
    """Make the output whole; only then drop the staging files and, with overwrite, the files that it replaces.

    Args:
        tasks: what reads the files for their checksums where they are many gigabytes.
    """
    old = read_manifest(folder)
    manifest.files = _with_checksums(folder, manifest.files, tasks)
    require_held(folder)
    write_manifest(folder, manifest)
    _drop_old_names(folder)
    listed = {f.path for f in manifest.files}
    delete_listed(folder, [replaced for replaced in old.files if replaced.path not in listed] if old else [])
    _drop_other_attempts(folder, listed)
    storage.delete(storage.join(folder, STAGING))


def _drop_other_attempts(folder: str, listed: set[str]) -> None:
    """Delete what attempts with other options have left: their files have the key's beginning in their names."""
    root = storage.normalise(folder)
    for entry in storage.list_files(folder):
        path = entry.path[len(root) + 1 :]
        if path not in listed and not path.startswith(f"{STAGING}/") and _OF_AN_ATTEMPT.search(path):
            log.info("%s: %s is of an attempt with other options, and is deleted", folder, path)
            storage.delete(entry.path)


def _with_checksums(folder: str, files: list[OutputFile], tasks: Tasks | None) -> list[OutputFile]:
    without = [file for file in files if file.checksum is None]
    made = checksums([(storage.join(folder, file.path), file.size) for file in without], tasks=tasks)
    found = dict(zip((file.path for file in without), made, strict=True))
    return [file.model_copy(update={"checksum": file.checksum or found[file.path]}) for file in files]


def delete_listed(folder: str, files: Iterable[OutputFile]) -> None:
    """Delete files of an output that its manifest lists: those that are still what it says, and no others."""
    left = []
    for file in files:
        path = storage.join(folder, file.path)
        size = storage.file_size(path)
        if size == file.size and storage.lies_inside(path, folder):
            storage.delete(path)
        elif size is not None:
            left.append(file.path)
    if left:
        log.warning(
            "%s: %d files of the old output were changed by somebody and are left there, first %s",
            folder,
            len(left),
            left[0],
        )


def verify(folder: str) -> Manifest:
    """The manifest of an output all of whose bytes are as they were written.

    Raises:
        InputError: no manifest, files missing, or files with other bytes.
    """
    manifest = require_whole(folder)
    known = [file for file in manifest.files if file.checksum is not None]
    made = checksums([(storage.join(folder, file.path), file.size) for file in known])
    damaged = [file.path for file, now in zip(known, made, strict=True) if now != file.checksum]
    if damaged:
        raise InputError(
            f"{len(damaged)} of the {len(manifest.files)} files its manifest lists have other bytes than were written, "
            f"first {damaged[0]}",
            where=folder,
            fix="Restore them, or run the stage again into another folder",
        )
    return manifest


def _drop_old_names(folder: str) -> None:
    """Delete the manifest and the contract that an output of before has beside its data, where they are ours."""
    manifest, contract = (storage.join(folder, name) for name in (OLD_MANIFEST, OLD_CONTRACT))
    if not storage.exists(manifest):
        return
    try:
        old = Manifest.model_validate(json.loads(storage.read_text(manifest)))
        ours = old.contract is not None and storage.exists(contract)
        ours = ours and json.loads(storage.read_text(contract)) == old.contract
    except ValueError:
        return  # somebody else's
    storage.delete(manifest)
    if ours:
        storage.delete(contract)
