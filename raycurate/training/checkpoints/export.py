"""A trained bi-encoder as files that stock transformers, sentence-transformers and this project's encoders read.

The weights arrive as a stream of named tensors and leave as shards, so that a model larger than this machine's
memory can pass through. All is written to a local staging folder and checked there: the contract
read back from the files must be the model's own. Only then does it get its name: a local folder by one rename; on an
object store file by file, those without which nothing takes the folder for a model last.

    config.json, model*.safetensors, tokenizer files          transformers
    modules.json, 1_Pooling/, 2_Dense/, ...                   sentence-transformers
    contract.json                                             what vectors of it will be compared by
    adapter/                                                  LoRA: the adapter in PEFT's format; the rest is merged
    query/, document/                                         separate encoders: all this in each, a Router above
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raycurate.core import storage
from raycurate.core.errors import ContractError, InputError, OutputExistsError
from raycurate.models.checkpoint import TOKENIZER_FILES, adapter_base, body_folder, lowercases, truncation_side
from raycurate.models.contract import EmbeddingContract
from raycurate.models.sentence_transformers_files import dense_names, write_json, write_modules, write_router
from raycurate.training.checkpoints.tensor_files import ShardWriter
from raycurate.training.model.bi_encoder import BiEncoder, Tower
from raycurate.training.model.lora import adapter_config, is_adapted, merged, options_of, stock_names

ADAPTER = "adapter"
_LAST = ("modules.json", "config.json")  # without them no reader takes a folder for a model


def export_checkpoint(
    model: BiEncoder,
    folder: str,
    *,
    state: Iterable[tuple[str, Tensor]] | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 2 * 2**30,
    overwrite: bool = False,
    staging: str | None = None,
) -> dict[str, EmbeddingContract]:
    """Write `model` to `folder` (local or an object store's).

    Args:
        state: the weights, whole tensors named and ordered as in `model.state_dict()`; the model's own by
            default. It is read once and no more than one shard is held, so a sharded model can be gathered tensor by
            tensor.
        dtype: of the written weights; as they come by default.
        shard_bytes: largest size of a weight file, unless one tensor is larger.
        staging: a local folder for the files until they are whole; beside `folder`, or the temporary folder
            when that is remote, by default.

    Returns:
        The contracts of what was written, with its own weights' hash: under "shared", or "query" and "document".

    Raises:
        OutputExistsError: `folder` holds a model already.
        ContractError: the files would not say what the model is; nothing appears at `folder`.
        ValueError: `state` is not this model's.
    """
    folder = storage.normalise(folder)
    _check_free(folder, overwrite=overwrite)
    with _staged(folder, staging) as stage:
        places = {name: stage / name if model.separate else stage for name in model.towers}
        towers: dict[str, Any] = dict(model.towers.items())
        writers = {name: ShardWriter(place, dtype=dtype, shard_bytes=shard_bytes) for name, place in places.items()}
        _write_weights(towers, places, writers, model.state_dict().items() if state is None else state)
        for name, tower in towers.items():
            _write_settings(tower, places[name], writers[name].dtype)
        contracts = {name: _read_back(tower, places[name]) for name, tower in towers.items()}
        if model.separate:
            write_router(stage, contracts)
        _publish(stage, folder)
    return contracts


def _write_weights(
    towers: dict[str, Tower],
    places: dict[str, Path],
    writers: dict[str, ShardWriter],
    state: Iterable[tuple[str, Tensor]],
) -> None:
    heads: dict[str, dict[str, Tensor]] = {name: {} for name in towers}
    adapters: dict[str, dict[str, Tensor]] = {name: {} for name in towers}
    for (name, part), group in itertools.groupby(state, key=lambda item: _place(item[0], towers)):
        tensors: Iterator[tuple[str, Tensor]] = ((full.split(".", 3)[3], tensor) for full, tensor in group)
        if part == "heads":
            heads[name] |= {key: tensor.detach().cpu() for key, tensor in tensors}
            continue
        body = towers[name].body
        if is_adapted(body):
            tensors = merged(tensors, options_of(body), adapters[name])
        tied = _tied(body)
        for key, tensor in tensors:
            if key not in tied:
                writers[name].add(key, tensor)
    for name, tower in towers.items():
        _check_whole(tower, writers[name].names, set(heads[name]))
        writers[name].close()
        _write_heads(tower, places[name], heads[name], writers[name].dtype)
        if is_adapted(tower.body):
            _write_adapter(tower.body, places[name] / ADAPTER, adapters[name])


def _place(full: str, towers: dict[str, Tower]) -> tuple[str, str]:
    """(tower, "body" or "heads") of a name in the bi-encoder's state dict."""
    parts = full.split(".", 3)
    if len(parts) < 4 or parts[0] != "towers" or parts[1] not in towers or parts[2] not in ("body", "heads"):
        raise ValueError(f"'{full}' is no tensor of this model")
    return parts[1], parts[2]


def _stock(body: nn.Module) -> Any:
    """The transformers model itself, adapters or not."""
    return body.get_base_model() if is_adapted(body) else body  # type: ignore[operator]


def _tied(body: nn.Module) -> set[str]:
    """Names of weights that are another one's under a second name, which is not written."""
    return set(getattr(_stock(body), "all_tied_weights_keys", None) or ())


def _check_whole(tower: Tower, written: set[str], heads: set[str]) -> None:
    names = _names(tower.body)
    expected = (stock_names(names) if is_adapted(tower.body) else names) - _tied(tower.body)
    wrong = sorted((expected ^ written) | (_names(tower.heads) ^ heads))
    if wrong:
        raise ValueError(f"the stream of weights differs from the model in {len(wrong)} names: {', '.join(wrong[:5])}")


def _names(module: nn.Module) -> set[str]:
    """The names in its state dict. FSDP2 frees gathered weights when it is asked for a state dict, which an export
    beside the training must not bring about."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for prefix, part in module.named_modules(remove_duplicate=False):
        kept = part._buffers.keys() - part._non_persistent_buffers_set
        names |= {f"{prefix}.{name}" if prefix else name for name in kept}
    return names


def _write_heads(tower: Tower, place: Path, heads: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    from safetensors.torch import save_file

    for i, name in enumerate(dense_names(tower.contract)):
        (place / name).mkdir(parents=True)
        linear = {k: heads[f"{2 * i}.{k}"] for k in ("weight", "bias") if f"{2 * i}.{k}" in heads}
        save_file(
            {f"linear.{k}": tensor.to(dtype or tensor.dtype).contiguous() for k, tensor in linear.items()},
            place / name / "model.safetensors",
            metadata={"format": "pt"},
        )


def _write_adapter(body: nn.Module, place: Path, adapter: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    place.mkdir(parents=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.items()}
    save_file(whole, place / "adapter_model.safetensors", metadata={"format": "pt"})
    (place / "adapter_config.json").write_text(adapter_config(body), encoding="utf-8")


def _write_settings(tower: Tower, place: Path, dtype: torch.dtype | None) -> None:
    """All that is not weights: config.json, the tokenizer, sentence-transformers' files."""
    contract, stock = tower.contract, _stock(tower.body)
    config = copy.deepcopy(stock.config)
    config.architectures = [type(stock).__name__]
    config.dtype = dtype
    for name, value in (
        ("auto_map", None),  # it would send a reader to remote code
        ("pooling", "multi_vector" if contract.pooling == "multi_vector" else None),
        ("matryoshka_dimensions", list(contract.matryoshka_dims) or None),
    ):
        if value is not None:
            setattr(config, name, value)
        elif hasattr(config, name):
            delattr(config, name)
    config.save_pretrained(place)
    _write_tokenizer(tower.source, place)
    width = contract.modules[0].in_features if contract.modules else contract.dimension
    write_modules(place, contract, width, lowercase=lowercases(tower.source))


def _write_tokenizer(source: str, place: Path) -> None:
    """The checkpoint's own files byte for byte, but for a padding token where it had none."""
    from transformers import AutoTokenizer

    body = body_folder(source)
    folders = [Path(body), Path(source), *([Path(base)] if (base := adapter_base(body)) else [])]
    listed = ([folder / name for name in TOKENIZER_FILES if (folder / name).is_file()] for folder in folders)
    files = next((files for files in listed if files), [])  # of the folder that the contract's hash is over
    if not files:
        raise InputError("this model has no tokenizer files", where=source)
    for file in files:
        shutil.copyfile(file, place / file.name)
    path = place / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    changes = {}
    if (side := truncation_side(source)) != values.get("truncation_side", "right"):
        changes["truncation_side"] = side  # which the source says in a file of sentence-transformers
    tokenizer = AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:
        # sentence-transformers pads every batch. Which token stands at padding changes nothing, since it is masked.
        token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if token is None:
            raise InputError("its tokenizer has no special token that could stand for padding", where=source)
        changes["pad_token"] = str(token)
    if changes:
        write_json(path, values | changes)


def _read_back(tower: Tower, place: Path) -> EmbeddingContract:
    """The contract of the written files, with contract.json beside them.

    Raises:
        ContractError: it is not the model's, weights and padding token aside.
    """
    wanted = tower.contract
    found = EmbeddingContract.from_checkpoint(str(place), document_template=wanted.document_template)
    differences = {k: v for k, v in wanted.differences(found).items() if k not in ("weights", "tokenizer")}
    if differences:
        raise ContractError(f"the exported files say something else than the model: {differences}", where=str(place))
    (place / "contract.json").write_text(found.to_json(), encoding="utf-8")
    return found


def _check_free(folder: str, *, overwrite: bool) -> None:
    """Refuse a folder that holds something; what an interrupted upload left there is no model and may go."""
    if overwrite or not storage.exists(folder):
        return
    places = [storage.join(folder, *path) for name in _LAST for path in ((name,), ("query", name), ("document", name))]
    if not storage.is_remote(folder) or any(storage.exists(path) for path in places):
        raise OutputExistsError(
            "there is something already", where=folder, fix="Name another folder, or say overwrite=true"
        )


@contextmanager
def _staged(folder: str, staging: str | None) -> Iterator[Path]:
    if staging is None and not storage.is_remote(folder):
        staging = str(Path(folder).parent)
        storage.make_dir(staging)
    stage = Path(staging or tempfile.gettempdir()) / f".tmp-{uuid.uuid4().hex}-export"
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, folder: str) -> None:
    """Give the staged files their name; what was there is deleted."""
    if storage.exists(folder):
        storage.delete(folder)
    files = [path for path in stage.rglob("*") if path.is_file()]
    found, inner = storage.filesystem(folder)
    if not storage.is_remote(folder) and stage.stat().st_dev == Path(folder).parent.stat().st_dev:
        for path in files:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        found.move(str(stage), inner)
        return
    # Deeper folders first, so that a model's own two come when all that they speak of is there.
    for path in sorted(files, key=lambda p: (p.name in _LAST, -len(p.parts), p)):
        target = storage.join(folder, *path.relative_to(stage).parts)
        if path.name in _LAST:  # they appear with all their bytes or not at all
            storage.write_bytes(target, path.read_bytes())
        else:
            storage.copy_file(str(path), target)
