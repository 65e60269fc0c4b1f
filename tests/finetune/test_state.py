"""The training state: it comes back as it was, for the training that it is of."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycurate.core.errors import InputError
from raycurate.training.checkpoints import state
from raycurate.training.checkpoints.state import Progress

IDENTITY = {"seed": 1, "global_batch_size": 8}


def small(width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 2).requires_grad_(False))


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)


def steps(model: nn.Module, optimizer: torch.optim.AdamW, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        model(torch.full((2, 4), float(step))).square().sum().backward()
        optimizer.step()


def test_going_on_from_a_state_is_as_if_nothing_had_been(tmp_path: Path):
    through, first, second = small(), small(), small()
    steps(through, optimizer_of(through), 0, 6)
    optimizer = optimizer_of(first)
    steps(first, optimizer, 0, 3)
    kept = Progress(3, best=0.5, worse=1, identity=IDENTITY)
    state.save(str(tmp_path), state.tensors(first, optimizer, 3), kept)
    with torch.no_grad():
        second[0].weight.fill_(7)  # type: ignore[operator]
    optimizer = optimizer_of(second)
    assert state.load(str(tmp_path), second, optimizer, IDENTITY) == kept
    steps(second, optimizer, 3, 6)
    for one, other in zip(second.parameters(), through.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_before_the_first_step(tmp_path: Path):
    model = small()
    state.save(str(tmp_path), state.tensors(model, optimizer_of(model), 0), Progress(identity=IDENTITY))
    again = small()
    optimizer = optimizer_of(again)
    assert state.load(str(tmp_path), again, optimizer, IDENTITY).step == 0
    assert not optimizer.state


def test_frozen_weights_are_not_written(tmp_path: Path):
    from torch.distributed.checkpoint import FileSystemReader

    model = small()
    optimizer = optimizer_of(model)
    steps(model, optimizer, 0, 1)
    state.save(str(tmp_path), state.tensors(model, optimizer, 1), Progress(1))
    names = FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    parts = ("0.weight", "0.bias", "1.weight", "1.bias")
    kinds = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    assert set(names) == {f"{kind}.{part}" for kind in kinds for part in parts}


def test_what_cannot_be_gone_on_from(tmp_path: Path):
    model = small()
    optimizer = optimizer_of(model)
    with pytest.raises(InputError, match="there is no training state"):
        state.load(str(tmp_path / "none"), model, optimizer, IDENTITY)
    folder = str(tmp_path / "there")
    state.save(folder, state.tensors(model, optimizer, 0), Progress(identity=IDENTITY))
    with pytest.raises(InputError, match="another training: seed was 1 and is 2"):
        state.load(folder, model, optimizer, IDENTITY | {"seed": 2})
    other = nn.Sequential(*small(), nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"lacks 2 tensors of the model: model\.3\.bias, model\.3\.weight"):
        state.load(folder, other, optimizer_of(other), IDENTITY)
    wide = small(5)
    with pytest.raises(InputError, match="cannot be loaded"):
        state.load(folder, wide, optimizer_of(wide), IDENTITY)
    (Path(folder) / ".metadata").unlink()
    with pytest.raises(InputError, match="not whole"):
        state.load(folder, model, optimizer, IDENTITY)


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def trapped(kind: str, metadata: Any, sprung: Path) -> Any:
    """What `.metadata` holds, so changed that a plain unpickler, or torch's planner, runs the trap."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    name, place = next(iter(metadata.storage_data.items()))
    if kind == "instead of the list":
        return Trap(sprung)
    if kind == "in the list":
        metadata.planner_data = {"x": Trap(sprung)}
    elif kind == "a tensor said to be bytes":
        metadata.state_dict_metadata[name.fqn] = BytesStorageMetadata()
    elif kind == "a file elsewhere":
        metadata.storage_data[name] = replace(place, relative_path="../elsewhere.distcp")
    elif kind == "no list":
        return ["a", "b"]
    return metadata


@pytest.mark.parametrize(
    "kind", ["instead of the list", "in the list", "a tensor said to be bytes", "a file elsewhere", "no list"]
)
def test_nothing_in_a_list_of_tensors_is_run(kind: str, tmp_path: Path):
    model, folder, sprung = small(), tmp_path / "state", tmp_path / "sprung"
    state.save(str(folder), state.tensors(model, optimizer_of(model), 0), Progress(identity=IDENTITY))
    listed = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(trapped(kind, listed, sprung)))
    with pytest.raises(InputError, match=r"not written by a training.*Nothing of it was run"):
        state.load(str(folder), model, optimizer_of(model), IDENTITY)
    assert not sprung.exists()


@pytest.mark.parametrize("function", ["eval", "exec", "getattr", "__import__"])
def test_no_function_can_be_named(function: str, tmp_path: Path):
    from raycurate.training.checkpoints.state_reader import StateReader, UnsafeStateError

    (tmp_path / ".metadata").write_bytes(f"cbuiltins\n{function}\n.".encode())
    with pytest.raises(UnsafeStateError, match=f"it names builtins.{function}"):
        StateReader(str(tmp_path)).read_metadata()
    for module, name in (("torch.hub", "load"), ("torch", "load"), ("torch.distributed.checkpoint.metadata", "os")):
        (tmp_path / ".metadata").write_bytes(f"c{module}\n{name}\n.".encode())
        with pytest.raises(UnsafeStateError, match=f"it names {module}.{name}"):
            StateReader(str(tmp_path)).read_metadata()


def test_nothing_in_a_file_of_tensors_is_run(tmp_path: Path):
    model, folder, sprung = small(), tmp_path / "state", tmp_path / "sprung"
    state.save(str(folder), state.tensors(model, optimizer_of(model), 0), Progress(identity=IDENTITY))
    file = folder / "__0_0.distcp"
    poisoned = io.BytesIO()
    torch.save(Trap(sprung), poisoned)
    file.write_bytes(poisoned.getvalue().ljust(file.stat().st_size, b"\0"))
    listed = pickle.loads((folder / ".metadata").read_bytes())
    whole = {name: replace(place, offset=0, length=len(poisoned.getvalue())) for name, place in
             listed.storage_data.items()}  # fmt: skip
    listed.storage_data = whole
    (folder / ".metadata").write_bytes(pickle.dumps(listed))
    with pytest.raises(InputError, match="cannot be loaded"):
        state.load(str(folder), model, optimizer_of(model), IDENTITY)
    assert not sprung.exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 1, "steps": 3}', '{"version": 2}'])
def test_a_record_of_progress_that_is_none_is_said(content: str, tmp_path: Path):
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(InputError, match=r"no record of a training's state|of version 2, not 1"):
        state.read_progress(str(tmp_path))
