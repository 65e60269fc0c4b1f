"""From token vectors to embeddings: the only pooling code in the house.

Two layouts, one meaning: padded [B, T, H] with a mask (padding left, right or on both sides), and packed
[T_total, H] with a length for each sequence, where there is no padding at all. Sums run in float32 whatever the
model's precision. A sequence without a single real token has no embedding and is an error: the usual
clamp of the denominator would give a vector of zeros or NaN that nobody notices.

Poolings: `mean`; `cls`, the first real token; `last`, the last real token; `weighted_mean`, token i of n
weighted by i, counted from 1 at the first real token (Muennighoff 2022, SGPT, arXiv:2202.08904); `max`, the largest
value of each component; `mean_sqrt_len`, the sum over the root of the number of tokens (sentence-transformers);
`multi_vector`, all real tokens (late interaction, as ColBERT).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raycurate.core.errors import InputError


def pool_padded(hidden_BTH: Tensor, mask_BT: Tensor, pooling: str, *, checked: bool = False) -> Tensor | list[Tensor]:
    """Float32 [B, H], or for multi_vector a list of float32 [tokens_i, H].

    Args:
        hidden_BTH: the model's last hidden states.
        mask_BT: non-zero at real tokens.
        checked: the caller knows that every row has a token (asking a GPU would make it wait).

    Raises:
        InputError: a row has no real token.
    """
    mask_BT = mask_BT != 0
    if not checked:
        _check_rows(mask_BT.sum(1))
    rows = torch.arange(len(mask_BT), device=hidden_BTH.device)
    if pooling == "multi_vector":
        return [row[keep].float() for row, keep in zip(hidden_BTH, mask_BT, strict=True)]
    if pooling == "cls":
        return hidden_BTH[rows, mask_BT.int().argmax(1)].float()
    if pooling == "last":
        return hidden_BTH[rows, mask_BT.shape[1] - 1 - mask_BT.flip(1).int().argmax(1)].float()
    if pooling == "max":
        return hidden_BTH.float().masked_fill(~mask_BT[..., None], -torch.inf).amax(1)
    weights_BT = mask_BT.float()
    if pooling == "weighted_mean":
        weights_BT = weights_BT * weights_BT.cumsum(1)
    elif pooling not in ("mean", "mean_sqrt_len"):
        raise ValueError(f"no pooling '{pooling}'")
    total_B1 = weights_BT.sum(1, keepdim=True)
    # where, not a product with 0: what stands at padding may be NaN or infinite
    hidden_BTH = torch.where(mask_BT[..., None], hidden_BTH, 0).float()
    sums_BH = torch.einsum("bth,bt->bh", hidden_BTH, weights_BT)
    return sums_BH / (total_B1.sqrt() if pooling == "mean_sqrt_len" else total_B1)


def pool_packed(hidden_TH: Tensor, lengths_B: Tensor, pooling: str, *, checked: bool = False) -> Tensor | list[Tensor]:
    """As pool_padded, for sequences that lie one after the other without padding.

    Args:
        hidden_TH: [sum of lengths, H].
        lengths_B: tokens in each sequence, on the same device.

    Raises:
        InputError: a sequence has no token.
    """
    if not checked:
        _check_rows(lengths_B)
    if pooling == "multi_vector":
        return [part.float() for part in hidden_TH.split(lengths_B.tolist())]
    ends_B = lengths_B.cumsum(0)
    if pooling == "cls":
        return hidden_TH[ends_B - lengths_B].float()
    if pooling == "last":
        return hidden_TH[ends_B - 1].float()
    if pooling not in ("mean", "weighted_mean", "max", "mean_sqrt_len"):
        raise ValueError(f"no pooling '{pooling}'")
    hidden_TH = hidden_TH.float()
    if pooling == "max":
        return torch.segment_reduce(hidden_TH, "max", lengths=lengths_B, unsafe=True)
    total_B = lengths_B.float()
    if pooling == "weighted_mean":
        starts_T = (ends_B - lengths_B).repeat_interleave(lengths_B, output_size=len(hidden_TH))
        hidden_TH = hidden_TH * (torch.arange(len(hidden_TH), device=hidden_TH.device) - starts_T + 1)[:, None]
        total_B = total_B * (total_B + 1) / 2
    elif pooling == "mean_sqrt_len":
        total_B = total_B.sqrt()
    return torch.segment_reduce(hidden_TH, "sum", lengths=lengths_B, unsafe=True) / total_B[:, None]


def normalize(vectors: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Scaled to length one along the last axis."""
    if isinstance(vectors, list):
        return [torch.nn.functional.normalize(v, dim=-1) for v in vectors]
    return torch.nn.functional.normalize(vectors, dim=-1)


def _check_rows(tokens_B: Tensor) -> None:
    if len(tokens_B) and int(tokens_B.min()) < 1:
        empty = (tokens_B < 1).nonzero().flatten().tolist()
        raise InputError(
            f"{len(empty)} of {len(tokens_B)} rows have no token, so no embedding (rows {empty[:5]} of this batch)",
            fix="Reject empty texts before encoding, or give the model a prefix",
        )
