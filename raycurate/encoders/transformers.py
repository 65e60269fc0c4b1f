"""The reference engine: transformers' AutoModel, fed with tokens, packed where the model allows it.

Padding is avoided rather than made cheap: sequences are laid end to end (packed.py) when a self-test at
load finds that packed and padded give the same vectors, else they are sorted by length and padded. Which
of the two runs, and why, is logged. Weights are in the chosen precision; pooling, Dense heads and
normalisation are in float32 always.

engine_kwargs:
    attention: auto | packed | padded | sdpa | eager | flash_attention_2. `auto` is packed where the self-test
        passes; the last three are padded batches with that implementation.
    matmul_precision: highest | high | medium (torch.set_float32_matmul_precision). On a CPU with bfloat16
        units "medium" makes float32 about 1.7 times faster at a cosine of 0.99998.
"""

from __future__ import annotations

import inspect
import logging
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raycurate.core.config import unknown_key
from raycurate.core.errors import CapacityError, ConfigError, InputError
from raycurate.encoders.base import Vectors, contract_for, versions_of
from raycurate.encoders.batching import micro_batches
from raycurate.models.devices import (
    choose_batch_tokens,
    choose_device,
    choose_dtype,
    dtype_name,
    matmul_precision,
)
from raycurate.models.fetch import fetch_encoder
from raycurate.models.loading import load_heads, load_model
from raycurate.models.options import EncoderOptions
from raycurate.models.packed import (
    NAME,
    Layout,
    PackedUnsupportedError,
    least_cosine,
    position_offset,
    positions,
    probe_lengths,
    register,
)
from raycurate.models.pooling import normalize, pool_packed, pool_padded
from raycurate.models.tokenize import TokenBatch, Tokenizer

logger = logging.getLogger(__name__)

_ATTENTIONS = ("auto", "packed", "padded", "sdpa", "eager", "flash_attention_2")
_PRECISIONS = ("highest", "high", "medium")
# Least centred cosine between packed and padded states in the self-test: rounding alone stays well above,
# a wrong mask or position falls far below.
_SAME = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.999}


@dataclass
class MicroBatch:
    """Rows that run together.

    rows: where they go in the result. ids, positions: [1, T] packed or [B, T] padded; mask only if padded.
    """

    rows: Tensor
    lengths: np.ndarray
    ids: Tensor
    positions: Tensor | None
    mask: Tensor | None


@dataclass
class Prepared:
    count: int
    batches: list[MicroBatch]

    def fill(self) -> float:
        """The share of the batches' slots that hold a token and no padding, 0 to 1."""
        slots = sum(micro.ids.numel() for micro in self.batches)
        return sum(int(micro.lengths.sum()) for micro in self.batches) / slots if slots else 1.0


class TransformersEncoder:
    """Tokens (or text) to vectors with AutoModel; see the module for engine_kwargs.

    Raises (when made):
        ConfigError: an unknown engine option, or packed attention that the model cannot do.
        ContractError, InputError, CapacityError: the model or the device cannot be used.
    """

    accepts: Literal["tokens", "text"] = "tokens"
    batch_fill: float | None = None
    """Of the last `run`: the share of its slots without padding."""

    def __init__(self, options: EncoderOptions, *, threads: int | None = None) -> None:
        attention, self._precision = _engine_kwargs(options)
        if threads:
            torch.set_num_threads(threads)
        folder = fetch_encoder(options)
        contract = contract_for(options, folder)
        self.device = choose_device(options)
        self.dtype = choose_dtype(options, self.device)
        implementation = attention if attention in ("sdpa", "eager", "flash_attention_2") else None
        self._model: Any = load_model(
            folder,
            contract,
            dtype=self.dtype,
            attention=implementation,
            trust_remote_code=options.trust_remote_code,
        ).to(self.device)
        self._heads = load_heads(folder, contract, self.device)
        self._vocabulary = int(self._model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        self._options = options
        self._offset = position_offset(self._model)
        pad = getattr(self._model.config, "pad_token_id", None)
        self._pad = pad if isinstance(pad, int) and pad >= 0 else 0
        self._left = options.padding_side == "left"
        # One that does not (T5) tells tokens apart by their distance, which padding does not change.
        self._takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        self.contract = contract
        self.packed, self.reason = self._choose_path(attention)
        logger.info("%s runs %s: %s", options.model, "packed" if self.packed else "padded", self.reason)
        self.batch_tokens = choose_batch_tokens(options, self.device, self.dtype, packed=self.packed)
        self.contract = contract.with_provenance(
            engine="transformers",
            dtype=dtype_name(self.dtype) + ("" if self._precision == "highest" else f"/{self._precision}"),
            padding_side="none" if self.packed else ("left" if self._left else "right"),
            versions=versions_of("torch", "transformers"),
        )
        self._tokenizer: Tokenizer | None = None  # made when text comes in: tokens usually do
        self._lock = threading.Lock()

    def prepare(self, batch: TokenBatch | list[str]) -> Prepared:
        """Cut into micro-batches and build their tensors; safe in any thread."""
        if not isinstance(batch, TokenBatch):
            with self._lock:
                self._tokenizer = self._tokenizer or Tokenizer(self._options, self.contract)
            batch, _ = self._tokenizer(batch)
        lengths = batch.lengths
        if len(lengths) and lengths.min() < 1:
            raise InputError(f"row {int(lengths.argmin())} has no token, so no embedding", fix="Reject empty texts")
        if len(lengths) and lengths.max() > self.contract.max_length:
            row = int(lengths.argmax())
            raise InputError(f"row {row} has {lengths[row]} tokens, more than max_length={self.contract.max_length}")
        if len(batch.ids) and batch.ids.max() >= self._vocabulary:  # on CUDA this would end the process
            raise InputError(
                f"the tokenizer gives the token {batch.ids.max()}, and the model knows {self._vocabulary}: they are "
                "not of one another",
                where=self._options.model,
            )
        cut = micro_batches(
            lengths,
            self.batch_tokens,
            self._options.batch_size,
            sort=self._options.sort_by_length,
            padded=not self.packed,
        )
        return Prepared(
            len(batch), [self._micro_batch(batch, rows, packed=self.packed, left=self._left) for rows in cut]
        )

    def run(self, prepared: Prepared) -> Vectors:
        """Float32 [n, dimension], or a list of [tokens_i, dimension] for multi_vector, in the rows' order.

        A text on which the model overflows has NaN in its vector; the caller decides what becomes of the row.

        Raises:
            CapacityError: the device's memory is too small for a micro-batch.
        """
        self.batch_fill = prepared.fill()
        try:
            with torch.inference_mode(), matmul_precision(self._precision):
                if self.contract.pooling == "multi_vector":
                    return self._run_many(prepared)
                out = torch.empty(prepared.count, self.contract.dimension, device=self.device)
                for micro in prepared.batches:
                    out[micro.rows.to(self.device, non_blocking=True)] = self._finish(self._forward(micro))  # type: ignore[arg-type]
                return out.cpu().numpy()
        except torch.cuda.OutOfMemoryError as error:
            fix = "Set a smaller batch_tokens, or bfloat16"
            raise CapacityError(
                f"a micro-batch of {self.batch_tokens} tokens does not fit ({error})", fix=fix
            ) from error

    def close(self) -> None:
        """Give the device's memory back."""
        del self._model, self._heads
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_many(self, prepared: Prepared) -> list[np.ndarray]:
        out: list[np.ndarray] = [np.empty((0, self.contract.dimension), np.float32)] * prepared.count
        for micro in prepared.batches:
            joined = self._finish(torch.cat(list(self._forward(micro)))).cpu().numpy()
            parts = np.split(joined, np.cumsum(micro.lengths)[:-1])
            for row, part in zip(micro.rows.tolist(), parts, strict=True):
                out[row] = part
        return out

    def _finish(self, vectors: Tensor) -> Tensor:
        """Dense heads and normalisation, on float32 vectors [.., H]."""
        vectors = self._heads(vectors)
        return normalize(vectors) if self.contract.normalize else vectors  # type: ignore[return-value]

    def _micro_batch(self, batch: TokenBatch, rows: np.ndarray, *, packed: bool, left: bool) -> MicroBatch:
        lengths = batch.lengths[rows]
        if packed:
            ids = np.concatenate([batch[row] for row in rows]).astype(np.int64)[None]
            places = positions(lengths, self._offset)[None]
            return MicroBatch(self._send(rows), lengths, self._send(ids), self._send(places), None)
        padded, mask = pad([batch[row] for row in rows], self._pad, left=left)
        # Right-padded, the model's own positions are right; left-padded, they would count the padding.
        sent = self._send(np.clip(mask.cumsum(1) - 1, 0, None) + self._offset) if left else None
        return MicroBatch(self._send(rows), lengths, self._send(padded), sent, self._send(mask))

    def _send(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _forward(self, micro: MicroBatch) -> Tensor | list[Tensor]:
        hidden = self._hidden(micro)
        if micro.mask is not None:
            return pool_padded(
                hidden, micro.mask.to(self.device, non_blocking=True), self.contract.pooling, checked=True
            )
        lengths = torch.from_numpy(micro.lengths).to(self.device)
        return pool_packed(hidden[0], lengths, self.contract.pooling, checked=True)

    def _hidden(self, micro: MicroBatch) -> Tensor:
        """The model's last hidden states: [1, T, H] packed, [B, T, H] padded."""
        inputs: dict[str, object] = {"input_ids": micro.ids.to(self.device, non_blocking=True)}
        if micro.positions is not None and self._takes_positions:
            inputs["position_ids"] = micro.positions.to(self.device, non_blocking=True)
        if micro.mask is not None:
            inputs["attention_mask"] = micro.mask.to(self.device, non_blocking=True)
        else:
            relaxed = torch.get_float32_matmul_precision()
            inputs["layout"] = Layout.of(
                micro.lengths,
                causal=self.contract.attention == "causal",
                device=self.device,
                relaxed=None if relaxed == "highest" or self.device.type == "cuda" else relaxed,
            )
        return self._model(**inputs)[0]

    def _choose_path(self, attention: str) -> tuple[bool, str]:
        """Whether to run packed, and why."""
        if attention not in ("auto", "packed"):
            return False, f"attention={attention} was asked for"
        if self.device.type == "cuda" and self.dtype == torch.float32:
            passed, reason = False, "variable-length attention on CUDA is for bfloat16 and float16"
        else:
            passed, reason = self._self_test()
        if attention == "packed" and not passed:
            raise ConfigError(
                f"this model cannot run packed: {reason}", where="engine_kwargs.attention", fix="Use auto"
            )
        return passed, reason

    def _self_test(self) -> tuple[bool, str]:
        """Leave the model packed if that gives the states of the padded model on random tokens, else padded."""
        config = self._model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        window = window if isinstance(window, int) and window < self.contract.max_length else None
        if window is not None and window > 1024:
            return False, f"its attention window of {window} tokens is too long to test at load"
        lengths = probe_lengths(self.contract.max_length, window)
        random = np.random.default_rng(0).integers(0, config.vocab_size, int(lengths.sum()), dtype=np.int32)
        random[random == self._pad] = (self._pad + 1) % config.vocab_size
        batch = TokenBatch(random, np.concatenate([[0], np.cumsum(lengths)]))
        before, rows = self._model.config._attn_implementation, np.arange(len(lengths))
        register()
        with torch.inference_mode(), matmul_precision("highest"):
            padded = self._micro_batch(batch, rows, packed=False, left=False)
            assert padded.mask is not None  # padded batches have one
            expected = self._hidden(padded)[padded.mask.to(self.device) != 0]
            try:
                self._model.set_attn_implementation(NAME)
                got = self._hidden(self._micro_batch(batch, rows, packed=True, left=False))[0]
                cosine = least_cosine(got, expected) if got.shape == expected.shape else float("nan")
                bound = _SAME[dtype_name(self.dtype)]
                reason = f"in the self-test packed and padded states agree to cosine {cosine:.6f} (bound {bound})"
                passed = cosine >= bound  # False for NaN
            except (PackedUnsupportedError, ValueError, TypeError, RuntimeError, IndexError) as error:
                passed, reason = False, f"the model cannot run packed ({error})"
        if not passed:
            self._model.set_attn_implementation(before)
        return passed, reason


def pad(rows: list[np.ndarray], pad_id: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows as one rectangle: ids and mask, int64 [B, T]."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(None, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def _engine_kwargs(options: EncoderOptions) -> tuple[str, str]:
    known = {"attention": _ATTENTIONS, "matmul_precision": _PRECISIONS}
    given = options.engine_kwargs
    for name, value in given.items():
        if name not in known:
            raise ConfigError(unknown_key(name, known), where="engine_kwargs of engine transformers")
        if value not in known[name]:
            raise ConfigError(f"{name}={value!r}: one of {', '.join(known[name])}", where="engine_kwargs")
    return given.get("attention", "auto"), given.get("matmul_precision", "highest")
