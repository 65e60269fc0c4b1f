"""Both k-means engines on CUDA, on one GPU and on all, against the torch engine on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raycurate.clustering import nearest as assignment
from raycurate.clustering.group import GroupPlan, KMeansGroup
from raycurate.clustering.options import FitOptions
from raycurate.clustering.shards import Piece, pieces_of
from raycurate.clustering.torch_engine import Fit
from raycurate.core import storage
from tests.kmeans.test_fit import blobs, points_of
from tests.kmeans.test_shards import write

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.usefixtures("local_ray"),
]
K, DIM, ROWS = 40, 96, 20_000
GPUS = torch.cuda.device_count()
sizes = pytest.mark.parametrize(
    "size",
    [1, pytest.param(GPUS, marks=pytest.mark.skipif(GPUS < 2, reason="there is one CUDA device"))],
    ids=["one", "all"],
)


def rows() -> np.ndarray:
    return blobs(ROWS, DIM, K, 0, spread=1.5)[0]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Piece]:
    folder = tmp_path_factory.mktemp("vectors")
    for i, part in enumerate(np.array_split(rows(), 8)):
        write(folder / f"{i}.parquet", part, group=1000)
    return pieces_of(storage.list_files(str(folder)), filetype="parquet", embedding_field="embeddings")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Centroids to begin with."""
    path = tmp_path_factory.mktemp("first") / "first.npy"
    np.save(path, rows()[:K])
    return str(path)


def of(init: str) -> str | np.ndarray:
    """What a fit gets: the name of a way to begin, or the centroids of a file."""
    return np.load(init) if init.endswith(".npy") else init


@pytest.fixture(scope="module")
def on_cpu(pieces: list[Piece], first: str) -> Callable[[str], Fit]:
    """The torch engine's fit on the CPU, by `init`; each is made once."""
    made: dict[str, Fit] = {}

    def fitted(init: str = first) -> Fit:
        if init not in made:
            made[init] = KMeansGroup(GroupPlan(1, cpus=0.5), pieces, "embeddings", DIM).fit(
                FitOptions(n_clusters=K, init=of(init), tol=1e-6)
            )
        return made[init]

    return fitted


def on_gpus(pieces: list[Piece], size: int, options: FitOptions, state: str | None = None) -> Fit:
    group = KMeansGroup(GroupPlan(size, cpus=0.5, gpus=1.0, start_s=60, max_failures=0), pieces, "embeddings", DIM)
    return group.fit(options, state)


def needs_rapids() -> None:
    for module in ("cuml", "raft_dask", "cupy"):
        pytest.importorskip(module, reason=f"{module} (extra 'rapids') is not installed")


@sizes
@pytest.mark.parametrize("init", ["k-means||", "random"])
def test_torch_on_cuda_is_torch_on_the_cpu(pieces, on_cpu, size, init):
    expected = on_cpu(init)
    found = on_gpus(pieces, size, FitOptions(n_clusters=K, init=of(init), tol=1e-6, engine="torch"))
    np.testing.assert_allclose(found.centroids, expected.centroids, atol=1e-3)
    assert found.inertia == pytest.approx(expected.inertia, rel=1e-4) and found.rows == ROWS


@sizes
@pytest.mark.parametrize("fraction", [0.6, 1e-6], ids=["device", "host"])
def test_raft_from_given_centroids_is_torch_on_the_cpu(pieces, first, on_cpu, size, fraction):
    """With a share of a millionth of the memory no worker's vectors fit: they are streamed from the host."""
    needs_rapids()
    options = FitOptions(n_clusters=K, init=of(first), tol=1e-6, engine="raft", device_memory_fraction=fraction)
    found, expected = on_gpus(pieces, size, options), on_cpu(first)
    np.testing.assert_allclose(found.centroids, expected.centroids, atol=2e-3)
    assert found.inertia == pytest.approx(expected.inertia, rel=1e-3) and found.rows == ROWS


@sizes
@pytest.mark.parametrize("init", ["k-means||", "random"])
def test_raft_seeds_about_as_well_as_torch(pieces, on_cpu, size, init):
    needs_rapids()
    found = on_gpus(pieces, size, FitOptions(n_clusters=K, init=init, tol=1e-6, n_init=2, engine="raft"))
    assert found.inertia == pytest.approx(on_cpu("k-means||").inertia, rel=0.03)


def test_raft_goes_on_from_saved_centroids(pieces, first, tmp_path):
    needs_rapids()
    options = {"init": of(first), "tol": 1e-9, "engine": "raft", "checkpoint_every": 3}
    whole = on_gpus(pieces, 1, FitOptions(n_clusters=K, max_iter=12, **options))
    on_gpus(pieces, 1, FitOptions(n_clusters=K, max_iter=6, **options), str(tmp_path))
    resumed = on_gpus(pieces, 1, FitOptions(n_clusters=K, max_iter=12, **options), str(tmp_path))
    assert resumed.resumed_from == 6
    np.testing.assert_allclose(resumed.centroids, whole.centroids, atol=1e-4)


def test_vectors_larger_than_their_share_stay_on_the_host():
    needs_rapids()
    import cupy

    from raycurate.clustering.collective import Alone
    from raycurate.clustering.raft_engine import place

    for fraction, kind in ((0.5, cupy.ndarray), (1e-6, np.ndarray)):
        parts, buffered = place(
            points_of(rows()), FitOptions(n_clusters=K, device_memory_fraction=fraction), Alone(), cupy
        )
        assert isinstance(parts[0], kind) and (buffered == 0) == (kind is cupy.ndarray)


@pytest.mark.parametrize("dim", [48, 384, 768, 1000])
@pytest.mark.parametrize("kernel", ["gemm", "flash-kmeans"])
def test_assignment_on_cuda_is_that_of_float64(monkeypatch, dim, kernel):
    if kernel == "gemm":
        monkeypatch.setattr(assignment, "_fused_kernel", lambda: None)
    else:
        pytest.importorskip("flash_kmeans", reason="flash-kmeans is not installed")
    points = blobs(5000, dim, 50, 1, spread=1.5)[0]
    centres = points[:333] * np.random.default_rng(0).uniform(0.5, 1, (333, 1)).astype(np.float32)
    points_ND, centres_KD = torch.from_numpy(points).cuda(), torch.from_numpy(centres).cuda()
    labels, distances = assignment.assign(points_ND, assignment.Centroids.of(centres_KD, rough=False))
    exact = torch.cdist(points_ND.double(), centres_KD.double()).square()
    chosen = exact.gather(1, labels[:, None])[:, 0]
    assert (chosen - exact.min(1).values).max() < 2e-6
    assert (labels == exact.argmin(1)).float().mean() > 0.999
    torch.testing.assert_close(distances.double(), chosen, atol=1e-5, rtol=0)
