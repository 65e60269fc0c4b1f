"""The transformers engine: packed equals padded equals the model called by hand, for every kind of model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurate.core.errors import ConfigError, InputError
from raycurate.encoders.base import encode, load_encoder
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import TokenBatch, Tokenizer
from tests.encoders.tiny import TEXTS, save_llama, save_modernbert, save_roberta

BUILDERS = {
    "roberta": save_roberta,
    "modernbert": save_modernbert,
    "causal": save_llama,
    "bidirectional": lambda folder: save_llama(folder, causal=False),
    "llama_bidirec": lambda folder: save_llama(folder, model_type="llama_bidirec"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {name: build(root / name) for name, build in BUILDERS.items()}


def load(model: str, attention: str = "auto", **more):
    options = {"dtype": "float32", "engine": "transformers", "device": "cpu", **more}
    return load_encoder(EncoderOptions(model=model, engine_kwargs={"attention": attention}, **options))


def one_by_one(folder: str, *, both_ways: bool | None = None) -> list[np.ndarray]:
    """States of each text by itself, eager attention: no padding and no packing to get wrong."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    values = json.loads((Path(folder) / "config.json").read_text())
    if values["model_type"] == "llama_bidirec":
        values = {k: v for k, v in values.items() if k != "auto_map"} | {"model_type": "llama", "is_causal": False}
        config = AutoConfig.for_model(**values)
    else:
        config = AutoConfig.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, config=config, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")["input_ids"]
            states.append(model(input_ids=ids)[0][0].numpy())
    return states


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("attention", "side"), [("packed", "auto"), ("padded", "right"), ("padded", "left")])
def test_every_token_vector_is_that_of_the_text_alone(tiny, name, attention, side):
    encoder = load(tiny[name], attention, padding_side=side, pooling="multi_vector", normalize=False)
    assert encoder.packed == (attention == "packed")
    for got, expected in zip(encode(encoder, TEXTS), one_by_one(tiny[name]), strict=True):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 2e-4


def test_direction_of_attention_is_the_contracts(tiny):
    """Only a later word differs: a causal model's first token cannot know, a bidirectional one's must."""
    texts = ["a bird flies over the bridge", "a bird flies over the stone"]
    for name in ("causal", "bidirectional", "llama_bidirec"):
        for attention in ("packed", "padded"):
            one, other = encode(load(tiny[name], attention, pooling="multi_vector"), texts)
            assert np.allclose(one[1], other[1], atol=1e-5) == (name == "causal"), (name, attention)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted_mean"])
def test_order_and_batching_do_not_change_vectors(tiny, pooling):
    whole = encode(load(tiny["causal"], pooling=pooling), TEXTS)
    assert whole.dtype == np.float32
    assert whole.shape == (len(TEXTS), 128)
    for attention in ("packed", "padded"):
        small = load(tiny["causal"], attention, pooling=pooling, batch_tokens=20, batch_size=2, sort_by_length=False)
        assert np.allclose(encode(small, TEXTS), whole, atol=1e-5)
        assert np.allclose(encode(small, TEXTS[::-1]), whole[::-1], atol=1e-5)
        assert encode(small, []).shape == (0, 128)


def test_the_self_test_refuses_a_model_that_mixes_sequences(tiny, monkeypatch, caplog):
    """With packed attention made to see across sequences, `auto` must notice and pad; `packed` must be an error."""
    from raycurate.models import packed

    def careless(lengths, *, causal, device, relaxed=None):
        return packed.Layout([(0, 1, int(lengths.sum()))], causal, int(lengths.sum()))

    monkeypatch.setattr(packed.Layout, "of", careless)
    with caplog.at_level("INFO"):
        encoder = load(tiny["roberta"])
    assert not encoder.packed
    assert "runs padded: in the self-test packed and padded states agree to cosine" in caplog.text
    with pytest.raises(ConfigError, match="cannot run packed"):
        load(tiny["roberta"], "packed")


def test_rows_without_tokens_and_bad_options_are_errors(tiny):
    encoder = load(tiny["causal"])
    with pytest.raises(InputError, match="row 1 has no token"):
        encoder.prepare(TokenBatch.from_lists([[5, 6], [], [7]]))
    with pytest.raises(InputError, match="row 0 has 65 tokens, more than max_length=64"):
        encoder.prepare(TokenBatch.from_lists([[5] * 65]))
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        load_encoder(EncoderOptions(model=tiny["causal"], engine="transformers", engine_kwargs={"atention": "packed"}))


def test_lower_precisions_keep_direction(tiny, minilm):
    texts = ["Paris is the capital of France.", "How do I undo a commit?", "", "x"]
    expected = encode(load(minilm), texts)
    medium = EncoderOptions(
        model=minilm, engine="transformers", dtype="float32", engine_kwargs={"matmul_precision": "medium"}
    )
    before = torch.get_float32_matmul_precision()
    for encoder in (load_encoder(medium), load(minilm, dtype="bfloat16")):
        assert (encode(encoder, texts) * expected).sum(1).min() >= 0.999
    assert torch.get_float32_matmul_precision() == before
    assert load_encoder(medium).contract.dtype == "float32/medium"


def test_tokens_made_beforehand_and_text_give_the_same(minilm):
    encoder = load(minilm)
    texts = ["one text", "and a longer one", ""]
    tokens, truncated = Tokenizer(EncoderOptions(model=minilm), encoder.contract)(texts)
    assert not truncated.any()
    assert np.array_equal(encode(encoder, tokens), encode(encoder, texts))
