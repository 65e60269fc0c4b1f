"""The estimate of a training against what a real one holds, and against published numbers of known models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raycurate.core.errors import CapacityError
from raycurate.training.estimate import Setting, estimate_training
from raycurate.training.flops import GIB, device_named, peak_flops, training_flops
from raycurate.training.micro_batch import PROCESS, half_of_a_machine, questions_at_once
from raycurate.training.model.bi_encoder import BiEncoder, load_bi_encoder
from raycurate.training.model.meta_model import ModelOutline
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.options import TrainOptions
from tests.finetune.families import Batch, save_family

LLAMA_1B = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = LLAMA_1B | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
BERT_BASE = {
    "model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 30522,
}  # fmt: skip


def config_folder(folder: Path, config: dict[str, Any]) -> str:
    """A model's folder without weights and tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


WIDE = LLAMA_1B | {  # 6.7 billion parameters in two layers, so that it is outlined in no time
    "hidden_size": 16384, "intermediate_size": 40960, "num_hidden_layers": 2, "num_attention_heads": 128,
    "num_key_value_heads": 128, "head_dim": 128, "vocab_size": 32000,
}  # fmt: skip
WIDE_PARAMETERS = 2 * (4 * 16384**2 + 3 * 16384 * 40960 + 2 * 16384) + 32000 * 16384 + 16384


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return config_folder(tmp_path_factory.mktemp("wide"), WIDE)


def kept_bytes(model: BiEncoder, texts: int, length: int) -> int:
    """What autograd really keeps of a forward pass: the memory of all saved tensors but the parameters, once each."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids_BT = torch.randint(3, 15, (texts, length))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, -1] = 0  # with one padding at least there is a mask, as in most batches
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        vectors = model.encode(Batch(ids_BT, mask_BT), "document")
    assert vectors is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(
    ("family", "attention", "dropout"),
    [(name, "sdpa", 0.0) for name in ("llama", "bert", "modernbert", "qwen3", "gemma3_text")]
    + [(name, "eager", 0.0) for name in ("llama", "bert")]
    + [("llama", "sdpa", 0.1), ("bert", "sdpa", 0.1), ("bert", "unpadded", 0.1)],
)
def test_activations_are_those_of_the_real_model(tmp_path: Path, family: str, attention: Any, dropout: float) -> None:
    """Within 5%, of 40 texts of 48 tokens; what is over is the mask and the pooling."""
    folder = save_family(tmp_path, family)
    options = ModelOptions(bidirectional=True, pooling="mean", attention=attention, dropout=dropout)
    measured = kept_bytes(load_bi_encoder(folder, options), 40, 48)
    activations = ModelOutline(folder, options).activations(48, cuda=False)
    counted = 40 * activations.kept(False) + activations.copies
    print(family, attention, measured, counted, counted / measured)
    assert 0.95 < counted / measured < 1.05


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize(
    "lora", [None, LoraOptions(dim=4), LoraOptions(dim=2, dora=True)], ids=["whole", "lora", "dora"]
)
def test_parameters_are_those_of_the_loaded_model(tmp_path: Path, family: str, lora: LoraOptions | None) -> None:
    folder = save_family(tmp_path, family)
    options = ModelOptions(separate_encoders=True)
    loaded = load_bi_encoder(folder, options, lora=lora)
    counts = ModelOutline(folder, options, lora).counts
    assert counts.parameters == sum(p.numel() for p in loaded.parameters())
    assert counts.trainable == sum(p.numel() for p in loaded.parameters() if p.requires_grad)


def test_heads_count_and_weights_are_not_read(dense_model: str) -> None:
    counts = ModelOutline(dense_model, ModelOptions()).counts
    loaded = load_bi_encoder(dense_model, ModelOptions())
    assert counts.parameters == sum(p.numel() for p in loaded.parameters())
    assert counts.dimension == 16


def test_weights_gradients_and_optimiser_are_those_of_a_step(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "bert")
    model = load_bi_encoder(folder, ModelOptions())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    ids_BT = torch.randint(3, 15, (2, 8))
    vectors: Any = model.encode(Batch(ids_BT, torch.ones_like(ids_BT)), "document")
    vectors.sum().backward()
    optimiser.step()
    moments = [t for state in optimiser.state.values() for t in state.values() if t.ndim]
    few = Setting(query_length=8, passage_length=8)
    memory = estimate_training(
        folder, ModelOptions(), TrainOptions(precision="float32", global_batch_size=4), few
    ).memory
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    assert memory.optimiser == sum(t.nbytes for t in moments)


def test_a_bert_layer_keeps_what_korthikanti_et_al_count(tmp_path: Path) -> None:
    """34 bytes a token and unit of width, less a byte for each of two dropout masks, which are kept as numbers of two
    bytes here, and four bytes for each of twelve heads."""
    options = ModelOptions(dtype="bfloat16", attention="unpadded")
    config = BERT_BASE | {"num_hidden_layers": 2}
    activations = ModelOutline(config_folder(tmp_path, config), options).activations(128)
    assert activations.layers[1] / 128 == pytest.approx((34 - 2 + 4) * 768 + 12 * 4, rel=0.001)


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA_1B, 1_235_814_400), (LLAMA_8B, 8_030_261_248 - 128256 * 4096)], ids=["1b", "8b"]
)
def test_published_sizes(tmp_path: Path, config: dict[str, Any], parameters: int) -> None:
    """As on the models' cards; an encoder has no language model's head."""
    counts = ModelOutline(config_folder(tmp_path, config), ModelOptions()).counts
    assert counts.parameters == parameters
    norms = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
    assert counts.multiplied == parameters - 128256 * config["hidden_size"] - norms


def test_flops_by_hand() -> None:
    """6 N a token; with frozen weights 4 N; 12 L H Q T for attention over T tokens."""
    assert training_flops(1000, 1000, 64).of(10) == 60_000
    assert training_flops(1000, 0, 64).of(10) == 40_000
    layers, heads, size, tokens = 3, 4, 8, 5
    assert training_flops(0, 0, layers * heads * size).of(tokens, tokens**2) == 12 * layers * heads * size * tokens**2


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("H100", 989),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA A10G", 70), ("Tesla T4", 65),
    ],
)  # fmt: skip
def test_peaks_of_the_data_sheets(name: str, tera: int) -> None:
    assert peak_flops(name, "bfloat16") == tera * 1e12


def test_what_is_not_known_is_none() -> None:
    assert peak_flops("AMD EPYC", "bfloat16") is None and peak_flops("NVIDIA H100", "float32") is None
    a100, large = device_named("A100"), device_named("NVIDIA A100-SXM4-80GB")
    assert a100 is not None and large is not None and a100.memory < 40 * GIB < 78 * GIB < large.memory


def test_sharding_divides_and_checkpointing_saves(wide: str) -> None:
    options = TrainOptions(precision="bfloat16", strategy="fsdp2", local_batch_size=1)
    eight = Setting(ranks=8, memory=79 * GIB, cuda=True, questions=100_000)
    plain = estimate_training(wide, ModelOptions(), options, eight)
    assert plain.outline.parameters == WIDE_PARAMETERS
    assert plain.memory.weights == plain.memory.gradients == WIDE_PARAMETERS * 4 // 8
    assert plain.memory.optimiser == WIDE_PARAMETERS * 8 // 8
    assert plain.memory.gathered > WIDE_PARAMETERS * 4, "micro-steps keep whole gradients until the last"
    assert plain.steps == 100_000 // 128 * 3
    each = estimate_training(wide, ModelOptions(), options.model_copy(update={"gradient_sync": "each"}), eight)
    assert plain.memory.gathered - each.memory.gathered == WIDE_PARAMETERS * 4
    less = estimate_training(wide, ModelOptions(gradient_checkpointing=True), options, eight)
    assert less.memory.weights == plain.memory.weights
    assert less.memory.activations < 0.7 * plain.memory.activations, "one of the two layers is computed again"


def test_chunks_of_gradcache_bound_the_activations(wide: str) -> None:
    options = TrainOptions(loss="cross_rank", precision="bfloat16", global_batch_size=64)
    small, large = (
        estimate_training(
            wide, ModelOptions(), options.model_copy(update={"chunk_tokens": tokens}), Setting(cuda=True)
        ).memory
        for tokens in (512, 5120)
    )
    assert large.activations == 10 * small.activations and large.total - small.total == 9 * small.activations


def test_what_cannot_fit_is_refused_with_numbers_and_a_way_out(wide: str) -> None:
    options = TrainOptions(precision="bfloat16", local_batch_size=1)
    found = estimate_training(wide, ModelOptions(), options, Setting(memory=79 * GIB, cuda=True))
    with pytest.raises(CapacityError) as refused:
        found.require_fit()
    message = str(refused.value)
    gib = WIDE_PARAMETERS * 4 / GIB
    assert f"weights {gib:.1f} + gradients {gib:.1f} + optimiser {2 * gib:.1f}" in message and "79.0 GiB" in message
    assert "strategy=fsdp2 over" in message and "gradient_checkpointing=true" not in message
    assert estimate_training(wide, ModelOptions(), options, Setting(cuda=True)).fits, "no memory known, no refusal"


def test_lora_makes_it_fit(wide: str) -> None:
    options, gpu = TrainOptions(precision="bfloat16", local_batch_size=1), Setting(memory=79 * GIB, cuda=True)
    found = estimate_training(wide, ModelOptions(), options, gpu, lora=LoraOptions(dim=16))
    assert found.fits and found.outline.trainable < found.outline.parameters / 100
    assert found.memory.gradients == found.outline.trainable * 4
    assert f"{found.outline.trainable:,} trained" in found.report()


@pytest.mark.parametrize("loss", ["listed", "cross_rank"])
@pytest.mark.parametrize("gib", [1.3, 2.5, 5, 40])
def test_a_worker_on_a_cpu_is_cut_to_its_memory_and_no_further(tmp_path: Path, loss: Any, gib: float) -> None:
    """What is chosen fits, and the next larger that could be does not."""
    folder = config_folder(tmp_path / "bert", BERT_BASE | {"num_hidden_layers": 2})
    model = ModelOptions(attention="unpadded")
    options = TrainOptions(precision="float32", loss=loss, global_batch_size=48)
    setting = Setting(ranks=2, memory=int(gib * GIB), n_passages=3, query_length=64, passage_length=256)
    chosen = questions_at_once(folder, model, options, setting)
    fits = {
        n: estimate_training(folder, model, options.model_copy(update={"local_batch_size": n}), setting).memory.total
        <= 0.75 * (setting.memory - PROCESS)  # type: ignore[operator]
        for n in range(1, 25)
        if loss != "listed" or 24 % n == 0
    }
    assert (chosen or 24) == max((n for n, fit in fits.items() if fit), default=1)
    half = questions_at_once(folder, model, options, setting, fullness=0.5)
    assert half is None or (chosen is not None and half >= chosen)  # shorter texts, more of them
    assert questions_at_once(folder, model, options, replace(setting, memory=None)) is None
    assert questions_at_once(folder, model, options.model_copy(update={"local_batch_size": 4}), setting) is None
    assert questions_at_once(folder, model, options, replace(setting, cuda=True)) is None


def test_half_of_a_machine_is_shared_by_the_workers_on_it() -> None:
    here = half_of_a_machine(1, 1, None)
    assert here is not None and half_of_a_machine(4, 1, None) == here // 4
    assert half_of_a_machine(4, 3, 14 * GIB) == 10 * GIB
    assert half_of_a_machine(4, 3, None) is None
