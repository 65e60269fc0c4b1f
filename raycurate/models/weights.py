"""What a model's weight files hold, by their headers alone, and whether it fits config.json.

A safetensors file begins with the names and shapes of its tensors, so that a file that was cut short or belongs to
another model is found on the driver in milliseconds, and not in every actor after a minute.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from raycurate.core.errors import InputError
from raycurate.models.modules import read_json

_INDEX = "model.safetensors.index.json"
_AGAIN = "Download the model again"
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_POSITIONS = re.compile(r"(?:^|\.)(?:position_embeddings|wpe|embed_positions)\.weight$")
_NOT_TEXT = re.compile(r"vision|visual|audio|image|decoder\.")
# Tensors whose shape config.json fixes: pattern -> names of the keys for each dimension, any one of them.
_WIDTH = ("hidden_size", "d_model", "dim", "n_embd", "embedding_size")
_FIXED = {
    r"(?:word_embeddings|embed_tokens|tok_embeddings|wte|shared)\.weight$": (("vocab_size",), _WIDTH),
    r"layers?\.\d+\.intermediate\.dense\.weight$": (("intermediate_size",), ("hidden_size",)),
    r"layers\.\d+\.mlp\.(?:gate_proj|up_proj)\.weight$": (("intermediate_size",), ("hidden_size",)),
}
_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """The files with weights in a folder: safetensors, or where there are none PyTorch's."""
    found = sorted(folder.glob("*.safetensors"))
    return found or sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("adapter_model.bin")])


def read_shapes(folder: Path) -> Shapes | None:
    """Names and shapes of the tensors in a folder; None where they are in PyTorch's format, or there are none.

    Raises:
        InputError: a file is cut short or is none of its format; a part that the index lists is missing.
    """
    files = weight_files(folder)
    listed = read_json(folder / _INDEX).get("weight_map", {})
    if not isinstance(listed, dict):
        raise InputError("weight_map is no mapping", where=str(folder / _INDEX), fix=_AGAIN)
    if not (folder / "model.safetensors").is_file():
        for name in sorted(set(map(str, listed.values()))):
            if not (folder / name).is_file():
                raise InputError(f"{_INDEX} lists this file, and it is missing", where=str(folder / name), fix=_AGAIN)
    shapes: Shapes = {}
    for file in files:
        if file.suffix == ".safetensors":
            shapes |= _header(file)
        else:
            _check_archive(file)
    return shapes or None


def _header(file: Path) -> Shapes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if first == b"version ":
            raise InputError("this is a pointer of Git LFS, not the file", where=str(file), fix="Run: git lfs pull")
        if size < 8 or length > size - 8:
            raise InputError(f"it is no safetensors file, or cut short at {size:,} bytes", where=str(file), fix=_AGAIN)
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise InputError("its header is not that of a safetensors file", where=str(file), fix=_AGAIN) from None
    if size != 8 + length + end:
        expected = 8 + length + end
        raise InputError(f"it has {size:,} bytes where its header says {expected:,}", where=str(file), fix=_AGAIN)
    return shapes


def _check_archive(file: Path) -> None:
    """PyTorch's files are zip archives, whose table stands at the end; those of before version 1.6 are not."""
    with file.open("rb") as stream:
        archive = stream.read(2) == b"PK"
    if file.stat().st_size == 0 or (archive and not zipfile.is_zipfile(file)):
        raise InputError(f"it is cut short at {file.stat().st_size:,} bytes", where=str(file), fix=_AGAIN)


def check_shapes(shapes: Shapes, config: dict[str, Any], folder: Path) -> None:
    """Refuse weights that are not of the model that config.json describes.

    Raises:
        InputError: a tensor has another shape, or layers are missing; the message names it and both sizes.
    """
    if config.get("quantization_config"):
        return  # packed weights have shapes of their own
    text = config.get("text_config") or config
    for name, shape in shapes.items():
        if _NOT_TEXT.search(name):
            continue
        for pattern, dimensions in _FIXED.items():
            if re.search(pattern, name) and len(shape) == len(dimensions):
                _compare(name, shape, [{k: text[k] for k in keys if k in text} for keys in dimensions], folder)
    depth = next((text[k] for k in _DEPTH if isinstance(text.get(k), int)), None)
    numbers = {int(found[1]) for found in map(_LAYER.search, shapes) if found}
    if depth and numbers and len(numbers) < depth:
        raise InputError(
            f"the weights have {len(numbers)} layers where config.json says {depth}", where=str(folder), fix=_AGAIN
        )


def _compare(name: str, shape: tuple[int, ...], expected: list[dict[str, Any]], folder: Path) -> None:
    for size, keys in zip(shape, expected, strict=True):
        if keys and size not in keys.values():
            said = " and ".join(f"{key}={value}" for key, value in keys.items())
            raise InputError(
                f"the weight {name} has the shape {list(shape)} where config.json says {said}",
                where=str(folder),
                fix=_AGAIN,
            )


def check_head(folder: Path, in_features: int, out_features: int) -> None:
    """Refuse a Dense layer's weights of another shape than its configuration's.

    Raises:
        InputError: they are missing, broken or of another shape.
    """
    if not weight_files(folder):
        raise InputError("this Dense layer has no weights", where=str(folder), fix=_AGAIN)
    shape = (read_shapes(folder) or {}).get("linear.weight", (out_features, in_features))
    if shape != (out_features, in_features):
        raise InputError(
            f"linear.weight has the shape {list(shape)} where config.json says {[out_features, in_features]}",
            where=str(folder),
            fix=_AGAIN,
        )


def position_rows(shapes: Shapes) -> int | None:
    """Rows of the table of position embeddings; None where the model has none."""
    return next((s[0] for n, s in shapes.items() if _POSITIONS.search(n) and not _NOT_TEXT.search(n)), None)
