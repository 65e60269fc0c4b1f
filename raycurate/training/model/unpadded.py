"""Training without padding: the texts of a batch lie one after the other, as in models/packed.py.

A batch of passages has few long texts and many short ones, and a padded rectangle spends most of its arithmetic on
nothing. The layout and its meaning are the encoders'; the attention is written anew, in the one way that
autograd can turn round cheaply: one split and one join of all tokens, where assignments to slices would cost a copy of
the whole for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from raycurate.models.packed import (
    Layout,
    PackedUnsupportedError,
    checked,
    least_cosine,
    position_offset,
    positions,
    probe_lengths,
    varlen,
    window_mask,
)

NAME = "unpadded"
States = Callable[[Tensor, Tensor], Tensor]
_SAME = {torch.float32: 0.9999, torch.bfloat16: 0.99, torch.float16: 0.999}


def register() -> None:
    """Make attn_implementation="unpadded" known to transformers; no mask is then built."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
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
        if dropout:
            raise PackedUnsupportedError("variable-length attention on CUDA has no dropout")
        return varlen((query, key, value), scaling, sliding_window, layout), None
    # Float32, whatever the arithmetic: torch's bfloat16 kernel is several times slower on CPUs, backwards above all.
    with torch.autocast("cpu", enabled=False):
        qkv = (query.float(), key.float(), value.float())
        attended = _by_length(qkv, layout, sliding_window, scaling=scaling, dropout=dropout)
    return attended.to(query.dtype), None


def _by_length(
    qkv: tuple[Tensor, ...], layout: Layout, window: int | None, *, scaling: float | None, dropout: float
) -> Tensor:
    """Attention of each run of equally long texts; the tensors are those of `attention`.

    With dropout the CPU's kernel keeps three length x length matrices a head for the backward pass, more than all else
    of a layer from 150 tokens on. They are computed again there instead, from the same random numbers.
    """
    attend = functional.scaled_dot_product_attention
    if dropout and torch.is_grad_enabled():
        attend = functools.partial(checkpoint, attend, use_reentrant=False)
    sizes = [count * length for _, count, length in layout.groups]
    grouped_queries = qkv[0].shape[1] != qkv[1].shape[1]
    out = []
    for (_, count, length), *parts in zip(layout.groups, *(tensor[0].split(sizes, 1) for tensor in qkv), strict=True):
        q, k, v = (part.unflatten(1, (count, length)).transpose(0, 1) for part in parts)
        mask = window_mask(length, window, layout.causal)
        causal = layout.causal and mask is None
        attended = attend(q, k, v, mask, dropout, causal, scale=scaling, enable_gqa=grouped_queries)
        out.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None]


def unpad(input_ids_BT: Tensor, mask_BT: Tensor, *, causal: bool, offset: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A padded batch as the inputs of an unpadded model, shortest texts first.

    Returns:
        (the model's inputs, int64 lengths in that order, int64 order: row order[i] of the batch comes as number i)
    """
    lengths_B, order_B = mask_BT.sum(1).cpu().sort(stable=True)
    keep = mask_BT[order_B.to(mask_BT.device)] != 0
    ids = input_ids_BT[order_B.to(input_ids_BT.device)][keep]
    lengths = lengths_B.numpy()
    places = torch.from_numpy(positions(lengths, offset)).to(ids.device)
    layout = Layout.of(lengths, causal=causal, device=ids.device)
    return {"input_ids": ids[None], "position_ids": places[None], "layout": layout}, lengths_B, order_B


def use(body: nn.Module, *, causal: bool, max_length: int, states: States | None = None) -> None:
    """Make `body` run unpadded from now on.

    Args:
        states: how to run it: (int64 ids [B, T], bool mask [B, T]) -> its hidden states, padded [B, T, H] or, once it
            runs unpadded, [1, tokens, H] in the order of `unpad`. By default it is called here.

    Raises:
        PackedUnsupportedError: its states are then not those of the padded model.
    """
    states = states or functools.partial(_states, body, causal)
    config: Any = body.config
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    window = window if isinstance(window, int) and window < max_length else None
    lengths = torch.from_numpy(probe_lengths(max_length, window))
    mask_BT = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, text.vocab_size, mask_BT.shape, generator=generator)
    if text.pad_token_id is not None:
        ids_BT[ids_BT == text.pad_token_id] = (text.pad_token_id + 1) % text.vocab_size
        ids_BT[~mask_BT] = text.pad_token_id
    register()
    with torch.no_grad():
        padded = states(ids_BT, mask_BT)
        body.set_attn_implementation(NAME)  # type: ignore[operator]
        if config._attn_implementation != NAME:
            raise PackedUnsupportedError("its attention cannot be replaced")
        try:
            got = states(ids_BT, mask_BT)[0]
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise PackedUnsupportedError(f"the model cannot run unpadded ({error})") from error
    order_B = mask_BT.sum(1).sort(stable=True).indices
    cosine = least_cosine(got, padded[order_B][mask_BT[order_B]])
    if not cosine >= _SAME[got.dtype]:
        raise PackedUnsupportedError(f"unpadded and padded states agree to a cosine of {cosine:.6f} only")


def _states(body: nn.Module, causal: bool, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    config: Any = body.config
    if config._attn_implementation != NAME:
        padded: Tensor = body(input_ids=ids_BT, attention_mask=mask_BT.long())[0]
        return padded
    inputs, _, _ = unpad(ids_BT, mask_BT, causal=causal, offset=position_offset(body))
    unpadded: Tensor = body(**inputs)[0]
    return unpadded
