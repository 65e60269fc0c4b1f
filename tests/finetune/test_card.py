"""The card of a checkpoint: the code on it, run as it stands, gives the trained model's vectors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raycurate.encoders.base import encode, load_encoder
from raycurate.models.checkpoint import read_config
from raycurate.models.fetch import fetch_model, hub_name
from raycurate.models.options import EncoderOptions
from raycurate.training.checkpoints.card import Origin, named_data, write_card
from raycurate.training.checkpoints.checkpoints import CARD, CONSOLIDATED, CheckpointStore
from raycurate.training.checkpoints.export import export_checkpoint
from raycurate.training.checkpoints.options import Keep
from raycurate.training.model.bi_encoder import ROLES, load_bi_encoder
from raycurate.training.model.options import LoraOptions, ModelOptions
from tests.encoders.tiny import TEXTS
from tests.finetune.families import least_cosine, save_family, shake, vectors

ORIGIN = Origin("org/base@main", ("train.json",), {"loss": "listed", "questions": "60"})
PROMPTS = {"query": "the bird ", "document": "rain: "}
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "bert mean": ("bert", {"pooling": "mean"}),
    "roberta cls, not of length one": ("roberta", {"pooling": "cls", "normalize": False}),
    "llama both ways": ("llama", {"pooling": "avg"}),
    "llama causal, last": ("llama", {"pooling": "last", "bidirectional": False}),
    "modernbert weighted": ("modernbert", {"pooling": "weighted_mean"}),
    "dense heads": (None, {}),
    "two encoders": ("bert", {"pooling": "mean", "separate_encoders": True}),
    "multi-vector": ("bert", {"pooling": "multi_vector"}),
}


def written(store: CheckpointStore, model: Any, origin: Origin = ORIGIN) -> str:
    """The card of a checkpoint of this model."""
    export_checkpoint(model, f"{store.path('epoch_0_step_3')}/{CONSOLIDATED}")
    checkpoint = store.commit(0, 3, {"val_mrr": 0.25}, "run")
    write_card(store, checkpoint, origin)
    assert store.find(checkpoint.name) is not None
    return Path(store.path(checkpoint.name), CARD).read_text()


def ran(card: str, section: str, folder: str) -> dict[str, Any]:
    """What the code of a section of the card leaves, with other texts in it."""
    code = re.search(rf"### {re.escape(section)}\n\n```python\n(.*?)\n```", card, re.S)
    assert code is not None, section
    said = code[1].replace("FOLDER", folder).replace('["a question"]', "TEXTS").replace('["a text"]', "TEXTS")
    names: dict[str, Any] = {"TEXTS": TEXTS}
    exec(said, names)
    return {"query": names["queries"], "document": names["documents"]}


@pytest.mark.parametrize("name", CASES)
def test_the_code_on_the_card_gives_the_models_vectors(name: str, dense_model: str, tmp_path: Path) -> None:
    family, more = CASES[name]
    base = dense_model if family is None else save_family(tmp_path / "base", family)
    options = ModelOptions(**{"prompts": PROMPTS, "normalize": True, **more})
    model = shake(load_bi_encoder(base, options))
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    card = written(store, model)
    folder = f"{store.path('epoch_0_step_3')}/{CONSOLIDATED}"
    multi = name == "multi-vector"
    ways = {"raycurate, in Python": 0.99, "transformers": 0.9999}  # the first in bfloat16 where that is fast
    ways |= {} if multi else {"sentence-transformers": 0.9999}
    for way, bound in ways.items():
        found = ran(card, way, folder)
        for role in ROLES:
            expected = vectors(model, TEXTS, role)
            if not multi:
                assert least_cosine(found[role], expected) >= bound, (way, role)
                continue
            for one, other in zip(found[role], expected.rows(), strict=True):
                assert least_cosine(torch.as_tensor(one)[: len(other)], other) >= bound, (way, role)
    assert ("vllm serve" in card) != multi


def test_the_card_says_what_it_was_made_from_and_what_was_measured(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    card = written(store, load_bi_encoder(save_family(tmp_path / "base", "bert"), ModelOptions(normalize=True)))
    assert card.startswith("---\n") and "\nbase_model: org/base\n" in card
    assert all(
        said in card for said in ("`org/base@main`", "`train.json`", "| val_mrr | 0.2500 |", "| loss | listed |")
    )
    sizes = store.find("epoch_0_step_3")
    assert sizes is not None and CARD not in sizes.files  # so it may be written anew, here with more numbers
    write_card(store, store.add_metrics("epoch_0_step_3", {"dev_ndcg10": 0.5}), ORIGIN, best=True)
    again = Path(store.path("epoch_0_step_3"), CARD).read_text()
    assert "| dev_ndcg10 | 0.5000 |" in again and "best checkpoint" in again
    assert store.prune(Keep()) == [] and store.latest() is not None
    assert "base_model:" not in card.replace("base_model: org/base", "")
    local = written(CheckpointStore(str(tmp_path / "local")), load_bi_encoder(str(tmp_path / "base"), ModelOptions()),
                    replace(ORIGIN, base=str(tmp_path / "base")))  # fmt: skip
    assert "\nbase_model:" not in local


def test_data_are_named_without_where_they_lie_or_who_may_read_them() -> None:
    sources = ["/home/me/secret/train.json", "s3://key:word@bucket/x/mined.jsonl", "hf://org/data/FEVER"]
    assert named_data(sources) == ("train.json", "mined.jsonl", "hf://org/data/FEVER")


def in_hub_cache(cache: Path, repository: str, family: str) -> str:
    """A tiny model laid out as the hub's client keeps a downloaded one; its commit."""
    root, commit = cache / f"models--{repository.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    save_family(root / "snapshots" / commit, family)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return commit


def test_an_adapter_names_the_hub_id_and_the_direction_of_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = in_hub_cache(tmp_path / "hub", "org/tiny-llama", "llama")
    folder = fetch_model(EncoderOptions(model="org/tiny-llama", cache_dir=str(tmp_path / "hub"), local_files_only=True))
    assert hub_name(folder) == ("org/tiny-llama", commit) and hub_name(str(tmp_path)) is None
    model = shake(load_bi_encoder(folder, ModelOptions(pooling="mean", normalize=True), lora=LoraOptions(dim=2)))
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    with torch.no_grad():  # only what an adapter holds may move
        base = load_bi_encoder(folder, ModelOptions()).state_dict()
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(base[name.replace("base_model.model.", "").replace(".base_layer", "")])
    card = written(store, model, replace(ORIGIN, adapted=True))
    adapter = Path(store.path("epoch_0_step_3"), CONSOLIDATED, "adapter")
    said = json.loads((adapter / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["revision"], said["is_causal"]) == ("org/tiny-llama", commit, False)
    assert read_config(str(adapter))["is_causal"] is False
    expected = vectors(model, TEXTS, "document")
    options = EncoderOptions(model=str(adapter), engine="transformers", dtype="float32", normalize=True)
    assert least_cosine(encode(load_encoder(options), TEXTS), expected) >= 0.9999

    code = re.search(r"## The adapter alone.*?```python\n(.*?)\n```", card, re.S)
    assert code is not None and "is_causal = False" in code[1]
    names: dict[str, Any] = {}
    exec(code[1].replace("FOLDER", str(adapter.parent)), names)
    tower = load_bi_encoder(folder, ModelOptions(pooling="mean", normalize=True))
    tower.tower("document").body = names["model"]
    assert least_cosine(vectors(tower, TEXTS, "document"), expected) >= 0.9999
