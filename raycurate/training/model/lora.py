"""Low-rank adapters (Hu et al. 2021, LoRA, arXiv:2106.09685; Liu et al. 2024, DoRA, arXiv:2402.09353), by PEFT.

PEFT puts the adapters into the model. Merging is done here, on a stream of named tensors and not on the model: the
weights of a sharded model pass by once, no second copy of them is ever whole in memory, and the model in training
is not touched.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from raycurate.core.errors import ConfigError
from raycurate.models.fetch import hub_name
from raycurate.models.loading import parameters_without_memory
from raycurate.training.model.options import LoraOptions

NAME = "default"  # PEFT's name for the only adapter
_PREFIX = "base_model.model."  # what PEFT puts before every name of the model it wraps


def add_adapters(body: nn.Module, options: LoraOptions, *, base: str) -> nn.Module:
    """`body` with adapters in it and nothing else trainable (PEFT's PeftModel, which is called as the body is).

    Linear layers whose parameters were frozen before (no gradient reaches them) get no adapter.

    Args:
        base: the base model's folder, for adapter_config.json; one of the hub client's cache stands there as its id.

    Raises:
        ConfigError: no linear layer has such a name, or there is none at all.
    """
    import peft

    linear = {name: m for name, m in body.named_modules() if isinstance(m, nn.Linear)}
    unreached = sorted(name for name, module in linear.items() if not module.weight.requires_grad)
    for option in ("target_modules", "exclude_modules"):
        for target in getattr(options, option):
            if not _named(linear, target):
                known = sorted({name.rpartition(".")[2] for name in linear})
                raise ConfigError(
                    f"the model has no linear layer '{target}'",
                    where=f"lora.{option}",
                    fix=f"Its layers: {', '.join(known)}",
                )
    excluded = sorted({*unreached, *(name for each in options.exclude_modules for name in _named(linear, each))})
    free = set(linear) - set(excluded)
    targets = options.target_modules or sorted({name.rpartition(".")[2] for name in free})
    if options.exclude_modules and not any(_named(free, target) for target in targets):
        raise ConfigError("no layer is left to adapt", where="lora.exclude_modules", fix="Exclude fewer layers")
    if not targets:
        raise ConfigError(f"{type(body).__name__} has no linear layer to adapt", where="lora", fix="Train it whole")
    config = peft.LoraConfig(
        r=options.dim,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        lora_dropout=options.dropout,
        use_dora=options.dora,
        target_modules=list(targets),
        exclude_modules=excluded or None,
        task_type=peft.TaskType.FEATURE_EXTRACTION,
    )
    empty = any(parameter.is_meta for parameter in body.parameters())
    with parameters_without_memory() if empty else nullcontext():
        wrapped: nn.Module = peft.get_peft_model(body, config)
    peft_config: Any = wrapped.peft_config[NAME]  # type: ignore[index]
    peft_config.base_model_name_or_path, peft_config.revision = hub_name(base) or (base, None)
    for name, parameter in wrapped.named_parameters():
        if is_drawn(name) and not parameter.is_meta:
            parameter.data.copy_(initial(name, parameter.shape))
    return wrapped


def _named(layers: Iterable[str], target: str) -> list[str]:
    """The layers of this name, or whose name ends in it."""
    return [name for name in layers if name == target or name.endswith(f".{target}")]


def is_drawn(name: str) -> bool:
    """Whether this parameter of an adapted body starts from `initial`."""
    return split_name(name)[1] in ("lora_A", "lora_B")


def initial(name: str, shape: Sequence[int]) -> Tensor:
    """What a factor of an adapter starts from, float32: A uniform as PEFT has it (Kaiming with a = sqrt(5)), B zero.

    It follows from torch's seed and the name, so each rank of a sharded model can draw it for itself.
    """
    if split_name(name)[1] == "lora_B":
        return torch.zeros(*shape)
    digest = hashlib.sha256(f"{torch.initial_seed()} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5), generator=generator)


def is_adapted(body: nn.Module) -> bool:
    """Whether `body` is what `add_adapters` gave."""
    return hasattr(body, "peft_config")


def options_of(body: nn.Module) -> LoraOptions:
    """The options that an adapted body was made with (its target modules as PEFT resolved them)."""
    config: Any = body.peft_config[NAME]  # type: ignore[index]
    return LoraOptions(
        dim=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        dora=config.use_dora,
        target_modules=sorted(config.target_modules),
    )


def adapter_config(body: nn.Module) -> str:
    """adapter_config.json in PEFT's format.

    With `is_causal: false` where the base model was made to attend both ways: the adapter is of use with such a base
    only. PEFT itself ignores the key, with a warning that names it; this project's readers follow it.
    """
    config: Any = body.peft_config[NAME]  # type: ignore[index]
    text: Any = body.get_base_model().config.get_text_config()  # type: ignore[operator]
    needs = {"is_causal": False} if getattr(text, "is_causal", None) is False else {}
    values = config.to_dict() | {"inference_mode": True} | needs
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}
    return json.dumps(plain, indent=2, sort_keys=True, default=str)


def merged(
    named: Iterable[tuple[str, Tensor]], options: LoraOptions, adapter: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """An adapted body's tensors -> the stock model's, the adapters worked into its weights.

    W + s B A, or with DoRA m (W + s B A) / |W + s B A| by rows, computed in float32 and given in W's precision.
    Holds the tensors of one layer at a time when they come in a state dict's order.

    Args:
        named: names as in the PeftModel's state dict.
        options: what the adapters were made with.
        adapter: filled with the adapters' tensors, named as in PEFT's adapter_model.safetensors.

    Raises:
        ValueError: a layer's adapter was not whole when the stream ended.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    wanted = {"base_layer", "lora_A", "lora_B"} | ({"lora_magnitude_vector"} if options.dora else set())
    for name, tensor in named:
        layer, part = split_name(name)
        if part is None:
            yield layer, tensor
            continue
        parts = waiting.setdefault(layer, {})
        parts[part] = tensor
        if part != "base_layer":
            file_name = name.replace(f".{NAME}", "")
            adapter[file_name.removesuffix(".weight") if part == "lora_magnitude_vector" else file_name] = tensor
        if set(parts) == wanted:
            yield f"{layer}.weight", _merge(waiting.pop(layer), options)
    if waiting:
        raise ValueError(f"the adapters of {sorted(waiting)[:3]} are not whole: {sorted(wanted)} are needed")


def stock_names(names: Iterable[str]) -> set[str]:
    """The names that `merged` gives for these of an adapted body."""
    return {layer if part is None else f"{layer}.weight" for layer, part in map(split_name, names)}


def split_name(name: str) -> tuple[str, str | None]:
    """(layer, part) of a tensor of an adapted body that a merge needs: "base_layer", "lora_A", "lora_B" or
    "lora_magnitude_vector"; (the stock model's name, None) of any other."""
    stock = name.removeprefix(_PREFIX)
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        if f".{part}." in stock:
            return stock.partition(f".{part}.")[0], part
    if stock.endswith(".base_layer.weight"):
        return stock.removesuffix(".base_layer.weight"), "base_layer"
    return stock.replace(".base_layer.", "."), None


def _merge(parts: dict[str, Tensor], options: LoraOptions) -> Tensor:
    weight = parts["base_layer"]
    sum_OI = weight.float() + options.scale * (parts["lora_B"].float() @ parts["lora_A"].float())
    if options.dora:
        lengths_O = torch.linalg.vector_norm(sum_OI, dim=1)
        sum_OI = sum_OI * (parts["lora_magnitude_vector"].float() / lengths_O)[:, None]
    return sum_OI.to(weight.dtype)
