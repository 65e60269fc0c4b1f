"""A model larger than a rank's memory: each rank reads its own part of each weight from the checkpoint's files.

`model.empty_bi_encoder` builds the model without memory for its parameters, `parallelize` shards it, and `fill` gives
each shard its rows: one tensor at a time, sliced where the file lies (mapped, not read whole), with nothing to
send between ranks. So a rank holds its shards and one slice. What loading checks on the values of a whole model (that
a token sees those after it, that unpadded states are the padded ones') `fill` checks on the sharded one.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raycurate.core.errors import ConfigError, ContractError
from raycurate.core.observe import get_logger
from raycurate.models.checkpoint import body_folder
from raycurate.models.loading import require_weights, stock_model
from raycurate.models.packed import PackedUnsupportedError
from raycurate.training.model import lora, unpadded
from raycurate.training.model.backbones import probe_texts, require_both_ways
from raycurate.training.model.bi_encoder import BiEncoder, MustBeLoadedWholeError, Tower

_log = get_logger(__name__)

Rows = Callable[[int, int], Tensor]
"""(first, past the last) -> these rows of a tensor."""


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: the shape of the whole, and its rows on demand."""

    shape: tuple[int, ...]
    rows: Rows


def is_empty(encoder: nn.Module) -> bool:
    """Whether there are parameters without memory, which `fill` gives their values."""
    return any(parameter.is_meta for parameter in encoder.parameters())


def require_streamable(encoder: BiEncoder) -> None:
    """Raises MustBeLoadedWholeError where `fill` could not fill this model, ContractError where its files lack
    weights."""
    for tower in encoder.towers.values():
        _stored_weights(tower)  # type: ignore[arg-type]


def fill(encoder: BiEncoder, device: torch.device, *, held_on: torch.device) -> None:
    """Give the parameters of a sharded empty model their values; every rank must call it.

    Args:
        device: what it runs on. held_on: where the shards lie, the CPU where they are offloaded.

    Weights that the files lack (BERT's pooler alone may be) are drawn as transformers draws them, and the log says
    so; they and adapters follow from torch's seed, which must be that of all ranks.

    Raises:
        ConfigError: it cannot run unpadded.
        ContractError: the files lack weights, or the model cannot attend both ways.
    """
    from torch.distributed.fsdp import FSDPModule

    for tower in encoder.towers.values():
        _fill_tower(tower, held_on)  # type: ignore[arg-type]
    training = encoder.training
    encoder.eval()
    for role in dict.fromkeys(("query", "document") if encoder.separate else ("document",)):
        _check(encoder, role, device)
    encoder.train(training)
    for module in encoder.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what the checks gathered; an optimiser wants the shards


def _fill_tower(tower: Tower, device: torch.device) -> None:
    stored = _stored_weights(tower)
    stock = _stock(tower.body)
    made: dict[int, nn.Parameter] = {}
    absent: list[str] = []
    for path, module in tower.body.named_modules():
        for key, held in module._parameters.items():
            if held is None or not held.is_meta:
                continue
            if id(held) not in made:
                name = f"{path}.{key}" if path else key
                rows = _source(name, held, stored, tower.body)
                if rows is None:
                    absent.append(name)
                    rows = _drawn(module, key, stock)
                made[id(held)] = _materialised(held, rows, device)
            module._parameters[key] = made[id(held)]
    for name, buffer in stock.named_buffers():
        if name in stored:
            buffer.copy_(stored[name].rows(0, stored[name].shape[0] if stored[name].shape else 1))
    if absent:
        _log.info("%s: %s not in its files, drawn anew: %s", tower.source, len(absent), ", ".join(absent))


def _source(name: str, held: nn.Parameter, stored: dict[str, _Stored], body: nn.Module) -> Rows | None:
    """Where the rows of a parameter come from; None: from nowhere."""
    layer, part = lora.split_name(name) if lora.is_adapted(body) else (name, None)
    if lora.is_adapted(body) and lora.is_drawn(name):
        whole = lora.initial(name, held.shape)
        return lambda first, last: whole[first:last]
    if part == "lora_magnitude_vector":  # DoRA starts from the lengths of the weight's rows, as B is zero
        weight = stored[f"{layer}.weight"]
        return lambda first, last: torch.linalg.norm(weight.rows(first, last).to(held.dtype), dim=1)
    found = stored.get(f"{layer}.weight" if part == "base_layer" else layer)
    if found is None:
        return None
    if found.shape != tuple(held.shape):
        raise ContractError(f"its files have '{layer}' as {found.shape}, the model as {tuple(held.shape)}")
    return found.rows


def _materialised(held: nn.Parameter, rows: Rows, device: torch.device) -> nn.Parameter:
    """This rank's part of a parameter (all of it where it is not sharded), with its values."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(held, DTensor):
        first, count = 0, held.shape[0] if held.ndim else 1
        local_shape: Any = held.shape
    else:
        local_shape, offset = compute_local_shape_and_global_offset(held.shape, held.device_mesh, held.placements)
        if tuple(local_shape[1:]) != tuple(held.shape[1:]):
            raise ValueError(f"sharded otherwise than by rows: {held.placements}")
        first, count = offset[0], local_shape[0]
    local = torch.empty(local_shape, dtype=held.dtype, device=device)
    if local.numel():
        local.copy_(rows(first, first + count))
    if not isinstance(held, DTensor):
        return nn.Parameter(local, requires_grad=held.requires_grad)
    spread = DTensor.from_local(
        local, held.device_mesh, held.placements, run_check=False, shape=held.shape, stride=held.stride()
    )
    return nn.Parameter(spread, requires_grad=held.requires_grad)


def _drawn(module: nn.Module, key: str, stock: Any) -> Rows:
    """Rows of a parameter that is in no file, as transformers draws it for a module of this kind."""
    whole = copy.copy(module)
    whole._parameters = {
        name: None if held is None else nn.Parameter(torch.empty(held.shape, dtype=held.dtype), requires_grad=False)
        for name, held in module._parameters.items()
    }
    for name, held in whole._parameters.items():
        if held is not None and name != key:
            held._is_hf_initialized = True  # type: ignore[attr-defined]
    stock._init_weights(whole)
    drawn: Any = whole._parameters[key]
    return lambda first, last: drawn.data[first:last]


def _stock(body: nn.Module) -> Any:
    """The transformers model, adapters or not."""
    return body.get_base_model() if lora.is_adapted(body) else body  # type: ignore[operator]


def _stored_weights(tower: Tower) -> dict[str, _Stored]:
    """The tensors of a tower's checkpoint by the names that the stock model has for them.

    Raises:
        MustBeLoadedWholeError, ContractError: see `require_streamable`.
    """
    folder, body = body_folder(tower.source), _stock(tower.body)
    names = set(body.state_dict())
    wanted = lora.stock_names(names) if lora.is_adapted(tower.body) else names
    found = _renamed(_files(Path(folder)), body, wanted, stock_model(folder).renamed)
    tied = set(getattr(body, "all_tied_weights_keys", None) or ())
    require_weights(wanted - found.keys() - tied, where=folder)
    return found


def _renamed(stored: dict[str, _Stored], body: Any, wanted: set[str], patterns: dict[str, str]) -> dict[str, _Stored]:
    """As transformers' own loading renames (old names, the prefix of a model with a head)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    changes = get_model_conversion_mapping(body, patterns)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    known: Any = dict.fromkeys(wanted, True)
    found: dict[str, _Stored] = {}
    for name, tensor in stored.items():
        renamed, converted = rename_source_key(name, renamings, converters, body.base_model_prefix, known)
        if converted is not None and renamed in wanted:
            raise MustBeLoadedWholeError(f"'{renamed}' is made of several tensors of its files")
        if renamed not in wanted:  # perhaps only the prefix is to be changed
            renamed, _ = rename_source_key(name, [], [], body.base_model_prefix, known)
        found[renamed] = tensor
    return found


def _files(folder: Path) -> dict[str, _Stored]:
    """Every tensor of a folder's weight files, none of them read."""
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if files:
        return {name: stored for file in files for name, stored in _safetensors(file).items()}
    found: dict[str, _Stored] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        for name, tensor in torch.load(file, map_location="cpu", mmap=True, weights_only=True).items():
            found[name] = _Stored(tuple(tensor.shape), functools.partial(_rows_of, tensor))
    return found


def _safetensors(file: Path) -> dict[str, _Stored]:
    from safetensors import safe_open

    opened = safe_open(file, framework="pt")
    found = {}
    for name in opened.keys():  # noqa: SIM118  # it is no mapping
        piece = opened.get_slice(name)
        found[name] = _Stored(tuple(piece.get_shape()), functools.partial(_rows_of, piece))
    return found


def _rows_of(tensor: Any, first: int, last: int) -> Tensor:
    shape = tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape
    rows: Tensor = tensor[first:last] if len(shape) else tensor[...]
    return rows


def _check(encoder: BiEncoder, role: str, device: torch.device) -> None:
    """What `backbones.load_body` checks on a whole model; runs of a sharded one must go through the bi-encoder."""
    tower = encoder.tower(role)
    stock, contract = _stock(tower.body), tower.contract

    def states(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hook = stock.register_forward_hook(lambda module, given, out: kept.append(out[0]))
        try:
            with torch.no_grad():
                encoder(_Texts(ids_BT.to(device), mask_BT.long().to(device)), role)
        finally:
            hook.remove()
        return kept[0].cpu()

    if contract.attention == "bidirectional":
        texts_BT = probe_texts(stock)
        require_both_ways(states(texts_BT, torch.ones_like(texts_BT)), stock, tower.source)
    if tower.to_unpad:
        causal = contract.attention == "causal"
        try:
            unpadded.use(stock, causal=causal, max_length=tower.to_unpad, states=states)
        except PackedUnsupportedError as error:
            raise ConfigError(f"this model cannot: {error}", where="attention=unpadded", fix="Use sdpa") from error


@dataclass(frozen=True)
class _Texts:
    input_ids: Tensor
    attention_mask: Tensor
