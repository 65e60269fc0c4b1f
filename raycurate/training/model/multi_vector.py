"""Late interaction: one vector a token, and ColBERT's MaxSim between two such sets (Khattab & Zaharia 2020,
arXiv:2004.12832). Padding takes no part on either side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raycurate.models.pooling import normalize

_BLOCK = 2**25  # token-to-token similarities held at a time (128 MiB of float32)


class MultiVectors(NamedTuple):
    """Token vectors of n texts as a rectangle. A named tuple, since FSDP and DDP look for tensors inside outputs.

    vectors_NTD: float32, zero at padding; mask_NT: bool, True at real tokens.
    """

    vectors_NTD: Tensor
    mask_NT: Tensor

    def rows(self) -> list[Tensor]:
        """Float32 [tokens_i, D] of each text, as encoders give them."""
        return [row[keep] for row, keep in zip(self.vectors_NTD, self.mask_NT, strict=True)]

    @classmethod
    def join(cls, parts: list[MultiVectors]) -> MultiVectors:
        """Several rectangles under one another, padded to the widest."""
        width = max(part.mask_NT.shape[1] for part in parts)
        vectors = [_widened(part.vectors_NTD, width) for part in parts]
        return cls(torch.cat(vectors), torch.cat([_widened(part.mask_NT, width) for part in parts]))


def _widened(rectangle: Tensor, width: int) -> Tensor:
    missing = width - rectangle.shape[1]
    return torch.cat([rectangle, rectangle.new_zeros(len(rectangle), missing, *rectangle.shape[2:])], 1)


def finish(vectors_NTD: Tensor, mask_NT: Tensor, *, unit: bool) -> MultiVectors:
    """Normalised if asked for, and zero at padding (where there may be anything, NaN included)."""
    mask_NT = mask_NT != 0
    kept = torch.where(mask_NT[..., None], vectors_NTD, 0)
    return MultiVectors(normalize(kept) if unit else kept, mask_NT)  # type: ignore[arg-type]


def maxsim(queries: MultiVectors, passages: MultiVectors) -> Tensor:
    """Scores [Q, P]: over a query's tokens, the sum of each one's largest dot product with a token of the passage.

    The similarities [Q, P, query tokens, passage tokens] are made for a block of passages at a time, and
    backward keeps only where the largest was.
    """
    vectors_QID, tokens_QI = queries
    each = max(1, vectors_QID.shape[0] * vectors_QID.shape[1] * passages.mask_NT.shape[1])
    block = max(1, _BLOCK // each)
    scores = []
    for start in range(0, len(passages.mask_NT), block):
        vectors_PJD = passages.vectors_NTD[start : start + block]
        tokens_PJ = passages.mask_NT[start : start + block]
        similarity_QPIJ = torch.einsum("qid,pjd->qpij", vectors_QID, vectors_PJD)
        best_QPI = similarity_QPIJ.masked_fill(~tokens_PJ[None, :, None, :], -torch.inf).max(-1).values
        scores.append(best_QPI.masked_fill(~tokens_QI[:, None, :], 0).sum(-1))
    return torch.cat(scores, 1)
