"""What the driver must know of a model before any actor exists: its contract, and what its engine reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raycurate.embed.config import EmbedConfig

if TYPE_CHECKING:
    from raycurate.core.contract import EmbeddingContract

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
    from raycurate.core.contract import EmbeddingContract
    from raycurate.encoders.base import contract_for, is_url
    from raycurate.encoders.fetch import fetch_encoder

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

    from raycurate.core.cluster import remote_task, user_error

    if not ray.is_initialized():
        return function(*arguments)
    try:
        return ray.get(remote_task(function, name="ReadContract", num_cpus=0).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise user_error(error) or error from None


def weights_bytes(config: EmbedConfig) -> int:
    """Size of the model's weight files; 0 where they are not ours to see (endpoints, classes of the user's own)."""
    from raycurate.encoders.base import is_url
    from raycurate.encoders.fetch import fetch_encoder

    if is_url(config.model) or ":" in config.engine:
        return 0
    folder = Path(fetch_encoder(config))
    found = [*folder.rglob("*.safetensors")] or [*folder.rglob("pytorch_model*.bin")]
    return sum(file.stat().st_size for file in found)


def reads(engine: str, config: EmbedConfig) -> Literal["tokens", "text"]:
    """Whether the engine takes tokens (made by CPU tasks) or text."""
    if engine == "sentence-transformers" and config.pretokenize is True:
        return "tokens"
    if engine in _READS:
        return _READS[engine]
    from raycurate.encoders.base import custom_engine

    return custom_engine(engine).accepts
