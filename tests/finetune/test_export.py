"""Exported checkpoints: sentence-transformers, transformers and our own encoders read the trained model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurate.core import storage
from raycurate.core.errors import ConfigError, ContractError, InputError, OutputExistsError
from raycurate.encoders.base import encode, load_encoder
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.encoders.inspect import read_contract
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import Tokenizer
from raycurate.training.checkpoints.export import export_checkpoint
from raycurate.training.model.bi_encoder import ROLES, load_bi_encoder
from raycurate.training.model.meta_model import ModelOutline
from raycurate.training.model.options import ModelOptions
from tests.encoders.tiny import TEXTS, save_llama
from tests.finetune.families import batch_of, least_cosine, save_family, shake, vectors

PROMPTS = {"query": "the bird ", "document": "rain "}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {family: save_family(root / family, family) for family in ("bert", "roberta", "llama", "modernbert")}


def ours(folder, role: str, **options):
    chosen = {"engine": "transformers", "dtype": "float32", **options}
    return encode(load_encoder(EncoderOptions(model=str(folder), role=role, **chosen)), TEXTS)


def library(folder):
    """sentence-transformers' own encode_query and encode_document, by role."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return {"query": model.encode_query, "document": model.encode_document}


CASES = [
    ("bert", "mean", True, {}),
    ("roberta", "cls", False, {}),
    ("modernbert", "weighted_mean", True, {}),
    ("llama", "last", True, {"bidirectional": False}),
    ("llama", "mean", False, {"bidirectional": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:3])))
def test_every_reader_gives_the_trained_models_vectors(tiny, tmp_path, case):
    from transformers import AutoModel

    family, pooling, unit, more = case
    options = ModelOptions(pooling=pooling, normalize=unit, prompts=PROMPTS, max_length=40, **more)
    model = shake(load_bi_encoder(tiny[family], options))
    out = tmp_path / "out"
    contracts = export_checkpoint(model, str(out))
    read = EmbeddingContract.from_checkpoint(str(out))
    assert read == contracts["shared"] == EmbeddingContract.from_json((out / "contract.json").read_text())
    assert set(model.contract.differences(read)) == {"weights"}
    theirs = library(out)
    for role in ROLES:
        expected = vectors(model, TEXTS, role)
        assert least_cosine(ours(out, role), expected) >= 0.9999
        assert least_cosine(theirs[role](TEXTS), expected) >= 0.9999
        alone = np.stack([theirs[role](text) for text in TEXTS])  # no padding, so another path to the mask
        assert least_cosine(alone, expected) >= 0.9999
        lengths = np.linalg.norm(theirs[role](TEXTS), axis=1)
        assert np.allclose(lengths, 1, atol=1e-5) == unit
    stock = AutoModel.from_pretrained(out).eval()
    assert type(stock).__name__ == json.loads((out / "config.json").read_text())["architectures"][0]
    batch = batch_of(model, TEXTS, "query")
    with torch.no_grad():
        states = stock(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
        inside = model.tower("query").body.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
    keep = batch.attention_mask != 0
    assert torch.allclose(states[keep], inside[keep], atol=1e-5)


def test_minilm_survives_the_round_trip(minilm, tmp_path):
    model = load_bi_encoder(minilm, ModelOptions(prompts={"query": "q: "}))
    contract = export_checkpoint(model, str(tmp_path / "out"))["shared"]
    assert contract.tokenizer == model.contract.tokenizer
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 80e6
    assert json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["prompts"] == {
        "query": "q: ",
        "document": "",
    }
    theirs = library(tmp_path / "out")
    assert least_cosine(theirs["query"](TEXTS), ours(minilm, "query", prefix="q: ")) >= 0.9999
    assert least_cosine(theirs["document"](TEXTS), ours(minilm, "document")) >= 0.9999


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_dense_heads_in_both_precisions(dense_model, tmp_path, dtype):
    model = shake(load_bi_encoder(dense_model, ModelOptions(matryoshka_dims=(8, 16))))
    contract = export_checkpoint(model, str(tmp_path / "out"), dtype=dtype)["shared"]
    assert [(m.out_features, m.activation) for m in contract.modules] == [(48, "Tanh"), (16, "Identity")]
    assert contract.matryoshka_dims == (8, 16)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == ("bfloat16" if dtype else "float32")
    bound = 0.99 if dtype else 0.9999
    theirs = library(tmp_path / "out")
    for role in ROLES:
        expected = vectors(model, TEXTS, role)
        assert least_cosine(ours(tmp_path / "out", role), expected) >= bound
        assert least_cosine(np.asarray(theirs[role](TEXTS), np.float32), expected) >= bound


def test_separate_encoders_are_both_saved_and_both_loaded(tiny, tmp_path):
    options = ModelOptions(separate_encoders=True, pooling="cls", normalize=True, prompts=PROMPTS)
    model = shake(load_bi_encoder(tiny["bert"], options))
    contracts = export_checkpoint(model, str(tmp_path / "out"))
    assert contracts["query"].weights != contracts["document"].weights
    again = load_bi_encoder(str(tmp_path / "out"), ModelOptions())
    theirs = library(tmp_path / "out")  # one model with a route for each role
    for role in ROLES:
        expected = vectors(model, TEXTS, role)
        assert least_cosine(ours(tmp_path / "out" / role, role), expected) >= 0.9999
        assert least_cosine(theirs[role](TEXTS), expected) >= 0.9999
        assert torch.equal(vectors(again, TEXTS, role), expected)
    assert least_cosine(ours(tmp_path / "out" / "query", "query"), vectors(model, TEXTS, "document")) < 0.99


def test_separate_encoders_are_found_by_role_from_their_common_folder(tiny, tmp_path):
    """Texts and tokens, through both engines; the whole folder trains on as two encoders."""
    options = ModelOptions(separate_encoders=True, pooling="mean", normalize=True, prompts=PROMPTS)
    model = shake(load_bi_encoder(tiny["bert"], options))
    contracts = export_checkpoint(model, str(tmp_path / "out"))
    for role in ROLES:
        expected = vectors(model, TEXTS, role)
        chosen = EncoderOptions(model=str(tmp_path / "out"), role=role, engine="transformers", dtype="float32")
        encoder = load_encoder(chosen)
        assert not encoder.contract.differences(contracts[role])
        assert read_contract(EmbedConfig(**chosen.model_dump(), input="-", output="-")) == contracts[role]
        tokens, _ = Tokenizer(chosen, contracts[role])(TEXTS)
        assert np.abs(encode(encoder, tokens) - expected.numpy()).max() < 1e-5
        assert np.abs(encode(encoder, TEXTS) - expected.numpy()).max() < 1e-5
        assert least_cosine(ours(tmp_path / "out", role, engine="sentence-transformers"), expected) >= 0.9999
    with pytest.raises(ConfigError, match=r"role=title is neither.* name one of the two: .*/query or .*/document"):
        load_encoder(EncoderOptions(model=str(tmp_path / "out"), role="title", engine="transformers"))
    counts = ModelOutline(str(tmp_path / "out"), ModelOptions()).counts
    assert (counts.towers, counts.parameters) == (2, sum(p.numel() for p in model.parameters()))


def test_multi_vector_is_read_by_our_own_encoder(tiny, tmp_path):
    model = shake(load_bi_encoder(tiny["bert"], ModelOptions(pooling="multi_vector", normalize=True)))
    contract = export_checkpoint(model, str(tmp_path / "out"))["shared"]
    assert (contract.pooling, contract.normalize) == ("multi_vector", True)
    rows = vectors(model, TEXTS, "query").rows()
    assert all(least_cosine(a, b) >= 0.9999 for a, b in zip(ours(tmp_path / "out", "query"), rows, strict=True))
    pooled = load_bi_encoder(str(tmp_path / "out"), ModelOptions(pooling="mean"))
    assert export_checkpoint(pooled, str(tmp_path / "mean"))["shared"].pooling == "mean"


def test_a_bidirec_checkpoint_comes_out_as_the_stock_model(tmp_path):
    base = save_llama(tmp_path / "base", model_type="llama_bidirec")
    model = shake(load_bi_encoder(base, ModelOptions(normalize=True)))
    export_checkpoint(model, str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["is_causal"]) == ("llama", False)
    assert not {"auto_map", "pooling"} & set(config)
    assert least_cosine(library(tmp_path / "out")["query"](TEXTS), vectors(model, TEXTS, "query")) >= 0.9999


def test_a_tokenizer_without_padding_gets_a_token_for_it(tiny, tmp_path):
    base = Path(save_llama(tmp_path / "base"))
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    model = load_bi_encoder(str(base), ModelOptions(normalize=True))
    export_checkpoint(model, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["pad_token"] == "</s>"
    assert least_cosine(library(tmp_path / "out")["query"](TEXTS), vectors(model, TEXTS, "query")) >= 0.9999


def test_weights_are_written_while_they_stream_in(tiny, tmp_path):
    from transformers import AutoModel

    model = shake(load_bi_encoder(tiny["bert"], ModelOptions()))
    state = model.state_dict()
    limit = 20_000  # bytes; the largest tensor has 6,144
    unwritten = []

    def stream():
        sent = 0
        for name, tensor in state.items():
            yield name, tensor
            sent += tensor.numel() * tensor.element_size()
            unwritten.append(sent - sum(p.stat().st_size for p in tmp_path.rglob("*.part")))

    contract = export_checkpoint(model, str(tmp_path / "out"), state=stream(), shard_bytes=limit)["shared"]
    assert max(unwritten) <= limit
    shards = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in state.values())
    loaded = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name.split(".", 3)[3]], tensor) for name, tensor in state.items())
    whole = export_checkpoint(model, str(tmp_path / "whole"))["shared"]
    assert contract.weights != whole.weights  # of the files, and these are others
    assert contract.dimension == whole.dimension


def test_what_is_not_whole_does_not_appear(tiny, tmp_path, monkeypatch):
    model = load_bi_encoder(tiny["bert"], ModelOptions())
    out = tmp_path / "exports" / "out"

    def broken():
        yield from list(model.state_dict().items())[:9]
        raise RuntimeError("a rank is gone")

    with pytest.raises(RuntimeError, match="a rank is gone"):
        export_checkpoint(model, str(out), state=broken())
    short = [item for item in model.state_dict().items() if "layer.1.output.dense.bias" not in item[0]]
    with pytest.raises(ValueError, match=r"differs from the model in 1 names: encoder\.layer\.1\.output\.dense\.bias"):
        export_checkpoint(model, str(out), state=short)
    with pytest.raises(ValueError, match="'elsewhere' is no tensor of this model"):
        export_checkpoint(model, str(out), state=[("elsewhere", torch.zeros(1))])
    tower = model.tower("query")
    tower.contract = tower.contract.model_copy(update={"attention": "causal"})
    with pytest.raises(ContractError, match=r"say something else than the model.*attention"):
        export_checkpoint(model, str(out))
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_folder_is_overwritten_only_when_asked(tiny, tmp_path):
    model = load_bi_encoder(tiny["bert"], ModelOptions())
    export_checkpoint(model, str(tmp_path / "out"))
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(OutputExistsError, match="overwrite=true"):
        export_checkpoint(model, str(tmp_path / "out"))
    export_checkpoint(shake(model), str(tmp_path / "out"), overwrite=True)
    assert not (tmp_path / "out" / "old").exists()
    assert least_cosine(ours(tmp_path / "out", "query"), vectors(model, TEXTS, "query")) >= 0.9999
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_object_store_holds_a_model_only_once_it_is_whole(tiny, tmp_path, s3, monkeypatch):
    model = shake(load_bi_encoder(tiny["bert"], ModelOptions(normalize=True)))
    place = f"{s3}/checkpoints/one"
    write = storage.write_bytes

    def gone(path, data):
        raise OSError("the network is gone")

    monkeypatch.setattr(storage, "write_bytes", gone)
    with pytest.raises(OSError, match="the network is gone"):
        export_checkpoint(model, place, staging=str(tmp_path))
    assert any(e.path.endswith("model.safetensors") for e in storage.list_files(place))
    with pytest.raises(InputError, match="not a model"):
        load_encoder(EncoderOptions(model=place, engine="transformers", cache_dir=str(tmp_path / "cache")))
    monkeypatch.setattr(storage, "write_bytes", write)
    export_checkpoint(model, place, staging=str(tmp_path))
    got = ours(place, "document", cache_dir=str(tmp_path / "cache"))
    assert least_cosine(got, vectors(model, TEXTS, "document")) >= 0.9999
    with pytest.raises(OutputExistsError):
        export_checkpoint(model, place, staging=str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]
