"""Attention over sequences that lie one after the other, without padding.

A padded batch spends most of its arithmetic on nothing when lengths differ. Packed, all sequences are
one row [1, T, H]: the linear layers, most of the work, see each real token once, and only attention needs to know where
sequences begin. On CPU, sequences of one length form a group and each group is one call of SDPA without
a mask; on CUDA, torch's variable-length flash attention takes them all in one call.

Registered with transformers as the attention `packed`; the layout travels as a keyword argument through
the model's forward. Models that need more than plain or windowed softmax attention raise PackedUnsupportedError, and
`self_test` compares packed with padded at load, so a model that mixes tokens across sequences by other
means (convolution, recurrence) is found out before it encodes anything.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NAME = "packed"
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "block_sequence_ids")  # of an attention function


class PackedUnsupportedError(Exception):
    """This model cannot run packed; the message says why."""


@dataclass(frozen=True)
class Layout:
    """Where sequences lie in the packed row.

    groups: (first token, sequences, tokens each) of each run of equally long sequences.
    causal: whether a token sees only those before it (the contract's attention).
    boundaries: int32 [n + 1] on the device, for CUDA; None on CPU.
    relaxed: the matmul precision to restore after SDPA, which alone runs at "highest": float32 SDPA gets
        2.5 times slower under "medium" on CPU, while the linear layers get twice as fast.
    """

    groups: list[tuple[int, int, int]]
    causal: bool
    longest: int
    boundaries: Tensor | None = None
    relaxed: str | None = None

    @classmethod
    def of(cls, lengths: np.ndarray, *, causal: bool, device: torch.device, relaxed: str | None = None) -> Layout:
        starts = np.concatenate([[0], np.cumsum(lengths)])
        changes = np.flatnonzero(np.diff(lengths)) + 1
        firsts = np.concatenate([[0], changes, [len(lengths)]]).astype(np.int64)
        groups = [(int(starts[a]), int(b - a), int(lengths[a])) for a, b in itertools.pairwise(firsts) if b > a]
        boundaries = None
        if device.type == "cuda":
            boundaries = torch.from_numpy(starts.astype(np.int32)).to(device, non_blocking=True)
        return cls(groups, causal, int(lengths.max(initial=0)), boundaries, relaxed)


def positions(lengths: np.ndarray, offset: int) -> np.ndarray:
    """Position of each packed token in its own sequence, from `offset`; int64 [T]."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths) + offset


def register() -> None:
    """Make attn_implementation="packed" known to transformers; no mask is then built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: query [1, heads, T, d], key, value [1, kv_heads, T, d] -> [1, T, heads, d].

    Raises:
        PackedUnsupportedError: the model did not pass the layout on, or asks for more than windowed softmax attention.
    """
    layout, sliding_window = checked(layout, attention_mask, sliding_window, kwargs)
    if query.is_cuda:
        return varlen((query, key, value), scaling, sliding_window, layout), None
    out = torch.empty(query.shape[2], query.shape[1], value.shape[3], dtype=query.dtype)
    if layout.relaxed:
        torch.set_float32_matmul_precision("highest")
    try:
        for start, count, length in layout.groups:
            q, k, v = (
                t[0, :, start : start + count * length].unflatten(1, (count, length)).transpose(0, 1)
                for t in (query, key, value)
            )
            mask = window_mask(length, sliding_window, layout.causal)
            attended = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                scale=scaling,
                is_causal=layout.causal and mask is None,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            target = out[start : start + count * length].view(count, length, *out.shape[1:])
            target.copy_(attended.transpose(1, 2))
    finally:
        if layout.relaxed:
            torch.set_float32_matmul_precision(layout.relaxed)
    return out[None], None


def checked(
    layout: Layout | None, mask: Tensor | None, window: int | None, others: dict[str, Any]
) -> tuple[Layout, int | None]:
    """What an attention function was given, if packed sequences can have it: the layout, and the attention window
    where it is shorter than the longest sequence.

    Args:
        others: the keyword arguments that it does not know.

    Raises:
        PackedUnsupportedError: the model did not pass the layout on, or asks for more than windowed softmax attention.
    """
    extras = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if layout is None or extras or mask is not None:
        raise PackedUnsupportedError(f"its attention needs {extras}" if extras else "it does not pass the layout on")
    return layout, None if window is None or window >= layout.longest else window


def window_mask(length: int, window: int | None, causal: bool) -> Tensor | None:
    """True where query i may see key j: |i - j| < window (and j <= i when causal); None where all may."""
    if window is None or window >= length:
        return None
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance < window) if causal else distance.abs() < window


def varlen(qkv: tuple[Tensor, ...], scaling: float | None, window: int | None, layout: Layout) -> Tensor:
    """Attention of all packed sequences in one call, on CUDA: each [1, heads, T, d] -> [1, T, heads, d]."""
    from torch.nn.attention.varlen import varlen_attn

    assert layout.boundaries is not None  # Layout.of makes them on CUDA
    reach = -1 if window is None else window - 1
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in qkv)
    out = varlen_attn(
        q, k, v, layout.boundaries, layout.boundaries, layout.longest, layout.longest,
        scale=scaling,
        window_size=(reach, 0 if layout.causal else reach),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)  # a pair only when return_aux asks for more
    return out[None]


def position_offset(model: torch.nn.Module) -> int:
    """First position id: 0, or padding_idx + 1 in models of RoBERTa's kind, which count from after the padding id."""
    import sys

    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        name = "create_position_ids_from_input_ids"
        beside = getattr(sys.modules[type(module).__module__], name, None)
        own = hasattr(module, "position_embeddings") and (hasattr(module, name) or beside is not None)
        if own and isinstance(padding, int):
            return padding + 1
    return 0


def probe_lengths(max_length: int, window: int | None) -> np.ndarray:
    """Lengths of the self-test's sequences: short ones, two alike, and one longer than the attention window."""
    longest = min(max_length, 40 if window is None else window + 9)
    return np.minimum(np.array([longest, 17, 17, 6, 1]), max_length)


def least_cosine(one: Tensor, other: Tensor) -> float:
    """Smallest cosine between rows, with the mean row taken off first.

    Decoders' states share a few huge values; without centring any two of them look alike.
    """
    one, other = one.double(), other.double()
    centre = other.mean(0, keepdim=True)
    return float(functional.cosine_similarity(one - centre, other - centre, dim=-1).min())
