"""The training loop: what every rank runs, from a checkpoint's folder to a trained model.

    trained = train(folder, ModelOptions(), prepared, TrainOptions(), reporter)

It knows torch.distributed and not who started the ranks; what it has to say goes through a Reporter. A step is a
function of the weights, the optimiser's moments and its number: the batch, the learning rate and the random state all
follow from seed, step and rank. So to go on from a checkpoint is to begin at its step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raycurate.core import storage
from raycurate.core.errors import ConfigError
from raycurate.core.observe import get_logger
from raycurate.training import optimise
from raycurate.training.batches.batches import Batch, Place, prefetch
from raycurate.training.batches.prepared import Prepared
from raycurate.training.checkpoints import state
from raycurate.training.checkpoints.checkpoints import STATE
from raycurate.training.checkpoints.export import export_checkpoint
from raycurate.training.checkpoints.writer import Beside
from raycurate.training.checkpoints.writing import Contents, Export, Interim, Saved, Write
from raycurate.training.collectives import world
from raycurate.training.loss.objective import Objective
from raycurate.training.model.bi_encoder import BiEncoder
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.model.parallelize import Parallel, load_to_spread, parallelize
from raycurate.training.options import TrainOptions
from raycurate.training.plan import Plan, plan_training
from raycurate.training.speed import Speedometer
from raycurate.training.step import Stepper, Totals
from raycurate.training.validate import validate

_AHEAD = 4  # micro-steps that are collated before they are asked for

_log = get_logger(__name__)


class Reporter(Protocol):
    """What the loop tells the outside, and what it is told. All ranks call each method at the same places."""

    beside: Beside | None
    """The thread that writes checkpoints while the steps go on; None: they are written within the step."""

    def log(self, metrics: dict[str, float]) -> None:
        """Rank 0's numbers count (only memory and fraction of peak differ between ranks)."""

    def save(self, saved: Saved, write: Write) -> None:
        """Make a checkpoint. Each rank calls `write(folder)`, which puts its part into a local folder: of the training
        state (`state/`) and, rank 0 alone, the model (`model/consolidated/`); in the thread `beside`, if there is one.
        """

    def settle(self) -> None:
        """Wait until the last checkpoint is whole. Raises what went wrong with it."""

    def after_step(self) -> Interim:
        """Whether to make a checkpoint now, out of turn. Raises what went wrong with the last one."""


@dataclass(frozen=True)
class Trained:
    """step, epoch: done in all, and the epoch (from 0) that the last step was in. losses: of the steps of this run,
    each the mean over its global batch."""

    step: int
    epoch: int
    losses: list[float] = field(default_factory=list)
    stopped_early: bool = False


def export_weights(encoder: BiEncoder, folder: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """The model in Hugging Face format, in the precision of its parameters."""
    export_checkpoint(encoder, folder, state=tensors, overwrite=True)


def train(
    model_folder: str,
    model_options: ModelOptions,
    train_data: Prepared,
    options: TrainOptions,
    reporter: Reporter,
    *,
    lora: LoraOptions | None = None,
    val_data: Prepared | None = None,
    resume_from: str | None = None,
    device: torch.device | str = "cpu",
    export: Export = export_weights,
) -> Trained:
    """Train; runs in every rank once torch.distributed is initialised (one rank without it is fine too).

    Args:
        resume_from: a local folder that `write` of the reporter's `save` filled, with the parts of all ranks; they
            may have been another number.
        export: called by rank 0 within `write`, with the folder for the model.

    Returns:
        What was done. If the state of `resume_from` is at the end, nothing, and no checkpoint is made.

    Raises:
        ConfigError, ContractError, InputError: what is asked for cannot be.
        NotANumberError: the loss is NaN or infinite; the state before that step was saved.
    """
    if options.early_stopping is not None and val_data is None:
        raise ConfigError(
            f"early_stopping={options.early_stopping} needs validation data", fix="Name some, or leave it out"
        )
    device = _this_device(device)
    options = options.settled(cuda=device.type == "cuda")
    rank, ranks = world()
    plan = plan_training(train_data, options, rank=rank, ranks=ranks)
    torch.manual_seed(options.seed)  # the same adapters on every rank
    encoder = load_to_spread(model_folder, model_options, options, device, lora=lora)
    speed = Speedometer.of(encoder, device, options.precision)
    parallel = parallelize(encoder, options, device)
    optimizer = optimise.make_optimizer(parallel.model, options)
    progress = state.Progress(identity=plan.identity())
    if resume_from is not None:
        progress = state.load(storage.join(resume_from, STATE), parallel.model, optimizer, progress.identity)
    if rank == 0:
        _log.info("%s, %s ranks; steps %s to %s", parallel.reason, ranks, progress.step, plan.steps)
    objective = Objective(options, normalised=encoder.contract.normalize)
    stepper = Stepper(parallel, objective, options, plan)
    run = _Run(plan, options, parallel, optimizer, stepper, speed, reporter, export, val_data, progress)
    run.saved = None if resume_from is None else progress.step
    return run.to_the_end()


@dataclass
class _Run:
    """A training under way on this rank."""

    plan: Plan
    options: TrainOptions
    parallel: Parallel
    optimizer: torch.optim.AdamW
    stepper: Stepper
    speed: Speedometer
    reporter: Reporter
    export: Export
    val_data: Prepared | None
    progress: state.Progress
    saved: int | None = None  # step of the latest checkpoint
    losses: list[float] = field(default_factory=list)

    def to_the_end(self) -> Trained:
        self.parallel.model.train()
        self.speed.reset()
        for batch in self._batches():
            if batch.place.micro_step == 0:
                torch.manual_seed(step_seed(self.options.seed, self.progress.step, world()[0]))
            self.speed.see(batch)
            self.stepper.micro_step(batch.to(self.parallel.device))
            if batch.place.last:
                self._finish_step(batch.place)
                if self.progress.stopped_early:
                    break
        self.reporter.settle()
        step = self.progress.step
        epoch = max(step - 1, 0) // self.plan.steps_per_epoch
        return Trained(step, epoch, self.losses, self.progress.stopped_early)

    def _batches(self) -> Iterator[Batch]:
        if self.progress.stopped_early:
            return iter(())
        batches = self.plan.feed.batches(self.progress.step, self.plan.steps)
        if self.parallel.device.type == "cuda":
            batches = (batch.pin_memory() for batch in batches)
        return prefetch(batches, _AHEAD)

    def _finish_step(self, place: Place) -> None:
        """Move the weights, unless something is no number; then say, validate and save what is due."""
        totals = self.stepper.totals()
        if not np.isfinite(totals.loss):
            self._fail(place, totals, None)
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = optimise.clip_gradients(self.parallel.model.parameters(), self.options.max_grad_norm)
        if not np.isfinite(norm):
            self._fail(place, totals, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.stepper.clear()
        self.progress = replace(self.progress, step=self.progress.step + 1)
        self.losses.append(totals.loss)
        self.speed.done(totals.questions, totals.tokens)
        metrics = {"loss": totals.loss, "grad_norm": norm, "learning_rate": rate}
        self._say(place, metrics)
        self._validate_and_save(place, metrics)

    def _learning_rate(self) -> float:
        plan, step = self.plan, self.progress.step
        return optimise.learning_rate(self.options, step, steps=plan.steps, warmup_steps=plan.warmup)

    def _say(self, place: Place, metrics: dict[str, float]) -> None:
        step = self.progress.step
        if step % self.options.log_every_steps == 0 or step == self.plan.steps:
            self.reporter.log({"step": step, "epoch": place.epoch, **metrics, **self.speed.read()})

    def _validate_and_save(self, place: Place, metrics: dict[str, float]) -> None:
        interim = self.reporter.after_step()
        began = time.perf_counter()
        ends = self.progress.step == self.plan.steps
        last_of_epoch = place.step == self.plan.steps_per_epoch - 1
        save = ends or self._due(self.options.checkpoint_every_steps, last_of_epoch=last_of_epoch)
        found: dict[str, float] = {}
        if save or self._due(self.options.validate_every_steps, last_of_epoch=last_of_epoch):
            found = self._validate(place)
        if save or self.progress.stopped_early:
            self._save(place, metrics | found)
        elif interim:
            self._save(place, metrics, interim=True)
        if interim is Interim.AT_ONCE:
            self.reporter.settle()
        self.speed.skip(time.perf_counter() - began)

    def _due(self, every: int | None, *, last_of_epoch: bool) -> bool:
        return last_of_epoch if every is None else self.progress.step % every == 0

    def _validate(self, place: Place) -> dict[str, float]:
        """The validation's metrics, none without validation data; early stopping remembers them."""
        if self.val_data is None:
            return {}
        found = validate(self.parallel, self.val_data, self.options)
        self.reporter.log({"step": self.progress.step, "epoch": place.epoch, **found})
        best, mrr = self.progress.best, found["val_mrr"]
        worse = 0 if best is None or mrr > best else self.progress.worse + 1
        stop = self.options.early_stopping is not None and worse >= self.options.early_stopping
        best = mrr if best is None else max(best, mrr)
        self.progress = replace(self.progress, best=best, worse=worse, stopped_early=stop)
        return found

    def _save(self, place: Place, metrics: dict[str, float], *, interim: bool = False) -> None:
        self.reporter.settle()  # so that there is one copy at a time
        beside = self.reporter.beside
        contents = Contents.of(self.parallel, self.optimizer, self.progress, export=self.export, beside=beside)
        self.reporter.save(Saved(place.epoch, self.progress.step, metrics, interim), contents.write)
        self.saved = self.progress.step

    def _fail(self, place: Place, totals: Totals, norm: float | None) -> None:
        """Save the weights as they are before this step, and raise."""
        error = self.stepper.failure(totals, norm, f"step {self.progress.step + 1} (epoch {place.epoch})")
        self.optimizer.zero_grad(set_to_none=True)
        if self.progress.step != self.saved:
            found = {} if self.val_data is None else validate(self.parallel, self.val_data, self.options)
            self._save(place, found)
        self.reporter.settle()
        raise error


def _this_device(device: torch.device | str) -> torch.device:
    """With its number, which DistributedDataParallel asks for."""
    found = torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of the random numbers (dropout) of one step on one rank."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
