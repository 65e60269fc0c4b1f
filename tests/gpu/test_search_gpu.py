"""The exact search on CUDA against brute force in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycurate.search import VectorShards, search
from raycurate.search.topk import TopK
from tests.search.brute import assert_equal, brute_force, clustered, random_limits
from tests.search.test_topk import DATA

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_it_equals_brute_force(name: str, rough: bool) -> None:
    queries, documents = DATA[name]()
    scores_QM = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    for k in (1, 100, 6000):
        for limits in (None, random_limits(len(queries), scores_QM, k)):
            state = TopK(queries, k, limits=limits, device=torch.device("cuda"), rough=rough)
            half = len(documents) // 2
            state.add(documents[half:], half)
            state.add(documents[:half])
            assert_equal(state.hits(), brute_force(queries, documents, k, limits))


@pytest.mark.usefixtures("local_ray")
def test_workers_use_the_gpu(tmp_path: Path) -> None:
    queries, documents = (clustered(n, 96, 1, centres=50, noise=0.5) for n in (500, 30_000))
    vectors = VectorShards.write(str(tmp_path), [documents], shard_rows=8_000)
    [(first, hits)] = search(queries, vectors, 50, device="cuda", workers=1)
    assert first == 0
    assert_equal(hits, brute_force(queries, documents, 50))
