"""Validation within training: every question of the validation data once, over all ranks, none dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from raycurate.training.batches.batches import Feed, prefetch
from raycurate.training.batches.order import OrderOptions, QuestionOrder, split_batch
from raycurate.training.batches.prepared import Prepared
from raycurate.training.collectives import world
from raycurate.training.loss import losses
from raycurate.training.metrics import Tally
from raycurate.training.model.parallelize import Parallel
from raycurate.training.options import TrainOptions

_BATCH = 32


@torch.no_grad()
def validate(parallel: Parallel, data: Prepared, options: TrainOptions) -> dict[str, float]:
    """`val_loss`, `val_acc1`, `val_mrr` and `val_questions` of the model as it is; every rank must call it.

    Each positive stands against its question's own listed negatives, each of them once, with any loss: so the numbers
    do not depend on batch sizes or ranks, and can be compared between trainings.
    """
    rank, ranks = world()
    local = options.validation_batch_size or min(options.local_batch_size or _BATCH, _BATCH)
    order = QuestionOrder(data.lengths, OrderOptions.for_validation(local * ranks))
    split = split_batch(local * ranks, ranks=ranks, local_batch=local, uneven=True)
    feed = Feed(data, order, split, rank)
    model = parallel.model
    tally = Tally(parallel.device)
    model.eval()
    try:
        for waiting in prefetch(feed.batches(0, len(order)), 2):
            batch = waiting.to(parallel.device)
            with parallel.arithmetic():
                queries, passages = model(batch.queries, "query"), model(batch.passages, "document")
            scores_QN = losses.listed_scores(queries, passages)
            columns = batch.columns
            forbidden_QN = columns.forbidden_QP.gather(1, columns.own_QN())
            forbidden_QN |= repeated(batch.keys.texts_P.view(scores_QN.shape))
            loss_Q = losses.listed(scores_QN, temperature=options.temperature, forbidden_QN=forbidden_QN)
            tally.add(loss_Q, scores_QN, forbidden_QN, batch.real_Q)
    finally:
        model.train()
    return tally.result()


def repeated(texts_QN: Tensor) -> Tensor:
    """bool [Q, N]: True at a passage whose text stands before in its row, as where too few negatives were cycled.

    A copy would be ranked as often as it stands there: one negative above the positive would make its rank N.
    """
    return (texts_QN[:, :, None] == texts_QN[:, None, :]).tril(-1).any(-1)
