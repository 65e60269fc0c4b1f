"""GPUs that are asked for where none is and none can come: refused, by every stage, and never planned as none."""

from __future__ import annotations

from typing import Any

import pytest

from raycurate.core.errors import CapacityError, ConfigError
from raycurate.ray_runtime.capacity import UNLIMITED, Capacity, NodeShape, asked_gpus

CPUS = NodeShape({"CPU": 4.0, "memory": 2.0**34})
GPUS = NodeShape({"CPU": 4.0, "GPU": 2.0, "memory": 2.0**34})
NONE = Capacity((CPUS,))
LIVE = Capacity((CPUS, GPUS))
MAY_COME = [
    Capacity((CPUS,), (NodeShape({"GPU": 1.0}, count=UNLIMITED, name="g"),), None, autoscaler=True),
    Capacity((CPUS,), maximum={"CPU": 9.0, "GPU": 1.0}, autoscaler=True),
    Capacity((CPUS,), autoscaler=True),  # nobody knows of what kind
]


@pytest.mark.parametrize("numbers", [{"num_gpus": 1}, {"num_gpus": 0.25}, {"num_gpus": "auto", "actors.num_gpus": 2.0}])
def test_numbers(numbers: dict[str, Any]) -> None:
    with pytest.raises(CapacityError, match=r"num_gpus=.*no node of the cluster has a GPU, and none that has one can"):
        asked_gpus(NONE, "auto", numbers, where="x")
    wanted = max(n for n in numbers.values() if n != "auto")
    assert {asked_gpus(there, "auto", numbers, where="x") for there in (LIVE, *MAY_COME)} == {wanted}


def test_device() -> None:
    with pytest.raises(CapacityError, match="device=cuda"):
        asked_gpus(NONE, "cuda", {"num_gpus": None}, where="x")
    assert [asked_gpus(there, "cuda", {}, where="x") for there in (LIVE, *MAY_COME)] == [None] * 4
    assert asked_gpus(NONE, "cpu", {"num_gpus": 0}, where="x") == 0
    assert asked_gpus(NONE, "auto", {"num_gpus": "auto"}, where="x") is None


@pytest.mark.parametrize(
    ("device", "numbers"),
    [("cpu", {"num_gpus": 1}), ("cuda", {"num_gpus": 0}), ("auto", {"num_gpus": 1, "actors.num_gpus": 2})],
)
def test_two_options_that_cannot_both_be_meant(device: str, numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot both be meant"):
        asked_gpus(LIVE, device, numbers, where="x")


def _embed(options: dict[str, Any], there: Capacity) -> float:
    from raycurate.encoders.embed_options import EmbedConfig
    from raycurate.encoders.plan import make_plan
    from tests.embed.hashing import HashEncoder

    config = EmbedConfig(**{"input": "i", "output": "o", "model": "m", "engine": "transformers", **options})
    return make_plan(config, HashEncoder(config).contract, there).gpus


def _kmeans(options: dict[str, Any], there: Capacity) -> float:
    from types import SimpleNamespace

    from raycurate.clustering.centroids import GivenCentroids
    from raycurate.stages.kmeans.config import KMeansConfig
    from raycurate.stages.kmeans.plan import make_plan

    config = KMeansConfig(**{"input": "i", "output": "o", "n_clusters": 1, "engine": "torch", **options})
    inputs: Any = SimpleNamespace(vector_bytes=1 << 20)
    return make_plan(config, inputs, 1, GivenCentroids.of(config), there).gpus


def _finetune(options: dict[str, Any], there: Capacity) -> float:
    from raycurate.stages.finetune.config import FinetuneConfig
    from raycurate.stages.finetune.driver import layout

    return layout(
        FinetuneConfig(**{"train": "t", "model": "m", "output": "o", "num_workers": 1, **options}), there
    ).gpus


@pytest.mark.parametrize("stage", [_embed, _kmeans, _finetune])
@pytest.mark.parametrize("options", [{"device": "cuda"}, {"actors": {"num_gpus": 1}}])
def test_every_stage(stage: Any, options: dict[str, Any]) -> None:
    with pytest.raises(CapacityError, match="none that has one can come"):
        stage(options, NONE)
    assert all(stage(options, there) == 1 for there in (LIVE, *MAY_COME))
    assert stage({}, NONE) == 0
    assert stage({"actors": {"num_gpus": 0}}, LIVE) == 0


def test_embeds_own_number() -> None:
    with pytest.raises(CapacityError, match=r"embed: num_gpus=1: no node"):
        _embed({"num_gpus": 1}, NONE)
    assert [_embed({"num_gpus": 0.5}, there) for there in (LIVE, *MAY_COME)] == [0.5] * 4
