"""What the driver must know of a model before any actor exists: its contract, and what its engine reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raycurate.encoders.embed_options import EmbedConfig

if TYPE_CHECKING:
    from raycurate.encoders.plan import EmbedPlan
    from raycurate.models.contract import EmbeddingContract

_GPU_ASKED = 0.01  # of a GPU, so that Ray shows it to a task that asks what it can do
_READS: dict[str, Literal["tokens", "text"]] = {
    "transformers": "tokens",
    "vllm": "tokens",
    "sentence-transformers": "text",
    "endpoint": "text",
}


def read_contract(config: EmbedConfig) -> EmbeddingContract:
    """The contract under which `config` embeds; a checkpoint's is read from its files on the driver.

    Endpoints and engines of the user's own (module:Class) are asked, in a Ray task, so that nothing heavy
    is loaded into the driver.
    """
    from raycurate.encoders.base import contract_for, is_url
    from raycurate.models.contract import EmbeddingContract
    from raycurate.models.fetch import fetch_encoder

    if is_url(config.model) or ":" in config.engine:
        return EmbeddingContract.from_json(_in_task(_ask, config))
    return contract_for(config, fetch_encoder(config))


def _ask(config: EmbedConfig) -> str:
    from raycurate.encoders.base import load_encoder

    encoder = load_encoder(config)
    try:
        return encoder.contract.to_json()
    finally:
        encoder.close()


def _in_task(function: Any, *arguments: Any) -> Any:
    import ray

    from raycurate.ray_runtime.cluster import raise_user_error, remote_task

    if not ray.is_initialized():
        return function(*arguments)
    try:
        return ray.get(remote_task(function, name="ReadContract", num_cpus=0).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise_user_error(error)
        raise


def settle_dtype(plan: EmbedPlan) -> EmbedPlan:
    """The plan with dtype=auto decided, once for all actors: the precision that each node would choose, or float32
    where they would differ.

    Nodes of a cluster differ in what they multiply in hardware, and one output must not hold vectors of two precisions.
    Where every GPU node is yet to come, it is bfloat16, which all that are not old multiply.
    """
    from raycurate.ray_runtime.cluster import run_on_each_node

    if plan.config.dtype != "auto" or plan.engine == "endpoint" or ":" in plan.engine:
        return plan
    options = plan.config.model_copy(update={"device": plan.device})
    share = _GPU_ASKED if plan.gpus else 0.0
    choices = run_on_each_node(_auto_dtype, options, gpu_only=plan.gpus > 0, num_gpus=share)
    return replace(plan, config=plan.config.model_copy(update={"dtype": one_dtype(choices)}))


def one_dtype(choices: Iterable[str]) -> str:
    """What all nodes would choose, float32 where they differ, bfloat16 where there is no node yet."""
    different = set(choices)
    return "float32" if len(different) > 1 else different.pop() if different else "bfloat16"


def _auto_dtype(options: EmbedConfig) -> str:
    from raycurate.models.devices import choose_device, choose_dtype, dtype_name

    return dtype_name(choose_dtype(options, choose_device(options)))


def weights_bytes(config: EmbedConfig) -> int:
    """Size of the model's weight files; 0 where they are not ours to see (endpoints, classes of the user's own)."""
    from raycurate.encoders.base import is_url
    from raycurate.models.fetch import fetch_encoder

    if is_url(config.model) or ":" in config.engine:
        return 0
    folder = Path(fetch_encoder(config))
    found = [*folder.rglob("*.safetensors")] or [*folder.rglob("pytorch_model*.bin")]
    return sum(file.stat().st_size for file in found)


def reads(engine: str) -> Literal["tokens", "text"]:
    """Whether the engine takes tokens (made by CPU tasks) or text."""
    if engine in _READS:
        return _READS[engine]
    from raycurate.encoders.base import custom_engine

    return custom_engine(engine).accepts
