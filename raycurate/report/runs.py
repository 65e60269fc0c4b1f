"""Which outputs of stages lie under a working folder, and in what state.

A manifest says of which stage a folder is, wherever a recipe has put it; a folder without one is known by its usual
name alone. An output is whole when every file of its manifest is there, and only then is it shown as done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow.fs as pafs

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import MANIFEST, STAGING, Manifest, manifest_path, missing_files, read_manifest

USUAL = {
    "corpus": "sample-corpus",
    "embeddings": "embed",
    "clusters": "kmeans",
    "dedup": "dedup",
    "converted": "convert",
    "mined": "mine",
    "unrolled": "unroll",
    "prep": "prep",
    "finetune": "finetune",
    "eval": "eval",
}
"""Folders that recipes use by default and their stages, in the order in which they run."""

_NAMED_IN_ERROR = 12


@dataclass(frozen=True)
class StageOutput:
    """One stage's output.

    Attributes:
        stage: its name, as on the command line.
        folder: path or URI.
        name: the same seen from the working folder; "." is that folder itself.
        manifest: None where there is none, as after an interruption.
        problem: why the output is not whole; "" if it is.
        remark: what else a reader should know, such as that what it was made from has been made anew since.
    """

    stage: str
    folder: str
    name: str
    manifest: Manifest | None
    problem: str = ""
    remark: str = ""

    @property
    def whole(self) -> bool:
        return self.manifest is not None and not self.problem

    @cached_property
    def options(self) -> dict[str, Any]:
        """The settings it was made with, result-affecting options included."""
        if self.manifest is None:
            return {}
        return {**self.manifest.key.options, **self.manifest.settings}

    def count(self, name: str) -> int:
        return self.manifest.counts.get(name, 0) if self.manifest else 0

    def path(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)

    def files(self, beginning: str, ending: str = "") -> list[str]:
        """Full paths of the files listed in the manifest whose relative path begins and ends so."""
        listed = self.manifest.files if self.manifest else []
        return [self.path(f.path) for f in listed if f.path.startswith(beginning) and f.path.endswith(ending)]

    def rows(self, beginning: str) -> int:
        """Rows, by the manifest, of the files whose relative path begins so."""
        listed = self.manifest.files if self.manifest else []
        return sum(f.rows or 0 for f in listed if f.path.startswith(beginning))

    def now(self, path: str) -> str:
        """Where an input that was named when the stage ran lies now.

        A run is often moved or copied as a whole, and its paths may have been relative to another folder. What the
        output's old and new place have in common at their ends says how the beginnings changed.
        """
        then = str(self.options.get("output") or "")
        moved = _moved(path, then, self.folder)
        return moved if moved is not None and storage.exists(moved) else path


def _moved(path: str, then: str, now: str) -> str | None:
    """`path` with the beginning changed as it was from `then` to `now`; None where it does not begin that way."""
    if not then or (storage.is_remote(path) and not storage.is_remote(then)):
        return None
    old, new = then.rstrip("/").split("/"), now.rstrip("/").split("/")
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    before, after = "/".join(old), "/".join(new)
    if before == after or not after:
        return None
    if not before:
        return None if path.startswith("/") or storage.is_remote(path) else f"{after}/{path}"
    return f"{after}/{path[len(before) + 1 :]}" if path.startswith(before + "/") else None


@dataclass(frozen=True)
class Run:
    """A working folder and the outputs in it, in the order of the pipeline."""

    workdir: str
    outputs: tuple[StageOutput, ...]

    @property
    def name(self) -> str:
        """The working folder's own name: where it lies on a machine is nobody else's affair."""
        return self.workdir.rpartition("/")[2] or self.workdir

    def short(self, path: str) -> str:
        """A path as it is seen from the working folder, where it lies in it."""
        inside = self.workdir.rstrip("/") + "/"
        return f"{self.name}/{path[len(inside) :]}" if path.startswith(inside) else path

    def of(self, *stages: str) -> StageOutput | None:
        """The whole output of the first of `stages` that has one: in the usual folder, else the last that was made."""
        for stage in stages:
            found = [o for o in self.outputs if o.stage == stage and o.whole]
            if found:
                return min(found, key=lambda o: (USUAL.get(o.name) != stage, _falling(_created(o)), o.name))
        return None


def _created(output: StageOutput) -> str:
    return output.manifest.created if output.manifest else ""


def _falling(text: str) -> tuple[int, ...]:
    return tuple(-ord(letter) for letter in text)


def open_run(workdir: str) -> Run:
    """The outputs in `workdir`, its folders and theirs.

    Raises:
        InputError: there is no such folder, or no stage's output in it.
    """
    workdir = storage.normalise(workdir)
    if not storage.is_dir(workdir):
        if not storage.exists(workdir):
            raise storage.not_there(workdir)
        raise InputError("this is a file", where=workdir, fix="Give the workdir of a recipe")
    found = list(_outputs(workdir))
    if not found:
        names = _folders(workdir)
        seen = ", ".join(names[:_NAMED_IN_ERROR]) or "none"
        raise InputError(
            f"no stage has left an output here: neither the folder, nor its folders ({seen}), nor theirs have a "
            f"{MANIFEST}",
            where=workdir,
            fix="Give the workdir of a recipe (raycurate run -c RECIPE), or the output folder of a stage",
        )
    order = [*USUAL.values()]
    found.sort(key=lambda o: (order.index(o.stage) if o.stage in order else len(order), _created(o), o.name))
    return Run(workdir, tuple(_with_remarks(found)))


def _outputs(workdir: str) -> Iterator[StageOutput]:
    if manifest_path(workdir) is not None:
        yield _output(workdir, ".")
        return
    for name in _folders(workdir):
        folder = storage.join(workdir, name)
        if manifest_path(folder) is not None:
            yield _output(folder, name)
            continue
        if name in USUAL and _begun(folder):
            yield StageOutput(USUAL[name], folder, name, None, f"it has no {MANIFEST}: the stage has not ended")
            continue
        for inner in _folders(folder):
            if manifest_path(storage.join(folder, inner)) is not None:
                yield _output(storage.join(folder, inner), f"{name}/{inner}")


def _folders(path: str) -> list[str]:
    """Names of the folders in `path`, without hidden ones."""
    filesystem, inner = storage.filesystem(path)
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(inner))
    except OSError as error:
        raise InputError(f"it cannot be listed ({error})", where=path) from error
    names = [i.base_name for i in infos if i.type == pafs.FileType.Directory]
    return sorted(n for n in names if not n.startswith((".", "_")))


def _begun(folder: str) -> bool:
    """Whether a stage has started to write into a folder of a usual name; a user's own corpus has the name too."""
    return storage.exists(storage.join(folder, STAGING)) or storage.exists(storage.join(folder, "train.jsonl"))


def _output(folder: str, name: str) -> StageOutput:
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        return StageOutput(USUAL.get(name, "unknown"), folder, name, None, f"its manifest is unreadable: {error.what}")
    assert manifest is not None
    gone = missing_files(folder, manifest)
    problem = ""
    if gone:
        problem = f"{len(gone)} of {len(manifest.files)} files are missing or have another size, first {gone[0]}"
    return StageOutput(manifest.key.stage, folder, name, manifest, problem)


def _with_remarks(outputs: Sequence[StageOutput]) -> Iterator[StageOutput]:
    """The outputs, those that are older than what they were made from with a remark that says so."""
    for output in outputs:
        older = [
            other.stage
            for other in outputs
            if other is not output and _reads(output, other) and _created(other) > _created(output)
        ]
        yield replace(output, remark=f"made before {' and '.join(older)} ran again") if older else output


def _reads(output: StageOutput, other: StageOutput) -> bool:
    given = output.manifest.inputs if output.manifest else []
    inputs = [storage.normalise(output.now(path)) for path in given]
    return any(path == other.folder or path.startswith(other.folder + "/") for path in inputs)
