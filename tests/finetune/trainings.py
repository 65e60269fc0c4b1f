"""Trainings of tiny models in this process and in two Gloo processes, and what they leave behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raycurate.training.batches.prepared import Prepared
from raycurate.training.checkpoints.writer import Beside
from raycurate.training.checkpoints.writing import Interim, Saved, Write
from raycurate.training.collectives import world
from raycurate.training.loop import Trained, train
from raycurate.training.loss.objective import Objective
from raycurate.training.model.bi_encoder import BiEncoder, load_bi_encoder
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.model.parallelize import parallelize
from raycurate.training.options import TrainOptions
from raycurate.training.plan import plan_training
from raycurate.training.step import Stepper
from tests.finetune.families import save_family

COMMON: dict[str, Any] = {
    "num_epochs": 2, "learning_rate": 3e-4, "global_batch_size": 16, "temperature": 0.1, "seed": 3, "warmup_steps": 1,
    "precision": "float32",  # the same numbers on every processor
}  # fmt: skip


@dataclass
class Diary:
    """A Reporter that keeps what it is told, and checkpoints in `folder` (none without).

    urgent_after: steps after which a checkpoint is asked for out of turn.
    """

    folder: Path | None = None
    logs: list[dict[str, float]] = field(default_factory=list)
    saves: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    beside: Beside | None = None
    urgent_after: int | None = None

    def log(self, metrics: dict[str, float]) -> None:
        self.logs.append(metrics)

    def save(self, saved: Saved, write: Write) -> None:
        self.saves.append((saved.epoch, saved.step, saved.metrics))
        if self.folder is None:
            return
        place = str(self.folder / saved.name)
        if self.beside is None:
            write(place)
        else:
            self.beside.start(lambda: write(place))

    def settle(self) -> None:
        if self.beside is not None:
            self.beside.settle()

    def after_step(self) -> Interim:
        return Interim.AT_ONCE if len(self.logs) == self.urgent_after else Interim.NO


def save_as_tensors(_: BiEncoder, folder: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """An export that a test can read back at once."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone() for name, tensor in tensors}, Path(folder) / "tensors.pt")


def save_poisoned(folder: Path) -> str:
    """A BERT whose vector of the unknown word (token 3) is no number."""
    from safetensors.torch import load_file, save_file

    path = save_family(folder, "bert")
    file = Path(path) / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.word_embeddings.weight"][3] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    return path


def weights_in(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint / "model" / "consolidated" / "tensors.pt")


@dataclass(frozen=True)
class Case:
    """A training: a model's folder, where its checkpoints go, and what differs from COMMON."""

    model: str
    data: Prepared
    folder: Path | None = None
    resume_from: Path | None = None
    dropout: float | None = 0.0
    lora: LoraOptions | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def train_options(self) -> TrainOptions:
        return TrainOptions(**COMMON | self.options)


def run(case: Case, diary: Diary | None = None, **more: Any) -> Trained:
    """The training, in every rank that calls it."""
    return train(
        case.model,
        ModelOptions(dropout=case.dropout, normalize=True),
        case.data,
        case.train_options,
        diary or Diary(case.folder),
        lora=case.lora,
        resume_from=None if case.resume_from is None else str(case.resume_from),
        export=save_as_tensors,
        **more,
    )


def gradients(case: Case) -> dict[str, Tensor]:
    """Of the first step, whole, before clipping; every rank must call it."""
    rank, ranks = world()
    options = case.train_options
    plan = plan_training(case.data, options, rank=rank, ranks=ranks)
    encoder = load_bi_encoder(case.model, ModelOptions(dropout=case.dropout, normalize=True))
    parallel = parallelize(encoder, options, torch.device("cpu"))
    stepper = Stepper(parallel, Objective(options, normalised=encoder.contract.normalize), options, plan)
    for batch in plan.feed.batches(0, 1):
        stepper.micro_step(batch)
    whole = {}
    for name, parameter in encoder.named_parameters():
        gradient: Any = parameter.grad
        if gradient is not None:
            whole[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, as a fraction of the longest tensor's largest value."""
    assert one.keys() == other.keys()
    size = max(float(t.abs().max()) for t in other.values())
    return max(float((one[name] - other[name]).abs().max()) for name in other) / size


def norm_of(gradients_by_name: dict[str, Tensor]) -> float:
    return float(sum(t.double().square().sum() for t in gradients_by_name.values()) ** 0.5)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on many threads, and much slower where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
