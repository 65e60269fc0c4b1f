"""The comparing of a whole corpus as Ray tasks, resumable piece of work by piece of work.

Small clusters go several to a task, so that no task is a blink; a cluster of more than `tile_rows` rows is ordered by
one task, compared chunk by chunk by many, and merged by one. Each piece leaves a note in the staging folder when its
files are written; a second run does only those that have none. A worker that dies is replaced and its task repeated
by Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raycurate.core import storage
from raycurate.core.manifest import OutputFile
from raycurate.core.observe import Progress, get_logger
from raycurate.stages.dedup.clusters import Reader
from raycurate.stages.dedup.neighbours import PairOptions, compare_chunk, merge, order, whole_cluster, write_tables

log = get_logger(__name__)
_PAIRS_A_TASK = 1 << 28
_RETRIES = 5  # of a task whose worker died


@dataclass(frozen=True)
class Resources:
    """What a comparing task reserves. remote_args: further options of the task (label_selector, runtime_env, ...)."""

    cpus: float
    gpus: float = 0.0
    remote_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """Clusters that are compared in one go; `cut` when it is one that is cut into chunks."""

    name: str
    clusters: list[int]
    cut: bool


def items_of(rows_K: np.ndarray, tile_rows: int, skip: np.ndarray | None = None) -> list[Item]:
    """The work: clusters without rows, or where `skip` says so, left out.

    Args:
        rows_K: rows that take part in the comparing of each cluster.
    """
    items: list[Item] = []
    together: list[int] = []
    pairs = 0
    for k, rows in enumerate(rows_K.tolist()):
        if not rows or (skip is not None and skip[k]):
            continue
        if rows > tile_rows:
            items.append(Item(f"cut-{k}", [k], cut=True))
            continue
        together.append(k)
        pairs += rows * rows // 2
        if pairs >= _PAIRS_A_TASK:
            items.append(Item(f"clusters-{together[0]}-{k}", together, cut=False))
            together, pairs = [], 0
    if together:
        items.append(Item(f"clusters-{together[0]}-{together[-1]}", together, cut=False))
    # The cut ones are the longest and have three steps: they go first.
    return sorted(items, key=lambda item: not item.cut)


@dataclass(frozen=True)
class PairRun:
    """What all items of a run share. output: where the files go. staging: where the notes and ordered clusters lie."""

    reader: Reader
    options: PairOptions
    output: str
    staging: str
    resources: Resources


def compare_all(run: PairRun, items: list[Item]) -> list[OutputFile]:
    """Write the neighbours and edges of all items; returns the files."""
    import ray

    done = {item.name: files for item in items if (files := _noted(run.staging, item)) is not None}
    shared = ray.put(run.reader)
    remote = _Remote(run.resources)
    running: dict[Any, Callable[[Any], dict[Any, Any]]] = {}
    with Progress("pairwise", total=len(items), unit="piece") as progress:
        progress.update(len(done))

        def finish(item: Item) -> Callable[[list[OutputFile]], dict[Any, Any]]:
            def finished(files: list[OutputFile]) -> dict[Any, Any]:
                done[item.name] = files
                progress.update(1)
                return {}

            return finished

        for item in [item for item in items if item.name not in done]:
            if item.cut:
                running.update(_Cut(item, run, shared, remote, finish(item)).start())
            else:
                task = remote(_compare_small, "Pairwise")
                running[task(shared, item, run.options, run.output, run.staging)] = finish(item)
        while running:
            ready, _ = ray.wait(list(running))
            for reference in ready:
                then = running.pop(reference)
                running.update(then(ray.get(reference)))
    return [file for item in items for file in done[item.name]]


def first_pass(resources: Resources, device: str) -> str:
    """The precision of the first product over all pairs, as a worker chooses it; no score depends on it."""
    import ray

    found: str = ray.get(_Remote(resources)(_first_pass, "FirstPass")(device))
    log.info("dedup: first pass in %s on %s", found, device)
    return found


def _first_pass(device: str) -> str:
    import torch

    from raycurate.models.devices import bfloat16_is_faster

    return "bfloat16" if bfloat16_is_faster(torch.device(device)) else "float32"


class _Remote:
    """Functions as Ray tasks with the resources of a comparing worker."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def __call__(self, fn: Callable[..., Any], name: str) -> Callable[..., Any]:
        import ray

        options = {**self.resources.remote_args, "num_cpus": self.resources.cpus, "num_gpus": self.resources.gpus}
        # A GPU worker is kept for the next task, as those of CPU tasks are: it has torch and its context loaded.
        return ray.remote(max_calls=0)(fn).options(name=name, max_retries=_RETRIES, **options).remote


class _Cut:
    """A large cluster on its way: order, then its chunks, then merge."""

    def __init__(self, item: Item, run: PairRun, reader: Any, remote: _Remote, finished: Callable[..., Any]) -> None:
        self.item, self.run, self.reader, self.remote, self.finished = item, run, reader, remote, finished
        self.folder = storage.join(run.staging, item.name)
        self.left = 0

    def start(self) -> dict[Any, Any]:
        task = self.remote(_order, "PairwiseOrder")
        return {task(self.reader, self.item, self.run.options, self.folder): self.ordered}

    def ordered(self, chunks: int) -> dict[Any, Any]:
        """The chunks with most to compare first."""
        self.left = chunks
        task = self.remote(_compare_chunk, "PairwiseTile")
        return {task(self.folder, number, self.run.options): self.compared for number in reversed(range(chunks))}

    def compared(self, _: None) -> dict[Any, Any]:
        self.left -= 1
        if self.left:
            return {}
        run, task = self.run, self.remote(_merge, "PairwiseMerge")
        return {task(self.reader, self.item, run.options, run.output, run.staging): self.finished}


def _compare_small(reader: Reader, item: Item, options: PairOptions, output: str, staging: str) -> list[OutputFile]:
    files: list[OutputFile] = []
    for k in item.clusters:
        files += write_tables(output, f"cluster_{k}", *whole_cluster(reader, k, options), by_home=options.partial)
    return _note(staging, item, files)


def _order(reader: Reader, item: Item, options: PairOptions, folder: str) -> int:
    """Number of chunks; done once, noted beside them."""
    note = storage.join(folder, "chunks")
    if storage.exists(note):
        return int(storage.read_text(note))
    chunks = order(reader, item.clusters[0], options, folder)
    storage.write_text(note, str(chunks))
    return chunks


def _compare_chunk(folder: str, number: int, options: PairOptions) -> None:
    if not storage.exists(storage.join(folder, f"found-{number:05d}.npz")):
        compare_chunk(folder, number, options)


def _merge(reader: Reader, item: Item, options: PairOptions, output: str, staging: str) -> list[OutputFile]:
    folder = storage.join(staging, item.name)
    tables = merge(folder, options, reader.id_field)
    written = write_tables(output, f"cluster_{item.clusters[0]}", *tables, by_home=options.partial)
    files = _note(staging, item, written)
    storage.delete(folder)
    return files


def _note(staging: str, item: Item, files: list[OutputFile]) -> list[OutputFile]:
    text = json.dumps({"clusters": item.clusters, "files": [file.model_dump() for file in files]})
    storage.write_text(storage.join(staging, f"{item.name}.json"), text)
    return files


def _noted(staging: str, item: Item) -> list[OutputFile] | None:
    """The files of an item that an earlier attempt finished."""
    path = storage.join(staging, f"{item.name}.json")
    if not storage.exists(path):
        return None
    note = json.loads(storage.read_text(path))
    if note["clusters"] != item.clusters:
        return None  # dealt out with another tile_rows
    return [OutputFile(**file) for file in note["files"]]
