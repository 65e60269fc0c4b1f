"""A model with another tokenizer, or with other special tokens, as every reader of a model's folder takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raycurate.core.errors import ConfigError
from raycurate.encoders.base import encode, load_encoder
from raycurate.models.fetch import fetch_model
from raycurate.models.options import EncoderOptions
from tests.encoders.tiny import TEXTS, save_llama, save_tokenizer

BOS, EOS = 0, 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    """A tiny Llama whose tokenizer puts <s> before a text and nothing behind it."""
    return save_llama(tmp_path_factory.mktemp("llama") / "model", causal=False)


def options(model: str, folder: Path, **given) -> EncoderOptions:
    return EncoderOptions(model=model, cache_dir=str(folder), dtype="float32", device="cpu", **given)


def token_ids(folder: str, text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True, False])
def test_special_tokens_are_put_as_asked(llama, tmp_path, bos, eos):
    folder = fetch_model(options(llama, tmp_path, add_bos=bos, add_eos=eos))
    bare = token_ids(llama, TEXTS[0])[1:]
    begin, end = [] if bos is False else [BOS], [EOS] if eos else []
    assert token_ids(folder, TEXTS[0]) == [*begin, *bare, *end]
    assert fetch_model(options(llama, tmp_path, add_bos=bos, add_eos=eos)) == folder
    assert (folder == llama) == (bos is None and eos is None)


@pytest.mark.parametrize("engine", ["transformers", "sentence-transformers"])
def test_vectors_are_those_of_the_tokens(llama, tmp_path, engine):
    from transformers import AutoModel

    encoder = load_encoder(options(llama, tmp_path, add_eos=True, pooling="mean", normalize=True, engine=engine))
    plain = load_encoder(options(llama, tmp_path, pooling="mean", normalize=True, engine=engine))
    assert encoder.contract.tokenizer != plain.contract.tokenizer
    assert encoder.contract.weights == plain.contract.weights
    got = encode(encoder, TEXTS[:3])
    model = AutoModel.from_pretrained(llama).eval()
    for text, vector in zip(TEXTS[:3], got, strict=True):
        ids = torch.tensor([[*token_ids(llama, text), EOS]])
        with torch.no_grad():
            wanted = model(input_ids=ids).last_hidden_state[0].mean(0)
        assert float(vector @ (wanted / wanted.norm()).numpy()) >= 0.9999
    assert not np.allclose(got, encode(plain, TEXTS[:3]), atol=1e-3)


def test_another_models_tokenizer(llama, tmp_path):
    other = tmp_path / "other"
    save_tokenizer(other, bert_like=True, length=64)
    folder = fetch_model(options(llama, tmp_path / "cache", tokenizer=str(other)))
    assert token_ids(folder, TEXTS[0]) == token_ids(str(other), TEXTS[0])
    assert token_ids(folder, TEXTS[0])[-1] == EOS
    assert (Path(folder) / "config.json").read_text() == (Path(llama) / "config.json").read_text()


def test_a_token_that_there_is_not_is_one_sentence(minilm, tmp_path):
    with pytest.raises(ConfigError, match=r"add_eos=true, .*no token for the end of a text"):
        fetch_model(options(minilm, tmp_path, add_eos=True))
    assert not list((tmp_path / "raycurate" / "models").glob("*"))
