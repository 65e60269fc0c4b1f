"""The Encoder protocol and how one is chosen and loaded.

An encoder turns rows into vectors in two steps: `prepare` (CPU work: lists to tensors, prompts) may run
in another thread for the next chunk while `run` keeps the device busy with this one.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from raycurate.core.errors import ConfigError, ContractError
from raycurate.models.checkpoint import counts_padding
from raycurate.models.contract import EmbeddingContract
from raycurate.models.modules import read_modules
from raycurate.models.options import ENGINES, EncoderOptions
from raycurate.models.tokenize import TokenBatch

Vectors = np.ndarray | list[np.ndarray]

_LARGE_DECODER = 500_000_000  # parameters from which vLLM's start-up is paid back


@runtime_checkable
class Encoder(Protocol):
    """Rows to vectors, under one contract.

    `prepare` is thread-safe and touches no device; `run` is called from one thread at a time and returns
    float32 [n, dimension] in the order given, or for multi_vector a list of [tokens_i, dimension]. A text on
    which the model overflows has NaN in its vector: one such row must not end a run of millions.
    """

    contract: EmbeddingContract
    accepts: Literal["tokens", "text"]

    def prepare(self, batch: TokenBatch | list[str]) -> Any: ...

    def run(self, prepared: Any) -> Vectors: ...

    def close(self) -> None: ...


def encode(encoder: Encoder, batch: TokenBatch | list[str]) -> Vectors:
    """prepare and run, one after the other."""
    return encoder.run(encoder.prepare(batch))


def contract_for(options: EncoderOptions, folder: str) -> EmbeddingContract:
    """The contract of the model in `folder` as `options` alter it; an explicit prefix is the role's prompt.

    All that can be found wrong without loading the model is found here, before any actor starts.

    Raises:
        InputError, ContractError: the model is broken, or the engine asked for cannot run it as it should be run.
    """
    from raycurate.models.tokenize import check_tokenizer

    contract = EmbeddingContract.from_checkpoint(
        folder, pooling=options.pooling, normalize=options.normalize, max_length=options.max_length
    )
    check_tokenizer(folder)
    _check_engine(options, contract, folder)
    if options.prefix is None:
        return contract
    kept = {name: text for name, text in contract.prompts.items() if name != options.role}
    if options.role == "document":  # its other names would be found when the prefix is empty
        kept = {name: text for name, text in kept.items() if name not in ("passage", "corpus")}
    prompts = kept | ({options.role: options.prefix} if options.prefix else {})
    return contract.model_copy(update={"prompts": dict(sorted(prompts.items()))})


def _check_engine(options: EncoderOptions, contract: EmbeddingContract, folder: str) -> None:
    """Refuse an engine that would give wrong vectors, or none, where another gives the right ones."""
    wrong = None
    if options.engine == "vllm" and contract.modules:
        wrong = "Dense layers after pooling are not for engine vllm"
    if options.engine == "sentence-transformers":
        if read_modules(Path(folder)).many or (contract.pooling == "multi_vector" and contract.modules):
            wrong = (
                "a model of its MultiVectorEncoder, or one with Dense layers, is not for engine sentence-transformers"
            )
        if options.padding_side == "left" and contract.pooling == "multi_vector":
            wrong = "with padding_side=left engine sentence-transformers counts padding among the token vectors"
        elif options.padding_side == "left" and counts_padding(folder):
            wrong = (
                "this model counts padding on the left among its positions, so that a text's vector would depend on "
                "its neighbours; engine sentence-transformers cannot tell it the right ones"
            )
    if wrong:
        raise ContractError(wrong, where=folder, fix="Use engine=transformers")


def versions_of(*packages: str) -> dict[str, str]:
    """Installed versions of distributions, those that are there."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not installed under this name: nothing to say about it
    return found


def is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def choose_engine(options: EncoderOptions, *, gpu: bool) -> tuple[str, str]:
    """The engine that will run, and one sentence that says why."""
    if options.engine != "auto":
        return options.engine, f"engine={options.engine} was asked for."
    if is_url(options.model):
        return "endpoint", "The model is a URL."
    if not gpu:
        return "transformers", "There is no GPU."
    if importlib.util.find_spec("vllm") is None:
        return "transformers", "vLLM is not installed here."
    if options.pooling == "weighted_mean" or options.trust_remote_code:
        return "transformers", "weighted_mean pooling and remote code are its own."
    from raycurate.models.fetch import fetch_encoder

    decoder, parameters = _size(fetch_encoder(options))
    if decoder and parameters >= _LARGE_DECODER:
        return "vllm", f"The model is a decoder of about {parameters / 1e9:.1f} billion parameters and there is a GPU."
    kind = "decoder" if decoder else "encoder"
    return "transformers", f"The model is an {kind} of about {parameters / 1e6:.0f} million parameters."


def _size(folder: str) -> tuple[bool, int]:
    """Whether the model is a decoder by build, and about how many parameters its weight files hold."""
    from raycurate.models.checkpoint import attention_of, body_folder, read_config

    body = body_folder(folder)
    config = read_config(body)
    as_built = {k: v for k, v in config.items() if k not in ("is_causal", "use_bidirectional_attention")}
    as_built["model_type"] = str(config.get("model_type", "")).removesuffix("_bidirec")
    files = [*Path(body).glob("*.safetensors")] or [*Path(body).glob("pytorch_model*.bin")]
    width = 4 if (config.get("dtype") or config.get("torch_dtype") or "float32") == "float32" else 2
    return attention_of(as_built) == "causal", sum(f.stat().st_size for f in files) // width


def load_encoder(options: EncoderOptions, *, threads: int | None = None) -> Encoder:
    """Load the model with the engine that `options` name or imply.

    Args:
        threads: CPU threads this process may use; None leaves the library's own choice.

    Raises:
        ConfigError: no such engine or class.
        InputError, ContractError, MissingDependencyError: the model or the engine cannot be used.
    """
    engine = options.engine
    if engine == "auto":
        engine, _ = choose_engine(options, gpu=_has_gpu(options))
    if engine not in ENGINES:
        return custom_engine(engine)(options)
    module, _, name = ENGINES[engine].partition(":")
    return getattr(importlib.import_module(module), name)(options, threads=threads)


def _has_gpu(options: EncoderOptions) -> bool:
    if options.device == "cpu" or is_url(options.model):
        return False
    import torch

    return torch.cuda.is_available()


MODULES_FROM = "RAYCURATE_MODULES_FROM"
"""Environment variable: a folder whose modules may be named as engines; last on the path, so that it hides nothing."""


def custom_engine(engine: str) -> Any:
    """The class that `engine` ("module:Class") names.

    Raises:
        ConfigError: the module cannot be imported, or what it has under that name is not an encoder's class.
    """
    module, _, name = engine.partition(":")
    folder = os.environ.get(MODULES_FROM)
    if folder and folder not in sys.path:
        sys.path.append(folder)
    try:
        named = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the module is the user's own and may do anything
        raise ConfigError(
            f"there is no such encoder class ({type(error).__name__}: {error})",
            where=f"engine={engine}",
            fix="Write module:Class with a module that can be imported where the encoder runs",
        ) from error
    lacking = [part for part in ("prepare", "run", "close") if not callable(getattr(named, part, None))]
    if getattr(named, "accepts", None) not in ("tokens", "text"):
        lacking.insert(0, "accepts")
    if not isinstance(named, type) or lacking:
        kind = f"a class without {', '.join(lacking)}" if isinstance(named, type) else f"a {type(named).__name__}"
        raise ConfigError(
            f"this is {kind}, not an encoder's class",
            where=f"engine={engine}",
            fix="An encoder's class has `accepts`, `prepare`, `run` and `close` (raycurate.encoders.base.Encoder)",
        )
    return named
