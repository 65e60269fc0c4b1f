"""A training's state on disk, sharded, through torch.distributed.checkpoint: stop anywhere, go on anywhere.

What must be kept is little: the trained weights, AdamW's two moments, and the number of steps done. The order of the
questions, the learning rate and the random numbers of a step are functions of seed, step and rank (order.py,
optimise.py, loop.py), so a run that stopped goes on bit by bit, and one with another number of ranks at the same place.

Frozen weights are not written: they are the model's that the training started from.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.training.collectives import world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from raycurate.training.checkpoints.state_reader import StateReader

FILE = "progress.json"
STATE_VERSION = 1
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """Where a training stands: optimiser steps done, and what early stopping remembers.

    identity: what must be equal in the run that goes on from here, by name (seed, global batch, ...).
    """

    step: int = 0
    best: float | None = None
    worse: int = 0
    stopped_early: bool = False
    identity: dict[str, Any] = field(default_factory=dict)


def save(folder: str, tensors: Mapping[str, Tensor], progress: Progress, group: ProcessGroup | None = None) -> None:
    """Write this rank's part into `folder`, which is local; every rank calls it, each with a folder of its own or all
    with one. The parts of all ranks, in one folder, are the checkpoint.

    Args:
        tensors: as `tensors` gives them, or copies of those.
        group: what the ranks agree by on who writes what; all ranks' by default.

    Raises:
        CheckpointException: it cannot be written (no space, no permission), with the error of each rank.
    """
    import torch.distributed.checkpoint as dcp

    Path(folder).mkdir(parents=True, exist_ok=True)
    writer, alone = dcp.FileSystemWriter(folder), world()[1] == 1
    with _alone_without_a_warning():
        dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=alone)
    if world()[0] == 0:
        written = asdict(progress) | {"version": STATE_VERSION, "ranks": world()[1]}
        storage.write_text(storage.join(folder, FILE), json.dumps(written, indent=2))


def load(folder: str, model: nn.Module, optimizer: torch.optim.AdamW, identity: dict[str, Any]) -> Progress:
    """Put what `save` wrote into `model` and `optimizer`, which may lie on another number of ranks, wrapped otherwise.

    Args:
        identity: of this run; compared with the saved one before anything is loaded.

    Raises:
        InputError: there is no whole state, or it is another training's; it names what differs.
    """
    import torch.distributed.checkpoint as dcp

    from raycurate.training.checkpoints.state_reader import StateReader

    found = read_progress(folder)
    differing = {k: (v, identity.get(k)) for k, v in found.identity.items() if v != identity.get(k)}
    if differing:
        said = ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in differing.items())
        raise InputError(f"this is the state of another training: {said}", where=folder, fix="Set resume=never")
    wanted = tensors(model, optimizer, found.step, fresh=True)
    reader = StateReader(folder)
    missing = sorted(set(wanted) - set(_names(reader, folder)))
    if missing:
        raise InputError(
            f"this state lacks {len(missing)} tensors of the model: {', '.join(missing[:3])}",
            where=folder,
            fix="It was saved from another model or other adapters; set resume=never",
        )
    try:
        with _alone_without_a_warning():
            dcp.load(wanted, storage_reader=reader, no_dist=world()[1] == 1)
    except (dcp.api.CheckpointException, RuntimeError, ValueError, OSError) as error:
        raise InputError(f"this state cannot be loaded ({error})", where=folder, fix="Set resume=never") from error
    for param in _trained(model).values():  # a tensor subclass is loaded in place, and so seen by the model
        state = optimizer.state.get(param)
        if state:
            state["step"].fill_(float(found.step))
    return found


def read_progress(folder: str) -> Progress:
    """Where the training of a saved state stands.

    Raises:
        InputError: there is none, or of another version.
    """
    path = storage.join(folder, FILE)
    if not storage.exists(path):
        raise InputError("there is no training state", where=folder, fix="Name a checkpoint folder, or resume=never")
    try:
        values = json.loads(storage.read_text(path))
        version = values.pop("version", None)
        values.pop("ranks", None)
        if version == STATE_VERSION:
            return Progress(**values)
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"this is no record of a training's state ({error})", where=path) from error
    raise InputError(f"this training state is of version {version}, not {STATE_VERSION}", where=path)


def _names(reader: StateReader, folder: str) -> set[str]:
    from raycurate.training.checkpoints.state_reader import UnsafeStateError

    try:
        return set(reader.read_metadata().state_dict_metadata)
    except UnsafeStateError as error:
        raise InputError(
            f"this state was not written by a training: {error}",
            where=storage.join(folder, ".metadata"),
            fix="Nothing of it was run. Name another checkpoint, or set resume=never",
        ) from error
    except (OSError, EOFError) as error:
        raise InputError(f"this state is not whole ({error})", where=folder, fix="Name another checkpoint") from error


@contextmanager
def _alone_without_a_warning() -> Iterator[None]:
    """That one process saves or loads by itself is meant so, and torch would say it each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by their names in the bi-encoder, whatever it is wrapped in."""
    named = model.named_parameters()
    return {name.removeprefix("module."): parameter for name, parameter in named if parameter.requires_grad}


def tensors(model: nn.Module, optimizer: torch.optim.AdamW, step: int, *, fresh: bool = False) -> dict[str, Tensor]:
    """The trained weights and their moments by name, as they lie on this rank.

    Args:
        step: steps done; before the first there are no moments.
        fresh: give the optimiser moments to load into.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in _trained(model).items():
        named[f"model.{name}"] = parameter.detach()
        if not step:
            continue
        if fresh:
            on = parameter.device if optimizer.defaults["fused"] else torch.device("cpu")
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in _MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(0.0, device=on), **moments}
        for key in _MOMENTS:
            named[f"optimizer.{key}.{name}"] = optimizer.state[parameter][key]
    return named
