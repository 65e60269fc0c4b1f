"""Adapters: only they are trained, and merged, in PEFT's format and in training they are the same model."""

import json

import pytest
import torch

from raycurate.core.errors import ConfigError
from raycurate.encoders.base import encode, load_encoder
from raycurate.models.options import EncoderOptions
from raycurate.training.checkpoints.export import export_checkpoint
from raycurate.training.model.bi_encoder import load_bi_encoder
from raycurate.training.model.lora import merged, options_of, stock_names
from raycurate.training.model.options import LoraOptions, ModelOptions
from tests.encoders.tiny import TEXTS
from tests.finetune.families import batch_of, least_cosine, save_family, vectors

VARIANTS = [
    LoraOptions(dim=4, alpha=8),
    LoraOptions(dim=2, alpha=6, dora=True, target_modules=("q_proj", "down_proj")),
    LoraOptions(dim=4, dropout=0.3),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    return {family: save_family(root / family, family) for family in ("bert", "llama")}


def trained(folder: str, lora: LoraOptions, **options):
    """An adapted model with its adapters moved as training would."""
    model = load_bi_encoder(folder, ModelOptions(**options), lora=lora)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.mark.parametrize("lora", VARIANTS[:2], ids=["lora", "dora"])
def test_only_adapters_are_trained_and_fresh_ones_change_nothing(tiny, lora):
    options = ModelOptions(bidirectional=True)
    model = load_bi_encoder(tiny["llama"], options, lora=lora)
    plain = load_bi_encoder(tiny["llama"], options)
    assert torch.allclose(
        vectors(model, TEXTS, "document"), vectors(plain, TEXTS, "document", left=2), atol=2e-6, rtol=1e-5
    )
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    touched = {n.split(".lora_")[0].rpartition(".")[2] for n in names}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert touched == (set(lora.target_modules) or every)
    model.encode(batch_of(model, TEXTS, "query"), "query")[:, 0].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_excluded_layers_get_no_adapter(tiny):
    for excluded in (("down_proj", "o_proj"), ("layers.1.self_attn.q_proj",)):
        options = LoraOptions(dim=2, exclude_modules=excluded)
        model = load_bi_encoder(tiny["llama"], ModelOptions(), lora=options)
        adapted = {n.partition(".lora_")[0].partition("base_model.model.")[2] for n, _ in model.named_parameters()
                   if ".lora_" in n}  # fmt: skip
        parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
        parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        every = {f"layers.{i}.{part}" for i in (0, 1) for part in parts}
        assert adapted == {name for name in every if not name.endswith(excluded)}
    for wrong in ("lm_head", "proj"):
        with pytest.raises(ConfigError, match=f"no linear layer '{wrong}'.*Its layers: down_proj"):
            load_bi_encoder(tiny["llama"], ModelOptions(), lora=LoraOptions(exclude_modules=(wrong,)))
    only = LoraOptions(target_modules=("q_proj",), exclude_modules=("q_proj",))
    with pytest.raises(ConfigError, match="no layer is left to adapt"):
        load_bi_encoder(tiny["llama"], ModelOptions(), lora=only)


def test_layers_that_no_gradient_reaches_and_unknown_ones_get_no_adapter(tiny, tmp_path):
    model = load_bi_encoder(tiny["bert"], ModelOptions(), lora=LoraOptions())
    assert not any("pooler" in n and "lora_" in n for n, _ in model.named_parameters())
    model.encode(batch_of(model, TEXTS, "query"), "query")[:, 0].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match=r"no linear layer 'q_proj'.*Its layers: dense, key, query, value"):
        load_bi_encoder(tiny["bert"], ModelOptions(), lora=LoraOptions(target_modules=("q_proj",)))
    with pytest.raises(ConfigError, match="GPT2Model has no linear layer"):  # its projections are of another class
        load_bi_encoder(save_family(tmp_path / "gpt2", "gpt2"), ModelOptions(), lora=LoraOptions())
    with pytest.raises(ConfigError, match="dim=0"):
        LoraOptions.parse({"dim": 0}, where="lora")


@pytest.mark.parametrize("lora", VARIANTS, ids=["lora", "dora", "dropout"])
def test_merging_a_stream_is_pefts_own_merge(tiny, lora):
    model = trained(tiny["llama"], lora)
    body = model.tower("query").body
    assert options_of(body).scale == lora.scale
    state = dict(body.state_dict())
    adapter: dict[str, torch.Tensor] = {}
    ours = dict(merged(state.items(), lora, adapter))
    assert set(ours) == stock_names(state)
    assert sum("lora_" in name for name in state) == len(adapter)
    before = {name: tensor.clone() for name, tensor in state.items()}
    expected = body.merge_and_unload().state_dict()
    assert set(ours) == set(expected)
    assert all(torch.allclose(ours[n], expected[n], atol=1e-5) for n in expected)
    assert any((ours[n] - before[f"base_model.model.{n[:-7]}.base_layer.weight"]).abs().max() > 0.01
               for n in ours if f"base_model.model.{n[:-7]}.base_layer.weight" in before)  # fmt: skip
    incomplete = [item for item in before.items() if "layers.1.mlp.down_proj.lora_B" not in item[0]]
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj.*not whole"):
        list(merged(incomplete, lora, {}))


@pytest.mark.parametrize(("family", "lora"), [("llama", VARIANTS[0]), ("llama", VARIANTS[1]), ("bert", VARIANTS[0])])
def test_merged_export_adapter_and_training_model_agree(tiny, tmp_path, family, lora):
    both_ways = True if family == "llama" else None
    model = trained(tiny[family], lora, bidirectional=both_ways, normalize=True, prompts={"query": "the bird "})
    got = vectors(model, TEXTS, "query")
    contracts = export_checkpoint(model, str(tmp_path / "out"))
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert not model.contract.differences(contracts["shared"]).keys() - {"weights"}
    options = EncoderOptions(model=str(tmp_path / "out"), engine="transformers", dtype="float32", role="query")
    assert least_cosine(encode(load_encoder(options), TEXTS), got) >= 0.9999

    from peft import PeftModel

    # The adapter by itself, on the base model that adapter_config.json names
    plain = load_bi_encoder(
        tiny[family], ModelOptions(bidirectional=both_ways, normalize=True, prompts={"query": "the bird "})
    )
    base = vectors(plain, TEXTS, "query")
    tower = plain.tower("query")
    tower.body = PeftModel.from_pretrained(tower.body, str(tmp_path / "out" / "adapter"))
    assert tower.body.peft_config["default"].base_model_name_or_path == tiny[family]
    needs = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text()).get("is_causal")
    assert needs is (False if family == "llama" else None)
    assert torch.allclose(vectors(plain, TEXTS, "query"), got, atol=1e-6)
    assert least_cosine(base, got) < 0.99  # the adapter does something
