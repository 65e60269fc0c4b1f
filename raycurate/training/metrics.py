"""Validation during training: loss, accuracy at 1 and mean reciprocal rank, exact over all ranks.

They are means over questions, so each rank adds up sums and a count and the ranks' are added at the end: no mean of
means, no row dropped to make ranks even.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from raycurate.training.collectives import sum_over_ranks


def positive_ranks(scores_QN: Tensor, forbidden_QN: Tensor | None = None) -> Tensor:
    """int64 [Q]: the place of the positive (column 0) among a question's passages, from 1.

    A tie counts against the positive, and so does a NaN: a model that gives every text the same vector must not look
    perfect.

    Args:
        forbidden_QN: bool, columns that are no negatives and take no part.
    """
    ahead_QN = ~(scores_QN[:, :1] > scores_QN[:, 1:])
    if forbidden_QN is not None:
        ahead_QN = ahead_QN & ~forbidden_QN[:, 1:]
    return 1 + ahead_QN.sum(1)


class Tally:
    """Sums over the questions seen so far on this rank, in float64.

    Args:
        device: where the tensors are, and the process group's collectives work.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # float32 would do up to 16 million questions; MPS has no float64, and no process groups either
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self, loss_Q: Tensor, scores_QN: Tensor, forbidden_QN: Tensor | None = None, real_Q: Tensor | None = None
    ) -> None:
        """Count one batch, but for fillers (real_Q False); nothing is waited for on a GPU."""
        ranks_Q = positive_ranks(scores_QN, forbidden_QN).double()
        real_Q = torch.ones_like(ranks_Q, dtype=torch.bool) if real_Q is None else real_Q
        of_each = (loss_Q.double(), (ranks_Q == 1).double(), ranks_Q.reciprocal(), torch.ones_like(ranks_Q))
        self._sums += torch.stack([torch.where(real_Q, each, 0.0).sum() for each in of_each])

    def result(self, group: ProcessGroup | None = None) -> dict[str, float]:
        """`val_loss`, `val_acc1`, `val_mrr` and `val_questions` over all ranks; every rank must call it.

        Raises:
            ValueError: no rank saw a question.
        """
        loss, hits, reciprocal, count = sum_over_ranks(self._sums, group).tolist()
        if not count:
            raise ValueError("no question was validated on any rank")
        return {
            "val_loss": loss / count,
            "val_acc1": hits / count,
            "val_mrr": reciprocal / count,
            "val_questions": count,
        }
