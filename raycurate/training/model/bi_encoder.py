"""The bi-encoder: texts as tokens in, vectors as the contract says out.

One tower for both roles, or one each. A tower is a stock transformer, the Dense heads after pooling and the
contract that says how they are put together; the pooling is models/pooling.py's, so a trained model gives the
vectors that every engine will give. Nothing here knows of devices, ranks or optimisers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raycurate.core.errors import InputError
from raycurate.models.checkpoint import ROLES, separate_folders
from raycurate.models.contract import EmbeddingContract
from raycurate.models.loading import load_heads
from raycurate.models.packed import position_offset
from raycurate.models.pooling import normalize, pool_packed, pool_padded
from raycurate.training.model import unpadded
from raycurate.training.model.backbones import (
    checkpoint_layers,
    compile_layers,
    empty_body,
    load_body,
    takes_positions,
    training_contract,
)
from raycurate.training.model.lora import add_adapters
from raycurate.training.model.meta_model import ModelOutline, OutlineError
from raycurate.training.model.multi_vector import MultiVectors, finish
from raycurate.training.model.options import LoraOptions, ModelOptions

SHARED = "shared"


class Tokens(Protocol):
    """What a batch must have: int64 [n, length] both; padding, where the mask is 0, on either side."""

    @property
    def input_ids(self) -> Tensor: ...

    @property
    def attention_mask(self) -> Tensor: ...


class MustBeLoadedWholeError(Exception):
    """This model cannot be built empty and filled from its files; the message says why."""


class Tower(nn.Module):
    """A transformer, its Dense heads, and the contract that ties them.

    source: the folder it came from; its tokenizer's files are exported with it.
    to_unpad: where it is to run unpadded once it has its weights (streamed.py), tokens of the longest text; else 0.
    """

    to_unpad: int = 0

    def __init__(self, body: nn.Module, heads: nn.Module, contract: EmbeddingContract, source: str) -> None:
        super().__init__()
        self.body = body
        self.heads = heads
        self.contract = contract
        self.source = source
        self._offset = position_offset(body)
        self._positions = takes_positions(body)

    @property
    def unpadded(self) -> bool:
        """Whether the body runs without padding; a batch comes padded all the same."""
        config: Any = self.body.config
        return bool(config._attn_implementation == unpadded.NAME)

    def forward(self, batch: Tokens) -> Tensor | MultiVectors:
        """Float32 [n, dimension], or MultiVectors; every row must have a token (the batches' promise)."""
        if self.unpadded:
            return self._forward_unpadded(batch)
        mask_BT = batch.attention_mask
        inputs: dict[str, Tensor] = {"input_ids": batch.input_ids, "attention_mask": mask_BT}
        if self._positions:  # counted over real tokens, so that padding on the left changes nothing either
            inputs["position_ids"] = (mask_BT.cumsum(1) - 1).clamp(min=0) + self._offset
        hidden_BTH = self.body(**inputs)[0]
        if self.contract.pooling == "multi_vector":
            return finish(self._project(hidden_BTH.float()), mask_BT, unit=self.contract.normalize)
        pooled_BH = pool_padded(hidden_BTH, mask_BT, self.contract.pooling, checked=True)
        return self._finish(pooled_BH)

    def _forward_unpadded(self, batch: Tokens) -> Tensor | MultiVectors:
        causal = self.contract.attention == "causal"
        inputs, lengths_B, order_B = unpadded.unpad(
            batch.input_ids, batch.attention_mask, causal=causal, offset=self._offset
        )
        hidden_TH = self.body(**inputs)[0][0]
        order_B = order_B.to(hidden_TH.device)
        if self.contract.pooling == "multi_vector":
            mask_BT = batch.attention_mask != 0
            rows, columns = mask_BT[order_B].nonzero(as_tuple=True)
            projected_TD = self._project(hidden_TH.float())
            rectangle = projected_TD.new_zeros(*mask_BT.shape, projected_TD.shape[1])
            whole = rectangle.index_put((order_B[rows], columns), projected_TD)
            return finish(whole, mask_BT, unit=self.contract.normalize)
        pooled_BH = pool_packed(hidden_TH, lengths_B.to(hidden_TH.device), self.contract.pooling, checked=True)
        return self._finish(pooled_BH)[order_B.argsort()]

    def _finish(self, pooled_BH: Tensor | list[Tensor]) -> Tensor:
        assert isinstance(pooled_BH, Tensor)  # a list only for multi_vector
        vectors_BD = self._project(pooled_BH)
        return normalize(vectors_BD) if self.contract.normalize else vectors_BD  # type: ignore[return-value]

    def _project(self, vectors: Tensor) -> Tensor:
        """Through the heads, in whatever precision FSDP's policy gives them; float32 comes out."""
        weight = next(self.heads.parameters(), None)
        return vectors if weight is None else self.heads(vectors.to(weight.dtype)).float()


class BiEncoder(nn.Module):
    """Queries and documents to vectors that can be compared.

    Calls go through `forward` (that is, `encode`), where FSDP and DDP have their hooks. Parameters are named
    `towers.shared.*`, or `towers.query.*` and `towers.document.*`.
    """

    def __init__(self, towers: dict[str, Tower]) -> None:
        super().__init__()
        if set(towers) not in ({SHARED}, set(ROLES)):
            raise ValueError(f"towers {sorted(towers)}: either '{SHARED}' or one for each of {ROLES}")
        self.towers = nn.ModuleDict(towers)

    def forward(self, batch: Tokens, role: str) -> Tensor | MultiVectors:
        return self.tower(role)(batch)

    def encode(self, batch: Tokens, role: str) -> Tensor | MultiVectors:
        """Vectors of a batch of `role` ("query" or "document"): float32 [n, dimension], or MultiVectors."""
        return self(batch, role)

    def tower(self, role: str) -> Tower:
        """The tower of a role.

        Raises:
            ValueError: no such role.
        """
        if role not in ROLES:
            raise ValueError(f"role '{role}': one of {', '.join(ROLES)}")
        found: Any = self.towers[SHARED if SHARED in self.towers else role]
        return found

    @property
    def separate(self) -> bool:
        """Whether queries and documents have a tower each."""
        return SHARED not in self.towers

    @property
    def contract(self) -> EmbeddingContract:
        """How a document becomes a vector; the query's tower has the same but for its weights."""
        return self.tower("document").contract


def load_bi_encoder(folder: str, options: ModelOptions, *, lora: LoraOptions | None = None) -> BiEncoder:
    """A bi-encoder from a local checkpoint, in training mode, on the CPU.

    Args:
        folder: a Hugging Face or sentence-transformers model, or what `export_checkpoint` wrote for separate
            encoders (`query/` and `document/`), which stay separate.
        lora: train adapters only, everything else frozen.

    Raises:
        ConfigError, ContractError, InputError, CapacityError, MissingDependencyError: it cannot be trained so.
    """
    body_of = functools.partial(load_body, options=options)
    folders = _folders(folder, options)
    return BiEncoder({name: _tower(path, options, lora, body_of) for name, path in folders.items()}).train()


def empty_bi_encoder(folder: str, options: ModelOptions, *, lora: LoraOptions | None = None) -> BiEncoder:
    """As `load_bi_encoder`, but the transformers' parameters have shapes and no memory: they are filled from the
    folder's files once the model is spread over its ranks (streamed.py), which also checks what needs their values.

    Raises:
        MustBeLoadedWholeError: it does not run without memory.
        ConfigError, ContractError, InputError, CapacityError, MissingDependencyError: it cannot be trained so.
    """
    folders = _folders(folder, options)
    try:
        outline = ModelOutline(next(iter(folders.values())), options)  # the towers are alike
    except OutlineError as error:
        raise MustBeLoadedWholeError(error.what) from error
    trained = {name for name, parameter in outline.body.named_parameters() if parameter.requires_grad}
    body_of = functools.partial(empty_body, options=options, trained=trained)
    encoder = BiEncoder({name: _tower(path, options, lora, body_of) for name, path in folders.items()}).train()
    for tower in encoder.towers.values():
        longest = options.trained_length or tower.contract.max_length  # type: ignore[union-attr]
        tower.to_unpad = longest if options.attention == unpadded.NAME else 0  # type: ignore[assignment]
    return encoder


def _folders(folder: str, options: ModelOptions) -> dict[str, str]:
    """The folder of each tower, by its name."""
    return separate_folders(folder) or dict.fromkeys(ROLES if options.separate_encoders else (SHARED,), folder)


def _tower(
    folder: str, options: ModelOptions, lora: LoraOptions | None, body_of: Callable[[str, EmbeddingContract], nn.Module]
) -> Tower:
    if (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file():
        raise InputError(
            "this is a bare adapter, which cannot be trained on", where=folder, fix="Name the merged model's folder"
        )
    contract = training_contract(folder, options)
    body = body_of(folder, contract)
    heads = load_heads(folder, contract, torch.device("cpu"))
    tower = Tower(body, heads, contract, folder)
    if lora is not None:
        heads.requires_grad_(False)
        tower.body = add_adapters(body, lora, base=folder)
    if options.gradient_checkpointing:
        checkpoint_layers(tower.body)
    if options.compile:
        compile_layers(tower.body)
    return tower
