"""Models built without memory and filled shard by shard: the same parameters, buffers and losses, bit for bit."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycurate.core.errors import ContractError
from raycurate.training.checkpoints.tensor_files import ShardWriter
from raycurate.training.model import streamed
from raycurate.training.model.bi_encoder import BiEncoder, MustBeLoadedWholeError, empty_bi_encoder, load_bi_encoder
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.model.parallelize import load_to_spread, parallelize
from raycurate.training.options import TrainOptions
from tests.encoders.tiny import TEXTS, save_tokenizer
from tests.finetune.families import batch_of, save_family
from tests.ranks import in_two_ranks

SHARDED = TrainOptions(strategy="fsdp2", global_batch_size=8)
CPU = torch.device("cpu")
BOTH = ModelOptions(bidirectional=True, dropout=0.0)
Case = tuple[str, ModelOptions, LoraOptions | None]


def save_as_older_programs_did(folder: Path, family: str) -> str:
    """A BERT with a head, a prefix, norms named gamma and beta, no pooler, in a pickle; a Llama with a head, in two
    files with an index."""
    from safetensors.torch import load_file, save_file

    path = Path(save_family(folder, family))
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    if family == "bert":
        old = {
            f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for n, t in weights.items()
            if "pooler" not in n
        }
        torch.save({**old, "cls.predictions.bias": torch.zeros(3)}, path / "pytorch_model.bin")
        return str(path)
    parts = [{f"model.{n}": t for i, (n, t) in enumerate(weights.items()) if i % 2 == part} for part in (0, 1)]
    parts[0]["lm_head.weight"] = torch.zeros(3, 4)
    names = [f"model-0000{part + 1}-of-00002.safetensors" for part in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, path / name, metadata={"format": "pt"})
    where = {n: name for name, part in zip(names, parts, strict=True) for n in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return str(path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, dense_model: str) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("models")
    llama = save_family(root / "llama", "llama")
    return {
        "bert, unpadded": (save_family(root / "bert", "bert"), ModelOptions(attention="unpadded", dropout=0.0), None),
        "modernbert": (save_family(root / "modernbert", "modernbert"), ModelOptions(dropout=0.0), None),
        "gemma3": (save_family(root / "gemma3_text", "gemma3_text"), BOTH, None),
        "dense heads": (dense_model, ModelOptions(dropout=0.0), None),
        "an old bert": (save_as_older_programs_did(root / "old bert", "bert"), ModelOptions(dropout=0.0), None),
        "an old llama": (save_as_older_programs_did(root / "old llama", "llama"), BOTH, None),
        "adapters": (llama, BOTH, LoraOptions(dim=2)),
        "two towers, dora": (llama, ModelOptions(separate_encoders=True, dropout=0.0), LoraOptions(dim=2, dora=True)),
    }


def _spread(case: Case, *, empty: bool) -> BiEncoder:
    folder, options, lora = case
    torch.manual_seed(3)
    load = empty_bi_encoder if empty else load_bi_encoder
    encoder = load(folder, options, lora=lora)
    parallelize(encoder, SHARDED, CPU)
    return encoder


def _whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _compared(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, case in cases.items():
        plain, filled = (_spread(case, empty=empty) for empty in (False, True))
        trained = {n: p.requires_grad for n, p in plain.named_parameters()}
        mine, theirs = (
            {n: _whole(t).clone() for n, t in [*e.state_dict().items(), *e.named_buffers()]} for e in (filled, plain)
        )
        batch = batch_of(plain, TEXTS, "query")
        sums = [(e.encode(batch, "query") * torch.linspace(-1, 1, 6)[:, None]).sum() for e in (plain, filled)]  # type: ignore[operator]
        for total in sums:
            total.backward()
        moved = [{n: _whole(p.grad) for n, p in e.named_parameters() if p.grad is not None} for e in (plain, filled)]
        found[name] = {
            "names": (list(mine), list(theirs)),
            "differing": [n for n in mine if not torch.equal(mine[n], theirs[n])],
            "trained": trained == {n: p.requires_grad for n, p in filled.named_parameters()},
            "losses": [total.item() for total in sums],
            "gradients": moved[0].keys() == moved[1].keys()
            and all(torch.equal(moved[0][n], moved[1][n]) for n in moved[0]),
            "chosen": streamed.is_empty(load_to_spread(case[0], case[1], SHARDED, CPU, lora=case[2])),
        }
    return found


@pytest.fixture(scope="module")
def compared(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    return in_two_ranks(_compared, cases)


NAMES = (
    "bert, unpadded", "modernbert", "gemma3", "dense heads", "an old bert", "an old llama", "adapters",
    "two towers, dora",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_filled_model_is_the_loaded_one_bit_for_bit(compared: dict[str, dict[str, Any]], name: str) -> None:
    """Parameters, buffers (also those in no file), what is trained, the first loss and its gradients; and it is the way
    that a sharded training takes."""
    found = compared[name]
    assert found["names"][0] == found["names"][1]
    assert found["differing"] == []
    assert found["losses"][0] == found["losses"][1]
    assert found["trained"] and found["gradients"] and found["chosen"]


def test_an_empty_model_has_no_parameters_in_memory(cases: dict[str, Case]) -> None:
    for folder, options, lora in cases.values():
        encoder = empty_bi_encoder(folder, options, lora=lora)
        towers: Any = encoder.towers.values()
        assert all(p.is_meta for tower in towers for p in tower.body.parameters())
        assert not any(b.is_meta for tower in towers for b in tower.body.buffers())
        assert held_bytes(encoder) == sum(p.nbytes for t in towers for p in t.heads.parameters())


def test_files_that_lack_weights_or_have_others_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_family(tmp_path, "bert")
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    missing = "encoder.layer.1.output.dense.bias"
    save_file({n: t for n, t in weights.items() if n != missing}, file, metadata={"format": "pt"})
    with pytest.raises(ContractError, match=rf"lack 1 weights: {missing}"):
        streamed.require_streamable(empty_bi_encoder(folder, ModelOptions()))
    save_file(weights | {missing: torch.zeros(33)}, file, metadata={"format": "pt"})
    with pytest.raises(ContractError, match=rf"'{missing}' as \(33,\), the model as \(32,\)"):
        streamed.fill(empty_bi_encoder(folder, ModelOptions()), CPU, held_on=CPU)


def test_a_mixture_of_experts_is_left_to_transformers(tmp_path: Path) -> None:
    """Its experts lie one by one in the files and together in the model, and only run where there is memory."""
    from transformers import MixtralConfig, MixtralModel

    size = save_tokenizer(tmp_path, bert_like=False, length=64)
    config = MixtralConfig(
        vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    MixtralModel(config).save_pretrained(tmp_path)
    with pytest.raises(MustBeLoadedWholeError, match="without memory"):
        empty_bi_encoder(str(tmp_path), ModelOptions())


# Memory, of a Llama of 537 MB


LAYERS, WIDTH, INNER = 8, 1024, 4096
PARAMETERS = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH) + (19 + 1) * WIDTH


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Bytes that this process holds more at the most inside the block, mapped files not counted."""

    def held() -> int:
        lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    before, most, done = held(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], held() - before)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def _filled(folder: str, tiny: str) -> tuple[int, int]:
    """(bytes of parameters in the end, bytes at the most); nothing is run, which would gather layers."""
    parallelize(empty_bi_encoder(tiny, ModelOptions()), SHARDED, CPU)  # imports take memory too
    with anonymous_peak() as peak:
        encoder = empty_bi_encoder(folder, ModelOptions())
        parallelize(encoder, SHARDED, CPU)
    return held_bytes(encoder), peak[0]


@pytest.mark.slow
def test_a_rank_holds_its_shards_and_little_more(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaModel

    size = save_tokenizer(tmp_path, bert_like=False, length=64)
    config = LlamaConfig(
        vocab_size=size, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(tmp_path)
    whole, slice_ = PARAMETERS * 4, WIDTH * INNER * 4 // 2
    held, peak = in_two_ranks(_filled, str(tmp_path), save_family(tmp_path / "tiny", "llama"))
    print(f"of {whole / 1e6:.0f} MB a rank holds {held / whole:.3f}, at the most {peak / whole:.3f}")
    assert held == pytest.approx(whole / 2, rel=0.001)
    assert peak < whole / 2 + 2 * slice_


@pytest.mark.slow
def test_an_export_holds_little_more_than_a_file(tmp_path: Path) -> None:
    limit = 160 * 2**20
    writer = ShardWriter(tmp_path, shard_bytes=limit)
    with anonymous_peak() as peak:
        for number in range(16):  # of 40 MiB each, which the allocator gives back at once
            writer.add(f"{number}", nn.Parameter(torch.full((10, 2**20), float(number))))
        writer.close()
    print(f"{peak[0] / limit:.2f} files")
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert peak[0] < 1.35 * limit  # the next tensor is there when a file is written


def held_bytes(encoder: nn.Module) -> int:
    """Bytes of parameters that this rank holds."""
    locals_: list[Any] = [p.to_local() if hasattr(p, "to_local") else p for p in encoder.parameters()]
    return sum(tensor.numel() * tensor.element_size() for tensor in locals_ if not tensor.is_meta)
