"""A model folder that is broken in any file is refused on the driver, by the name of that file, without a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raycurate.core.errors import ContractError, InputError, RaycurateError
from raycurate.encoders.base import contract_for, encode, load_encoder
from raycurate.models.options import EncoderOptions
from tests.encoders.checkpoints import save_stock

JSON_FILES = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
)
CONTENTS = {
    "list": "[]",
    "mapping": "{}",
    "null": "null",
    "text": '"x"',
    "cut": None,
    "binary": b"\xff\xfe{",
    "empty": "",
}
MAY_BE_EMPTY = {  # an empty mapping there asks for nothing
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "1_Pooling/config.json",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A BERT with cls pooling, a Dense layer and a Normalize, as sentence-transformers saves it, every file there."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    root = tmp_path_factory.mktemp("whole")
    body = save_stock(
        root / "body", "bert", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40,
    )  # fmt: skip
    modules = [Transformer(body), Pooling(32, pooling_mode="cls"), Dense(32, 16), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(root / "m"))
    for name in ("special_tokens_map.json", "model.safetensors.index.json"):
        if not (root / "m" / name).is_file():
            (root / "m" / name).write_text("{}")
    return root / "m"


@pytest.fixture
def model(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "m"))


def options(model: Path) -> EncoderOptions:
    return EncoderOptions(model=str(model), engine="transformers", dtype="float32", device="cpu")


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_json_file_of_another_kind_is_named(model, name, content):
    file = model / name
    given = CONTENTS[content]
    if isinstance(given, bytes):
        file.write_bytes(given)
    else:
        text = file.read_text()
        file.write_text(text[: len(text) // 2] if given is None else given)
    if content == "mapping" and name in MAY_BE_EMPTY:
        assert encode(load_encoder(options(model)), ["a bird"]).shape == (1, 16)
        return
    if (content, name) == ("mapping", "tokenizer_config.json"):  # it is then that of another model
        with pytest.raises(InputError, match=r"the tokenizer gives the token .* they are not of one another"):
            encode(load_encoder(options(model)), ["a bird"])
        return
    with pytest.raises(RaycurateError) as error:
        contract_for(options(model), str(model))
    assert str(file) in str(error.value) or str(file.parent) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors"])
@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_weight_file_that_is_cut_short_is_named(model, name, kept):
    whole = (model / name).read_bytes()
    (model / name).write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=name):
        contract_for(options(model), str(model))


def test_a_pickle_that_is_cut_short_is_named(model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert contract_for(options(model), str(model)).dimension == 16
    whole = (model / "pytorch_model.bin").read_bytes()
    for kept in (0, 100, len(whole) // 2, len(whole) - 1):
        (model / "pytorch_model.bin").write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"pytorch_model\.bin.*cut short"):
            contract_for(options(model), str(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 48}, r"Dense takes 32 values where 48 come"),
        ({"vocab_size": 30_522}, r"word_embeddings.weight has the shape \[19, 32\] where config.json says vocab_size"),
        ({"num_hidden_layers": 6}, r"the weights have 2 layers where config.json says 6"),
        ({"intermediate_size": 128}, r"intermediate.dense.weight has the shape \[64, 32\]"),
        ({"hidden_size": None}, r"does not say the width"),
        ({"hidden_size": "32"}, r"does not say the width"),
        ({"model_type": None}, r"config.json"),
        ({"model_type": "a_model_of_tomorrow"}, r"a_model_of_tomorrow"),
        ({"text_config": [1]}, r"text_config is no mapping"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_weights_of_another_model_are_found_by_their_headers(model, change, message):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((InputError, ContractError), match=message):
        contract_for(options(model), str(model))


def test_a_wrong_width_is_found_without_a_head_too(model):
    (model / "modules.json").unlink()
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 48}))
    with pytest.raises(InputError, match=r"word_embeddings.weight has the shape \[19, 32\].* hidden_size=48"):
        contract_for(options(model), str(model))


def test_missing_weights_and_heads_of_another_shape(model):
    save_file({"linear.weight": torch.zeros(16, 31)}, model / "2_Dense" / "model.safetensors")
    with pytest.raises(InputError, match=r"2_Dense: linear.weight has the shape \[16, 31\]"):
        contract_for(options(model), str(model))
    (model / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="2_Dense: this Dense layer has no weights"):
        contract_for(options(model), str(model))
    (model / "modules.json").unlink()
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="git lfs pull"):
        contract_for(options(model), str(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        contract_for(options(model), str(model))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(2)}, model / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match=r"model-00002-of-00002.safetensors.*missing"):
        contract_for(options(model), str(model))


@pytest.mark.parametrize("path", ["../other", "/etc"])
def test_modules_outside_the_model_are_refused(model, path):
    listed = json.loads((model / "modules.json").read_text())
    listed[1]["path"] = path
    (model / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match="outside the model"):
        contract_for(options(model), str(model))


def test_what_only_loading_finds_is_one_sentence(model):
    """Weights under other names: the header's shapes fit, and the model would be filled with random numbers."""
    state = load_file(model / "model.safetensors")
    wrong = {name.replace("attention.output", "attention.outcome"): tensor for name, tensor in state.items()}
    save_file(wrong, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ContractError, match="its files lack"):
        load_encoder(options(model))
    state["encoder.layer.0.attention.self.query.weight"] = torch.zeros(32, 31)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ContractError, match="transformers cannot load it"):
        load_encoder(options(model))
