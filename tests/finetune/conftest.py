"""What several files of this folder need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from raycurate.data.training.training import TrainingData
from tests.encoders.tiny import save_roberta
from tests.finetune.training_sets import random_data
from tests.finetune.trainings import one_thread


@pytest.fixture(scope="module")
def on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return random_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """RoBERTa, cls, Dense 32 -> 48 tanh -> 16 without bias, normalised, with prompts: the library's own files."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    root = tmp_path_factory.mktemp("dense")
    torch.manual_seed(1)
    modules = [
        Transformer(save_roberta(root / "body"), max_seq_length=32),
        Pooling(32, pooling_mode="cls"),
        Dense(32, 48),
        Dense(48, 16, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "the bird ", "document": "rain "})
    model.save_pretrained(str(root / "whole"))
    return str(root / "whole")
