"""The engine of sentence-transformers: its own tokenizing, prompts, modules and batching.

Where the options ask for another pooling or normalisation than the checkpoint's, the loaded modules are
changed to match the contract, so that the two never tell different stories.

engine_kwargs: passed to AutoModel as model_kwargs (attn_implementation, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raycurate.core.errors import ConfigError, ContractError, require
from raycurate.encoders.base import Vectors, contract_for, versions_of
from raycurate.models.devices import choose_batch_tokens, choose_device, choose_dtype, dtype_name
from raycurate.models.fetch import fetch_encoder
from raycurate.models.loading import stock_mirror
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import TokenBatch

_MODES = {
    "mean": "mean", "cls": "cls", "last": "lasttoken", "weighted_mean": "weightedmean", "max": "max",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
}  # fmt: skip


@dataclass
class Prepared:
    texts: list[str]


class SentenceTransformersEncoder:
    """Text to vectors with SentenceTransformer.encode.

    Raises (when made):
        MissingDependencyError: the package is not installed.
        ContractError: the library cannot load the model, or not as the contract wants it.
    """

    accepts: Literal["tokens", "text"] = "text"

    def __init__(self, options: EncoderOptions, *, threads: int | None = None) -> None:
        library = require("sentence_transformers", "embed", purpose="engine sentence-transformers")
        import torch

        if threads:
            torch.set_num_threads(threads)
        folder = fetch_encoder(options)
        contract = contract_for(options, folder)
        device = choose_device(options)
        dtype = choose_dtype(options, device)
        mirror = stock_mirror(folder)
        try:
            model = library.SentenceTransformer(
                mirror.name if mirror else folder,
                device=str(device),
                trust_remote_code=options.trust_remote_code,
                model_kwargs={"dtype": dtype, **options.engine_kwargs},
            )
        except Exception as error:  # what a broken file raises depends on the file and the model
            raise ContractError(
                f"sentence-transformers cannot load it ({type(error).__name__}: {error})",
                where=folder,
                fix="Use engine=transformers",
            ) from error
        finally:
            if mirror:
                mirror.cleanup()
        self._model = _follow(model, contract.pooling, contract.normalize, library)
        self._model.max_seq_length = contract.max_length
        self._model.default_prompt_name = None  # the contract already says which prompt a role has
        # A tokenizer that pads on the left by itself would give models that count positions vectors that depend on
        # the batch; on the right, every model is right.
        self._model.tokenizer.padding_side = "left" if options.padding_side == "left" else "right"
        self._prompt = contract.prompt_for(options.role)
        tokens = choose_batch_tokens(options, device, dtype, packed=False)
        self._batch_size = max(1, min(options.batch_size, tokens // contract.max_length))
        self.contract = contract.with_provenance(
            engine="sentence-transformers",
            dtype=dtype_name(dtype),
            padding_side=self._model.tokenizer.padding_side,
            versions=versions_of("torch", "transformers", "sentence-transformers"),
        )

    def prepare(self, batch: TokenBatch | list[str]) -> Prepared:
        if isinstance(batch, TokenBatch):
            raise ConfigError("engine sentence-transformers takes text, not tokens")
        return Prepared(list(batch))

    def run(self, prepared: Prepared) -> Vectors:
        """Float32 [n, dimension], or a list of [tokens_i, dimension] for multi_vector."""
        many = self.contract.pooling == "multi_vector"
        if not prepared.texts:
            return [] if many else np.empty((0, self.contract.dimension), np.float32)
        found = self._model.encode(
            prepared.texts,
            prompt=self._prompt or None,
            batch_size=self._batch_size,
            show_progress_bar=False,
            output_value="token_embeddings" if many else "sentence_embedding",
            convert_to_numpy=not many,
            normalize_embeddings=self.contract.normalize and not many,
        )
        if many:
            from raycurate.models.pooling import normalize

            rows = [row.float() for row in found]
            rows = normalize(rows) if self.contract.normalize else rows  # type: ignore[assignment]
            return [row.cpu().numpy() for row in rows]
        return np.asarray(found, np.float32)

    def close(self) -> None:
        """Give the model's memory back."""
        del self._model


def _follow(model: Any, pooling: str, normalize: bool, library: Any) -> Any:
    """The model with the contract's pooling and normalisation in place of its own."""
    kinds = [type(module).__name__ for module in model]
    modules = [m for m, kind in zip(model, kinds, strict=True) if kind != "Normalize" or normalize]
    for module in modules:
        if type(module).__name__ == "Pooling" and pooling in _MODES:
            module.pooling_mode = _MODES[pooling]
    if len(modules) == len(kinds):
        return model
    return library.SentenceTransformer(modules=modules, device=str(model.device))
