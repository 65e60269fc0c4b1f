"""Accuracy and reciprocal rank by hand."""

from __future__ import annotations

import math

import pytest
import torch

from raycurate.training.metrics import Tally, positive_ranks

SCORES = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.6, 0.1], [0.1, 0.2, 0.3], [0.7, 0.7, 0.1]])


def test_ranks_by_hand_and_a_tie_counts_against_the_positive():
    assert positive_ranks(SCORES).tolist() == [1, 2, 3, 2]


def test_a_model_that_says_the_same_of_all_or_nothing_at_all_is_last():
    assert positive_ranks(torch.zeros(1, 5)).tolist() == [5]
    assert positive_ranks(torch.tensor([[math.nan, 0.0], [0.0, math.nan]])).tolist() == [2, 2]


def test_forbidden_columns_take_no_part():
    forbidden = torch.zeros_like(SCORES, dtype=torch.bool)
    forbidden[1, 1] = forbidden[2, 2] = True
    assert positive_ranks(SCORES, forbidden).tolist() == [1, 1, 2, 2]


def test_batches_of_any_size_add_up_to_the_mean_over_questions():
    loss = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for cut in ([4], [1, 3], [3, 1], [1, 1, 1, 1]):
        tally = Tally()
        for loss_part, scores_part in zip(loss.split(cut), SCORES.split(cut), strict=True):
            tally.add(loss_part, scores_part)
        assert tally.result() == {
            "val_loss": pytest.approx(2.5),
            "val_acc1": pytest.approx(1 / 4),
            "val_mrr": pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 2) / 4),
            "val_questions": 4,
        }


def test_fillers_do_not_count():
    tally = Tally()
    tally.add(torch.tensor([1.0, 2.0, 3.0, math.nan]), SCORES, real_Q=torch.tensor([True, True, True, False]))
    found = tally.result()
    assert (found["val_loss"], found["val_questions"]) == (2.0, 3)
    assert found["val_mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_nothing_validated_is_an_error():
    with pytest.raises(ValueError, match="no question"):
        Tally().result()
