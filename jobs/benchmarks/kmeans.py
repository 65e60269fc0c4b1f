"""k-means against scikit-learn, faiss and plain torch: seconds to the same inertia, and seconds an iteration.

    python jobs/benchmarks/kmeans.py --embeddings runs/quickstart/embeddings [--rows 200000] [--clusters 1000]

Real embeddings; more rows than there are come from adding noise to them (a tenth of a vector's length), which is said
in the table. All start from the same random rows. The target is the inertia that scikit-learn's Lloyd reaches in
`--iterations` iterations; the others are timed until they are within 0.1% of it. Rows:

  scikit-learn        KMeans, algorithm="lloyd", all cores
  faiss               faiss.Kmeans without subsampling, all cores
  torch               a GEMM, argmin and index_add a block, in one process
  raycurate           the engine in one process, all cores
  raycurate, warm     the same, first fitted to a tenth of the rows
  raycurate, group    two workers of one thread each (Ray actors, Gloo); the fit alone, reading apart

and the group's scaling from one worker of one thread to two, medians of five runs each. What is not
installed is left out and named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from about import about, in_a_line

NOISE = 0.1
WITHIN = 1.001
REPEATS = 5  # of the group's runs, one worker and two in turn; medians are given


def load(folder: str, rows: int) -> tuple[np.ndarray, int]:
    """Unit vectors [rows, dim] and how many of them are real."""
    from raycurate.clustering.inputs import open_embeddings
    from raycurate.clustering.shards import read_piece
    from raycurate.stages.kmeans.config import KMeansConfig

    inputs = open_embeddings(KMeansConfig(input=folder, output="(none)"))
    parts = [read_piece(p, embedding_field="embeddings", dimension=inputs.dimension).rows_ND for p in inputs.pieces]
    real = np.concatenate(parts)[:rows]
    random = np.random.default_rng(0)
    out = np.empty((rows, real.shape[1]), np.float32)
    out[: len(real)] = real
    for start in range(len(real), rows, 50_000):
        size = min(50_000, rows - start)
        noise = random.normal(size=(size, real.shape[1])).astype(np.float32) * (NOISE / real.shape[1] ** 0.5)
        part = real[random.integers(0, len(real), size)] + noise
        out[start : start + size] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out, len(real)


def scikit_learn(data: np.ndarray, first: np.ndarray, iterations: int) -> tuple[float, float]:
    """(seconds, inertia) of so many iterations."""
    from sklearn.cluster import KMeans

    started = time.perf_counter()
    found = KMeans(len(first), init=first, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd").fit(data)
    return time.perf_counter() - started, float(found.inertia_)


def faiss_kmeans(data: np.ndarray, first: np.ndarray, iterations: int) -> list[tuple[float, float]]:
    """(seconds so far, inertia) by iteration."""
    import faiss

    kmeans = faiss.Kmeans(
        data.shape[1], len(first), niter=iterations, max_points_per_centroid=len(data), min_points_per_centroid=1
    )
    kmeans.train(data, init_centroids=first)
    return [(float(stats["time"]), float(stats["obj"])) for stats in kmeans.iteration_stats or []]


def plain_torch(data: np.ndarray, first: np.ndarray, iterations: int) -> list[tuple[float, float]]:
    import torch

    points, centres = torch.from_numpy(data), torch.from_numpy(first.copy())
    curve, started = [], time.perf_counter()
    for _ in range(iterations):
        sums, counts, inertia = torch.zeros_like(centres), torch.zeros(len(centres)), 0.0
        for part in points.split(16384):
            squares = torch.addmm(centres.square().sum(1), part, centres.T, alpha=-2)
            best, labels = squares.min(1)
            inertia += float((best + part.square().sum(1)).sum())
            sums.index_add_(0, labels, part)
            counts += torch.bincount(labels, minlength=len(centres))
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        curve.append((time.perf_counter() - started, inertia))
    return curve


def ours(data: np.ndarray, first: str, iterations: int, warm: float | None = None) -> list[tuple[float, float]]:
    import torch

    from raycurate.clustering.collective import Alone
    from raycurate.clustering.options import FitOptions
    from raycurate.clustering.points import Points
    from raycurate.clustering.torch_engine import fit

    curve: list[tuple[float, float]] = []
    points = Points([data], np.arange(len(data)), torch.device("cpu"), 32768)
    centroids = np.load(first)
    options = FitOptions(
        n_clusters=len(centroids),
        init=centroids,
        max_iter=iterations,
        tol=0.0,
        warm_start_fraction=warm,
        random_state=0,
    )
    started = time.perf_counter()
    fit(
        points,
        options,
        Alone(),
        progress=lambda done: curve.append((time.perf_counter() - started, done.inertia)),
    )
    # An iteration's inertia is that of the centroids it began with, whatever it was fitted to.
    return [(s, i) for s, i in curve if i > 0]


def group(folder: Path, first: str, iterations: int, workers: int) -> float:
    """Seconds of the fit of `workers` workers of one thread."""
    from raycurate.clustering.group import GroupPlan, KMeansGroup
    from raycurate.clustering.options import FitOptions
    from raycurate.clustering.shards import pieces_of
    from raycurate.core import storage

    pieces = pieces_of(storage.list_files(str(folder)), filetype="parquet", embedding_field="embeddings")
    centroids = np.load(first)
    options = FitOptions(n_clusters=len(centroids), init=centroids, max_iter=iterations, tol=0.0)
    plan = GroupPlan(workers, cpus=1, threads=1)
    return KMeansGroup(plan, pieces, "embeddings", centroids.shape[1]).fit(options).seconds


def reached(curve: list[tuple[float, float]], target: float) -> tuple[float, int] | None:
    """(seconds, iterations) until the inertia was within 0.1% of the target."""
    for number, (seconds, inertia) in enumerate(curve, 1):
        if inertia <= target * WITHIN:
            return seconds, number
    return None


def store(data: np.ndarray, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raycurate.clustering.assignment import fixed_size_lists

    table = pa.table({"embeddings": fixed_size_lists(data)})
    pq.write_table(table, folder / "a.parquet", row_group_size=5000, compression="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", default="runs/quickstart/embeddings")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--clusters", type=int, default=1_000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--out", default="benchmark-kmeans.json")
    options = parser.parse_args()
    data, real = load(options.embeddings, options.rows)
    random = np.random.default_rng(1)
    first = data[np.sort(random.choice(len(data), options.clusters, replace=False))].copy()
    with tempfile.TemporaryDirectory() as folder:
        init = str(Path(folder) / "first.npy")
        np.save(init, first)
        result = compare(data, first, init, options)
        (Path(folder) / "data").mkdir()
        store(data, Path(folder) / "data")
        result |= scaling(Path(folder) / "data", init, result)
    head = f"{len(data):,} x {data.shape[1]}, k = {options.clusters:,} ({real:,} real rows, the others with noise)"
    machine = about()
    print(f"\n{head}; {in_a_line(machine)}\n")
    print_table(result)
    Path(options.out).write_text(json.dumps({"what": head, "machine": machine, **result}, indent=2) + "\n")


def compare(data: np.ndarray, first: np.ndarray, init: str, options: argparse.Namespace) -> dict[str, Any]:
    seconds, target = scikit_learn(data, first, options.iterations)
    print(f"scikit-learn: {seconds:.1f} s, inertia {target:.6g}", flush=True)
    rows = {"scikit-learn": {"seconds": seconds, "iterations": options.iterations}}
    most = 2 * options.iterations
    runs: dict[str, Callable[[], list[tuple[float, float]]]] = {
        "faiss": lambda: faiss_kmeans(data, first, most),
        "torch": lambda: plain_torch(data, first, most),
        "raycurate": lambda: ours(data, init, most),
        "raycurate, warm start": lambda: ours(data, init, most, warm=0.1),
    }
    for name, run in runs.items():
        try:
            curve = run()
        except ImportError as error:
            print(f"{name}: left out ({error})")
            continue
        found = reached(curve, target)
        if found is None:
            print(f"{name}: did not come within 0.1% in {len(curve)} iterations ({curve[-1][1]:.6g})")
            continue
        rows[name] = {"seconds": found[0], "iterations": found[1]}
        print(f"{name}: {found[0]:.1f} s", flush=True)
    return {"target_inertia": target, "rows": rows}


def scaling(folder: Path, init: str, result: dict[str, Any]) -> dict[str, Any]:
    import ray

    iterations = int(result["rows"]["raycurate"]["iterations"])
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=30)
    runs = [[group(folder, init, iterations, workers) for workers in (1, 2)] for _ in range(REPEATS)]
    ray.shutdown()
    one, two = np.median(runs, axis=0).tolist()
    result["rows"]["raycurate, group of 2"] = {"seconds": two, "iterations": iterations}
    return {"scaling": {"one": one, "two": two, "ratio": one / two, "runs": runs}}


def print_table(result: dict[str, Any]) -> None:
    best = min(row["seconds"] for name, row in result["rows"].items() if name in ("scikit-learn", "faiss"))
    print("| | seconds to within 0.1% | iterations | seconds an iteration | x best of scikit-learn, faiss |")
    print("|---|---|---|---|---|")
    for name, row in result["rows"].items():
        each = row["seconds"] / row["iterations"]
        print(f"| {name} | {row['seconds']:.1f} | {row['iterations']} | {each:.2f} | {best / row['seconds']:.2f} |")
    found = result["scaling"]
    medians = f"one worker {found['one']:.1f} s, two workers {found['two']:.1f} s"
    print(f"\n{medians}: {found['ratio']:.2f}x (medians of {REPEATS})")


if __name__ == "__main__":
    main()
