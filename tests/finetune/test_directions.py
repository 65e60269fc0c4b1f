"""Which way a decoder attends when a recipe leaves it open, where texts are cut afterwards, and that both are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycurate.core.errors import ConfigError
from raycurate.stages.finetune.base_eval import refuse_untrained
from raycurate.training.checkpoints.export import export_checkpoint
from raycurate.training.model.backbones import attends_both_ways, describe_attention, training_contract
from raycurate.training.model.bi_encoder import load_bi_encoder
from raycurate.training.model.meta_model import ModelOutline
from raycurate.training.model.options import ModelOptions
from tests.finetune.families import DECODERS, save_family
from tests.finetune.runs import config_of


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("pooling", [None, "avg", "weighted_mean", "multi_vector"])
def test_a_decoder_attends_both_ways_unless_told_not_to(family: str, pooling: str | None, tmp_path: Path) -> None:
    folder = save_family(tmp_path / family, family)
    free, causal = ModelOptions(pooling=pooling), ModelOptions(pooling=pooling, bidirectional=False)
    assert training_contract(folder, free).attention == "bidirectional"
    assert training_contract(folder, free).pooling == {None: "mean", "avg": "mean"}.get(pooling, pooling)
    assert training_contract(folder, causal).attention == "causal"
    assert "bidirectional=false keeps it causal" in describe_attention(folder, free)
    assert describe_attention(folder, causal) == "causal, as bidirectional=false says"
    assert ModelOutline(folder, free).body.config.is_causal is False  # type: ignore[union-attr]
    assert getattr(ModelOutline(folder, causal).body.config, "is_causal", True) is not False


def test_pooling_by_the_last_token_asks_which_is_meant(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "llama", "llama")
    with pytest.raises(ConfigError, match="Set bidirectional=false to keep it causal, or bidirectional=true"):
        training_contract(folder, ModelOptions(pooling="last"))
    for said, attention in ((False, "causal"), (True, "bidirectional")):  # the advice, followed
        assert training_contract(folder, ModelOptions(pooling="last", bidirectional=said)).attention == attention


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_causal_embedding_model_stays_what_its_files_say(pooling: str, tmp_path: Path) -> None:
    base = save_family(tmp_path / "llama", "llama")
    folder = str(tmp_path / "embedding model")
    export_checkpoint(load_bi_encoder(base, ModelOptions(pooling=pooling, bidirectional=False)), folder)
    assert not attends_both_ways(folder, ModelOptions()) and not attends_both_ways(
        folder, ModelOptions(pooling=pooling)
    )
    assert describe_attention(folder, ModelOptions()) == "causal, as this model's own files pool it so"
    assert attends_both_ways(folder, ModelOptions(pooling="weighted_mean"))  # another model is wanted
    trained = str(tmp_path / "trained on")
    export_checkpoint(load_bi_encoder(base, ModelOptions(pooling=pooling, bidirectional=True)), trained)
    assert attends_both_ways(trained, ModelOptions())


def test_the_base_of_a_decoder_made_bidirectional_is_not_measured(tmp_path: Path) -> None:
    recipe = {"train": "t.json", "model": save_family(tmp_path / "llama", "llama"), "dev": "beir", "measure_base": True}
    with pytest.raises(ConfigError, match="no vectors worth comparing"):
        refuse_untrained(config_of(recipe, tmp_path / "out"))
    refuse_untrained(config_of(recipe, tmp_path / "out", bidirectional=False, pooling="mean"))
    refuse_untrained(config_of({**recipe, "model": save_family(tmp_path / "bert", "bert")}, tmp_path / "out"))


@pytest.mark.parametrize(("asked", "cut"), [({}, 64), ({"export_max_length": 20}, 20), ({"export_max_length": 60}, 60)])
def test_a_training_on_short_texts_cuts_no_longer_ones_afterwards(
    asked: dict[str, int], cut: int, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    model = save_family(tmp_path / "bert", "bert")
    lengths = {"query_max_length": 8, "passage_max_length": 16}
    config = config_of({"train": "t.json", "model": model}, tmp_path / "out", **lengths, **asked)
    export_checkpoint(load_bi_encoder(model, config.model_options()), str(tmp_path / "exported"))
    said = json.loads((tmp_path / "exported" / "sentence_bert_config.json").read_text())
    assert said["max_seq_length"] == cut
    assert SentenceTransformer(str(tmp_path / "exported"), device="cpu").max_seq_length == cut
    assert config.prepare_options().passage_max_length == 16
