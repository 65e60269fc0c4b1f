"""Named tensors to safetensors files, as they come: no more than one file's worth of them is in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STEM = "model"
_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class ShardWriter:
    """Writes tensors to `folder` as transformers names them: one model.safetensors, or numbered ones and an index.

    Args:
        dtype: floating-point tensors are cast to it; None keeps their own.
        shard_bytes: a file is begun anew when the next tensor would make it larger than this.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype | None = None, shard_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.names: set[str] = set()
        self.dtype: torch.dtype | None = None
        """Of the first floating-point tensor written."""
        self._folder = folder
        self._cast = dtype
        self._limit = shard_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take a whole tensor, on any device; a copy is kept until its file is written.

        Raises:
            ValueError: a name for the second time.
        """
        if name in self.names:
            raise ValueError(f"'{name}' came twice")
        self.names.add(name)
        wanted = self._cast if self._cast is not None and tensor.is_floating_point() else tensor.dtype
        if tensor.is_floating_point() and self.dtype is None:
            self.dtype = wanted
        size = tensor.numel() * wanted.itemsize
        if self._held and self._held_bytes + size > self._limit:
            self._flush()
        self._held[name] = tensor.detach().to("cpu", wanted, copy=True).contiguous()
        self._held_bytes += size

    def close(self) -> None:
        """Write what is left, and the index if there are several files."""
        self._flush()
        if len(self._shards) == 1:
            self._file(0).rename(self._folder / f"{STEM}.safetensors")
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"{STEM}-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"
            self._file(number).rename(self._folder / final)
            where |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(where.items()))}
        (self._folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _file(self, number: int) -> Path:
        return self._folder / f".{STEM}-{number:05d}.part"

    def _flush(self) -> None:
        if not self._held:
            return
        _write(self._held, self._file(len(self._shards)))
        self._shards.append(list(self._held))
        self._total_bytes += self._held_bytes
        self._held, self._held_bytes = {}, 0


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file straight from the tensors' own memory, of which the library's writer makes a copy.

    The format: the header's length in 8 bytes (little-endian), the header as JSON (padded with spaces to a multiple of
    8), then the bytes of the tensors without gaps (https://huggingface.co/docs/safetensors).

    Raises:
        ValueError: a kind of number that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):  # so that all are aligned
        if tensor.dtype not in _KINDS:
            raise ValueError(f"'{name}' is of {tensor.dtype}, which safetensors files do not have")
        span = [place, place + tensor.nbytes]
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        place = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in list(header)[1:]:
            out.write(tensors[name].flatten().view(torch.uint8).numpy().data)
