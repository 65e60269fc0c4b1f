"""Exact top-k search: seconds against the bare float32 product that it needs, and against what a user would write.

    python jobs/benchmarks/search.py [--documents 200000] [--queries 2000] [--k 100] [--repeats 3]
    python jobs/benchmarks/search.py --documents 1000000 --queries 1000 --only ray --repeats 1

Unit vectors around common directions, as embeddings lie (or random ones: --random). Rows of the table:

  torch product      blocked float32 `torch.mm` into one buffer, no top-k: what a float32 search cannot beat
  numpy product      the same with numpy
  torch              the product and `torch.topk` of each block, the blocks' hits merged
  faiss              IndexFlatIP
  raycurate          one process, all cores
  raycurate, Ray     tasks of one thread each, the first search (in brackets: a second one, which finds their
                      processes started)

Each runs in a process of its own, `--repeats` times in turn; medians are given, with the process's peak memory
less what it held before the search; for Ray, the peak of the driver and all processes below it, whole (what several
share counted once: the sum of their proportional set sizes, which has the mapped files' pages in it, looked at five
times a second). Hits of all are compared with ours, and those of a sample of the queries (--check) with a float64
product of that sample and all documents. Vectors are made and written 50,000 at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from about import about, in_a_line

BLOCK, SPAN = 1024, 4096


def vectors(count: int, dim: int, seed: int, *, random: bool) -> np.ndarray:
    """float32 unit vectors [count, dim]: noise around one of 2,000 directions that have a part in common."""
    generator = np.random.default_rng(0)
    middle = generator.standard_normal((2000, dim), dtype=np.float32)
    middle += generator.standard_normal((1, dim), dtype=np.float32)
    generator = np.random.default_rng(seed)
    out = np.empty((count, dim), np.float32)
    for at in range(0, count, 50_000):
        part = generator.standard_normal((min(50_000, count - at), dim), dtype=np.float32)
        if not random:
            part += middle[generator.integers(0, len(middle), len(part))]
        out[at : at + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def torch_product(queries: np.ndarray, documents: np.ndarray, k: int) -> None:
    import torch

    left, right, out = torch.from_numpy(queries), torch.from_numpy(documents), torch.empty(BLOCK * SPAN)
    for part in left.split(BLOCK):
        for span in right.split(SPAN):
            torch.mm(part, span.T, out=out[: len(part) * len(span)].view(len(part), len(span)))


def numpy_product(queries: np.ndarray, documents: np.ndarray, k: int) -> None:
    out = np.empty(BLOCK * SPAN, np.float32)
    for at in range(0, len(queries), BLOCK):
        part = queries[at : at + BLOCK]
        for lo in range(0, len(documents), SPAN):
            span = documents[lo : lo + SPAN]
            np.matmul(part, span.T, out=out[: len(part) * len(span)].reshape(len(part), len(span)))


def plain_torch(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    import torch

    found = []
    for part in torch.from_numpy(queries).split(BLOCK):
        scores, rows = torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.int64)
        for at in range(0, len(documents), 16 * SPAN):
            here = torch.topk(part @ torch.from_numpy(documents[at : at + 16 * SPAN]).T, k, dim=1)
            scores, kept = torch.topk(torch.cat([scores, here.values], 1), k, dim=1)
            rows = torch.cat([rows, here.indices + at], 1).gather(1, kept)
        found.append(rows)
    return torch.cat(found).numpy()


def faiss_flat(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(documents)
    rows: np.ndarray = index.search(queries, k)[1]
    return rows


def ours(queries: np.ndarray, documents: np.ndarray, k: int) -> np.ndarray:
    from raycurate.search.prepared import Buffers
    from raycurate.search.topk import TopK

    buffers, prepared, found = Buffers(), None, []
    for at in range(0, len(queries), BLOCK):
        state = TopK(queries[at : at + BLOCK], k, buffers=buffers)
        prepared = prepared or state.prepare(documents, 0)
        state.add(prepared)
        found.append(state.hits().rows_QK)
    return np.concatenate(found)


RUNS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray | None]] = {
    "torch product": torch_product,
    "numpy product": numpy_product,
    "torch": plain_torch,
    "faiss": faiss_flat,
    "raycurate": ours,
}


def peak_mib() -> float:
    """Peak resident memory of this process since it was last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def timed(name: str, folder: str, k: int, results: Any) -> None:
    """In a process of its own: (seconds, MiB) to `results`; hits to a file."""
    from raycurate.search import VectorShards

    shards = VectorShards.open(folder)
    documents = np.concatenate([shards.read(piece) for piece in shards.pieces(0, len(shards))])
    queries = np.load(f"{folder}/queries.npy")
    run = RUNS[name]
    try:
        run(queries[:64], documents[:20_000], min(k, 64))  # imports, and the libraries' first-call work
    except ImportError as error:
        results.put((name, str(error)))
        return
    Path("/proc/self/clear_refs").write_text("5")
    before, started = peak_mib(), time.perf_counter()
    found = run(queries, documents, k)
    results.put((name, (time.perf_counter() - started, peak_mib() - before)))
    if found is not None:
        np.save(f"{folder}/found-{name}.npy", found)


class MemoryBelow:
    """Peak memory in MiB of this process and all below it, pages that several share counted once."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._stop.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, sum(_proportional(pid) for pid in _tree(os.getpid())))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _proportional(pid: int) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def on_ray(folder: str, k: int, workers: int) -> tuple[float, float, float]:
    """(seconds of the first search, of a second one, peak MiB)."""
    from raycurate.search import VectorShards, search

    shards, queries = VectorShards.open(folder), np.load(f"{folder}/queries.npy")
    memory, seconds = MemoryBelow(), []
    for _ in range(2):
        started = time.perf_counter()
        blocks = search(queries, shards, k, workers=workers, device="cpu")
        found = [(hits.rows_QK, hits.scores_QK) for _, hits in blocks]
        seconds.append(time.perf_counter() - started)
    np.save(f"{folder}/found-ray.npy", np.concatenate([rows for rows, _ in found]))
    np.save(f"{folder}/scores-ray.npy", np.concatenate([scores for _, scores in found]))
    return seconds[0], seconds[1], memory.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--shard-rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", type=int, default=20, help="queries that brute force is compared for")
    parser.add_argument("--random", action="store_true", help="random directions")
    parser.add_argument("--only", nargs="*", choices=[*RUNS, "ray"], help="leave the others out")
    parser.add_argument("--out", default="benchmark-search.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(folder, options)
        rows = measure(folder, options)
        agree(folder)
        if options.check and Path(folder, "found-ray.npy").exists():
            check(folder, options)
    head = (
        f"{options.documents:,} documents x {options.queries:,} queries x {options.dimension}, k = {options.k}, "
        f"{'random' if options.random else 'clustered'} directions"
    )
    machine = about()
    print(f"\n{head}; {in_a_line(machine)}\n")
    print_table(rows)
    Path(options.out).write_text(json.dumps({"what": head, "machine": machine, "rows": rows}, indent=2) + "\n")


def write(folder: str, options: argparse.Namespace) -> None:
    from raycurate.search import VectorShards

    np.save(f"{folder}/queries.npy", vectors(options.queries, options.dimension, 2, random=options.random))
    step = 50_000
    blocks = (
        vectors(min(step, options.documents - at), options.dimension, 10 + at, random=options.random)
        for at in range(0, options.documents, step)
    )
    VectorShards.write(folder, blocks, shard_rows=options.shard_rows)


def measure(folder: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians by row of the table."""
    spawn = multiprocessing.get_context("spawn")
    runs: dict[str, list[tuple[float, float]]] = {}
    ray_runs: list[tuple[float, float, float]] = []
    wanted = options.only or [*RUNS, "ray"]
    for _ in range(options.repeats):
        for name in (name for name in RUNS if name in wanted):
            results: Any = spawn.SimpleQueue()
            process = spawn.Process(target=timed, args=(name, folder, options.k, results))
            process.start()
            process.join()
            if process.exitcode or results.empty():
                raise SystemExit(f"{name} failed")
            _, got = results.get()
            if isinstance(got, str):
                print(f"{name}: left out ({got})")
                wanted.remove(name)
                continue
            runs.setdefault(name, []).append(got)
            print(f"{name}: {got[0]:.2f} s", flush=True)
        if "ray" in wanted:
            ray_runs.append(ray_in_turn(folder, options))
            print(f"raycurate, Ray: {ray_runs[-1][0]:.2f} s ({ray_runs[-1][1]:.2f})", flush=True)
    table = {
        name: {"seconds": statistics.median(s for s, _ in got), "peak_mib": statistics.median(m for _, m in got)}
        for name, got in runs.items()
    }
    if ray_runs:
        first, again, memory = (statistics.median(run[i] for run in ray_runs) for i in range(3))
        name = f"raycurate, Ray, {options.workers} workers"
        table[name] = {"seconds": first, "seconds_again": again, "peak_mib": memory}
    return table


def ray_in_turn(folder: str, options: argparse.Namespace) -> tuple[float, float, float]:
    from raycurate.ray_runtime.connect import connect, disconnect

    info = connect("local", num_cpus=max(options.workers, os.cpu_count() or 1))
    try:
        return on_ray(folder, options.k, options.workers)
    finally:
        disconnect(info)


def agree(folder: str) -> None:
    """Print how far the hits of the others are those of ours (float32 scores tie where exact ones do not)."""
    found = {path.stem.removeprefix("found-"): np.load(path) for path in Path(folder).glob("found-*.npy")}
    mine = found.pop("raycurate", None)
    for name, rows in sorted(found.items()) if mine is not None else ():
        assert mine is not None
        same = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(mine, rows, strict=True)]
        print(f"hits of {name} that are ours: {np.mean(same):.6f}")


def check(folder: str, options: argparse.Namespace) -> None:
    """Say how far the hits on Ray are those of brute force in float64, scores rounded to float32, ties by number."""
    from raycurate.search import VectorShards

    shards, queries = VectorShards.open(folder), np.load(f"{folder}/queries.npy")
    picked = np.sort(np.random.default_rng(3).choice(len(queries), min(options.check, len(queries)), replace=False))
    left = queries[picked].astype(np.float64)
    pieces = shards.pieces(0, len(shards), most=50_000)
    scores = np.concatenate(
        [(left @ shards.read(piece).astype(np.float64).T).astype(np.float32) for piece in pieces], 1
    )
    same, number = 0, np.arange(scores.shape[1])
    rows, given = np.load(f"{folder}/found-ray.npy")[picked], np.load(f"{folder}/scores-ray.npy")[picked]
    for own, row, score in zip(scores, rows, given, strict=True):
        best = np.lexsort((number, -own))[: options.k]
        same += bool(np.array_equal(best, row[: len(best)]) and np.array_equal(own[best], score[: len(best)]))
    print(f"queries whose hits and scores on Ray are those of brute force: {same} of {len(picked)}")


def print_table(rows: dict[str, dict[str, float]]) -> None:
    base = rows.get("torch product", {}).get("seconds")
    print(f"{'':32}{'seconds':>9}{'torch product / it':>20}{'MiB':>8}")
    for name, row in rows.items():
        ratio = f"{base / row['seconds']:.2f}" if base else ""
        print(f"{name:32}{row['seconds']:9.2f}{ratio:>20}{row['peak_mib']:8.0f}")
        if "seconds_again" in row:
            ratio = f"{base / row['seconds_again']:.2f}" if base else ""
            print(f"{'  again':32}{row['seconds_again']:9.2f}{ratio:>20}")


if __name__ == "__main__":
    main()
