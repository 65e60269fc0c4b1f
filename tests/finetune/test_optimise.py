"""Batch sizes, warm-up, learning rates, what decays, clipping: against hand-worked numbers."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from raycurate.core.errors import ConfigError
from raycurate.training import optimise
from raycurate.training.options import TrainOptions


def rates(steps: int, **options: Any) -> list[float]:
    chosen = TrainOptions(learning_rate=1.0, **options)
    warm = optimise.warmup(chosen, steps)
    return [optimise.learning_rate(chosen, step, steps=steps, warmup_steps=warm) for step in range(steps)]


def near(got: list[float], wanted: list[float]) -> bool:
    return got == pytest.approx(wanted, abs=1e-12)


def test_linear_rises_to_the_peak_and_falls_towards_zero():
    assert near(rates(6, warmup_steps=2), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_cosine_and_constant():
    halves = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert near(rates(5, warmup_steps=1, schedule="cosine"), [1.0, *halves])
    assert near(rates(4, warmup_steps=2, schedule="constant"), [0.5, 1.0, 1.0, 1.0])


def test_the_floor_is_where_the_decay_ends():
    assert near(rates(4, warmup_steps=0, min_learning_rate=0.2), [1.0, 0.8, 0.6, 0.4])
    assert optimise.learning_rate(TrainOptions(learning_rate=1.0), 9, steps=4, warmup_steps=0) == 0


def test_warm_up_is_a_tenth_unless_said():
    assert optimise.warmup(TrainOptions(), 200) == 20
    assert optimise.warmup(TrainOptions(warmup_ratio=0.25), 200) == 50
    assert optimise.warmup(TrainOptions(warmup_steps=7), 200) == 7


def test_too_long_a_warm_up_is_corrected_and_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("raycurate"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert optimise.warmup(TrainOptions(warmup_steps=100), 30) == 3
    assert "warmup_steps=100 is as long as the training (30 steps): warming up for 3" in caplog.text
    assert optimise.warmup(TrainOptions(warmup_steps=1), 1) == 0
    assert near(rates(1, warmup_steps=5), [1.0])


@pytest.mark.parametrize(
    ("questions", "ranks", "local", "wanted"),
    [
        (5000, 1, None, 128),
        (2000, 1, None, 128),
        (1999, 1, None, 64),  # 249 an eighth, at most 64
        (400, 1, None, 50),
        (60, 1, None, 16),
        (10, 1, None, 10),  # no more than there are
        (400, 4, None, 48),  # a multiple of the ranks
        (400, 2, 8, 48),
        (70, 3, 10, 30),
    ],
)
def test_auto_batch(questions: int, ranks: int, local: int | None, wanted: int):
    options = TrainOptions(global_batch_size="auto", local_batch_size=local)
    assert optimise.global_batch(options, questions=questions, ranks=ranks) == wanted


def test_an_explicit_batch_stays():
    assert optimise.global_batch(TrainOptions(), questions=200, ranks=1) == 128


def test_auto_with_more_ranks_than_questions_is_refused():
    with pytest.raises(ConfigError, match="3 questions cannot fill one micro-step of 4"):
        optimise.global_batch(TrainOptions(global_batch_size="auto"), questions=3, ranks=4)


class ScaledNorm(nn.Module):
    """Not torch's own; its parameter has two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))


def test_norms_and_biases_do_not_decay():
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 2),
            "linear": nn.Linear(2, 2),
            "normal": nn.Linear(2, 2, bias=False),  # a name like a norm's is none
            "norm": nn.LayerNorm(2),
            "own": ScaledNorm(),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups: Any = optimise.parameter_groups(model, 0.3)
    found = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert found == {
        0.3: {"embedding.weight", "linear.weight", "normal.weight"},
        0.0: {"linear.bias", "norm.weight", "norm.bias", "own.weight"},
    }


def test_real_norms_do_not_decay():
    from transformers import LlamaConfig, LlamaModel

    small = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaModel(small)
    plain: Any = optimise.parameter_groups(model, 0.1)[1]
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {
        "layers.0.input_layernorm.weight",
        "layers.0.post_attention_layernorm.weight",
        "norm.weight",
    }


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="no trainable parameter"):
        optimise.parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


def test_clipping_gives_the_length_before_and_scales_what_is_longer():
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]

    def graded() -> None:
        for parameter, value in zip(parameters, (3.0, 4.0, None), strict=True):
            parameter.grad = None if value is None else torch.tensor([value])

    graded()
    assert optimise.clip_gradients(parameters, 1.0) == 5.0
    assert [p.grad.item() for p in parameters if p.grad is not None] == pytest.approx([0.6, 0.8], rel=1e-5)
    for most in (10.0, None):
        graded()
        assert optimise.clip_gradients(parameters, most) == 5.0
        assert [p.grad.item() for p in parameters if p.grad is not None] == [3.0, 4.0]
    parameters[0].grad = torch.tensor([math.inf])
    assert optimise.clip_gradients(parameters, 1.0) == math.inf


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup_steps": 1, "warmup_ratio": 0.1}, "give one of them"),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: it should be greater than 0"),
        ({"num_epochs": 0}, "num_epochs=0: it should be greater than 0"),
        ({"loss": "listed", "symmetric": True}, "needs in-batch negatives"),
        ({"loss": "listed", "gradcache": True}, "GradCache does nothing"),
        ({"loss": "in_batch", "num_workers": [1, 2]}, "negatives depend on the number of workers"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        TrainOptions.parse(options, where="test")
