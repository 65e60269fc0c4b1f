"""The fine-tuning recipes that ship: valid, wired to each other's outputs, true to their sources, and they fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycurate.core.config import load_recipe, shipped_recipes
from raycurate.core.errors import CapacityError
from raycurate.pipeline import STAGES, config_of, selected
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.training.estimate import Estimate, Setting, estimate_training
from raycurate.training.flops import GIB
from tests.finetune.test_estimate import LLAMA_1B, LLAMA_8B, config_folder

MINISTRAL_3B = {  # the language model of Ministral-3-3B, without its vision tower
    "model_type": "ministral3", "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
    "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "llama3.2-1b": LLAMA_1B,
    "llama-nemotron-embed-1b": LLAMA_1B | {"model_type": "llama_bidirec"},
    "ministral-3b": MINISTRAL_3B,
    "llama-embed-nemotron-8b": LLAMA_8B,
}
NAMES = [*CONFIGS, "minilm-cpu"]


def training_of(name: str) -> FinetuneConfig:
    found = config_of("finetune", load_recipe(name, [], stages=STAGES))
    assert isinstance(found, FinetuneConfig)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_the_recipe_is_valid(name: str) -> None:
    assert name in shipped_recipes()
    recipe = load_recipe(name, [], stages=STAGES)
    configs: dict[str, Any] = {stage.name: config_of(stage.name, recipe) for stage in selected(recipe)}
    config = configs["finetune"]
    assert config.precision == ("auto" if name == "minilm-cpu" else "bfloat16")
    assert config.model_options().trained_length == max(config.query_max_length, config.passage_max_length)
    assert config.prepare_options().passages.n_passages == config.n_passages
    if "prep" in configs:
        prep = configs["prep"].output
        assert config.train == f"{prep}/train_mined.automodel_unrolled.json"
        assert config.val == f"{prep}/val_mined.automodel.json" and config.dev == f"{prep}/eval_beir"
        assert configs["prep"].hard_negatives_to_mine >= config.n_passages - 1


def test_the_8b_recipe_is_nvidias() -> None:
    config = training_of("llama-embed-nemotron-8b")
    options = config.settled(cuda=True)
    assert config.model == "meta-llama/Llama-3.1-8B" and config.num_workers == 8
    assert (options.global_batch_size, options.local_batch_size) == (128, 1)
    assert (options.learning_rate, options.warmup_steps, options.weight_decay) == (2e-6, 2, 0.01)
    assert (options.temperature, options.seed, options.loss, options.num_epochs) == (0.02, 125, "listed", 1)
    assert options.checkpoint_every_steps == 3000 and options.gradient_sync == "each"
    assert config.n_passages == 5 and config.dataset_instructions and config.val is None
    assert isinstance(config.train, list) and len(config.train) == 14
    assert "runs/llama-embed-nemotron-8b/dataset/SciFact/SciFact.json" in config.train


@pytest.mark.parametrize(("name", "rate", "warmup"), [("llama3.2-1b", 5e-6, 100), ("ministral-3b", 2e-6, 100)])
def test_the_decoders_recipes_are_automodels(name: str, rate: float, warmup: int) -> None:
    config = training_of(name)
    options = config.settled(cuda=True)
    assert (options.learning_rate, options.warmup_steps, options.schedule) == (rate, warmup, "linear")
    assert (options.global_batch_size, options.checkpoint_every_steps) == (128, 500)
    model = config.model_options()
    assert model.bidirectional and model.pooling == "mean" and model.normalize
    assert model.prompts == {"query": "query: ", "document": "passage: "}


def test_the_embed_recipe_is_written_out_defaults() -> None:
    """llama-nemotron-embed-1b writes down what the stage's defaults are, so that the two cannot drift apart."""
    config = training_of("llama-nemotron-embed-1b")
    defaults = FinetuneConfig(train="x", model="x", output="x")
    names = ("loss", "num_epochs", "learning_rate", "global_batch_size", "n_passages", "temperature", "weight_decay")
    assert {name: getattr(config, name) for name in names} == {name: getattr(defaults, name) for name in names}


def estimated(name: str, folder: Path, ranks: int) -> Estimate:
    config = training_of(name)
    setting = Setting(
        ranks=ranks, memory=79 * GIB, cuda=True, n_passages=config.n_passages, query_length=config.query_max_length,
        passage_length=config.passage_max_length,
    )  # fmt: skip
    return estimate_training(
        config_folder(folder / name, CONFIGS[name]), config.model_options(), config.settled(cuda=True), setting
    )


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("llama3.2-1b", 1),
        ("llama-nemotron-embed-1b", 1),
        pytest.param("ministral-3b", 2, marks=pytest.mark.slow),
        pytest.param("llama-embed-nemotron-8b", 8, marks=pytest.mark.slow),
    ],
)
def test_it_fits_the_gpus_it_says(name: str, ranks: int, tmp_path: Path) -> None:
    found = estimated(name, tmp_path, ranks)
    print(found.report())
    found.require_fit()
    # Float32 weights and AdamW's two moments, all sharded, are the least that any training of all weights holds.
    assert found.outline.trainable == found.outline.parameters > 1e9
    assert 12 * found.outline.trainable / ranks < found.memory.total <= 79 * GIB
    with pytest.raises(CapacityError, match="would need"):
        replace(found, setting=replace(found.setting, memory=found.memory.total - 1)).require_fit()
