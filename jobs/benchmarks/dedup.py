"""Semantic deduplication from embeddings: against an exact numpy all-pairs and, where it is installed, semhash.

    python jobs/benchmarks/dedup.py --embeddings runs/quickstart/embeddings [--rows 32768] [--eps 0.05]

Real embeddings; more rows than there are come from adding noise to them, which is said. Two parts:

  pairwise   one cluster of `--rows` rows, in this process, all cores: useful pairs (n^2 / 2) x 2 x dim operations a
             second, against the rate of numpy's float32 matrix product on the same rows
  stage      `kmeans` and `dedup` as a user runs them (local Ray, files in, files out), with probe 1, 2 and 4: rows/s,
             duplicates, and recall of the exact pairs; against numpy all-pairs and semhash in one process each
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from about import about, in_a_line
from kmeans import load

FLOOR = 0.9


def gemm_rate(data: np.ndarray) -> float:
    """Operations a second of numpy's float32 product, 8,192 rows by all."""
    part = data[:8192]
    part[:512] @ data.T
    started = time.perf_counter()
    part @ data.T
    return 2 * len(part) * len(data) * data.shape[1] / (time.perf_counter() - started)


def pairwise(data: np.ndarray) -> dict[str, Any]:
    import torch

    from raycurate.stages.dedup.pairwise import compare

    rate = gemm_rate(data)
    operations = len(data) * (len(data) - 1) * data.shape[1]
    rows = {"numpy float32 product": {"gflops": rate / 1e9, "ratio": 1.0}}
    for name, rough in (("raycurate, float32", False), ("raycurate, bfloat16 first pass", True)):
        started = time.perf_counter()
        found = compare(data, 0, [(0, data)], floor=FLOOR, device=torch.device("cpu"), rough=rough)
        ours = operations / (time.perf_counter() - started)
        rows[name] = {"gflops": ours / 1e9, "ratio": ours / rate, "edges": len(found.later_E)}
    return rows


def exact(data: np.ndarray, eps: float) -> dict[str, Any]:
    """numpy: all pairs in blocks of the upper triangle, then the greedy decision."""
    started = time.perf_counter()
    kept = np.ones(len(data), bool)
    pairs = 0
    for start in range(0, len(data), 1024):
        block = data[start : start + 1024]
        later, earlier = np.nonzero(block @ data[: start + len(block)].T >= 1 - eps)
        later += start
        inside = earlier < later
        pairs += int(inside.sum())
        for row, other in zip(later[inside], earlier[inside], strict=True):
            if kept[row] and kept[other]:
                kept[row] = False
    return {"seconds": time.perf_counter() - started, "removed": int((~kept).sum()), "pairs": pairs}


def semhash(data: np.ndarray, eps: float) -> dict[str, Any]:
    """semhash with its own approximate index, vectors given."""
    from semhash import SemHash

    records = [str(i) for i in range(len(data))]

    class Given:
        def encode(self, inputs: Any, **_: Any) -> np.ndarray:
            return data[[int(i) for i in inputs]]

    started = time.perf_counter()
    index = SemHash.from_embeddings(embeddings=data, records=records, model=Given())
    found = index.self_deduplicate(threshold=1 - eps)
    removed = len(found.filtered)
    return {"seconds": time.perf_counter() - started, "removed": removed}


def stage(data: np.ndarray, eps: float, probes: list[int]) -> dict[str, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    import raycurate as rc
    from raycurate.clustering.assignment import fixed_size_lists

    ray.init(address="local", include_dashboard=False, logging_level=30)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in").mkdir()
        table = pa.table({"id": [f"{i:08d}" for i in range(len(data))], "embeddings": fixed_size_lists(data)})
        pq.write_table(table, f"{folder}/in/a.parquet", row_group_size=8192)
        started = time.perf_counter()
        rc.kmeans(f"{folder}/in", f"{folder}/clusters")
        clustering = time.perf_counter() - started
        for probe in probes:
            started = time.perf_counter()
            result = rc.deduplicate(f"{folder}/clusters", f"{folder}/out{probe}", eps=eps, probe=probe)
            seconds = time.perf_counter() - started + clustering
            measured = rc.deduplicate(
                f"{folder}/clusters", f"{folder}/out{probe}", eps=eps, probe=probe, recall_sample=2000, overwrite=True
            )
            recall = measured.manifest.settings["recall"]
            rows[f"raycurate, probe {probe}"] = {
                "seconds": seconds,
                "kmeans_seconds": clustering,
                "removed": result.manifest.counts["removed"],
                "recall": recall["found"] / max(1, recall["pairs"]),
            }
    ray.shutdown()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", default="runs/quickstart/embeddings")
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", default="benchmark-dedup.json")
    options = parser.parse_args()
    data, real = load(options.embeddings, options.rows)
    head = f"{len(data):,} x {data.shape[1]} ({real:,} real rows, the others with noise), eps {options.eps:g}"
    machine = about()
    print(f"{head}; {in_a_line(machine)}\n")
    pairs = pairwise(data)
    print("| pairwise, one cluster | GFLOP/s of useful pairs | x numpy's product |\n|---|---|---|")
    for name, row in pairs.items():
        print(f"| {name} | {row['gflops']:.0f} | {row['ratio']:.2f} |", flush=True)
    rows: dict[str, dict[str, Any]] = {"numpy, exact all pairs": exact(data, options.eps) | {"recall": 1.0}}
    try:
        rows["semhash"] = semhash(data, options.eps)
    except ImportError as error:
        print(f"\nsemhash: left out ({error})")
    rows |= stage(data, options.eps, options.probes)
    print("\n| from embeddings | seconds | rows/s | removed | recall of exact pairs |\n|---|---|---|---|---|")
    for name, row in rows.items():
        recall = f"{row['recall']:.4f}" if "recall" in row else ""
        print(f"| {name} | {row['seconds']:.1f} | {len(data) / row['seconds']:,.0f} | {row['removed']:,} | {recall} |")
    Path(options.out).write_text(
        json.dumps({"what": head, "machine": machine, "pairwise": pairs, "stage": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
