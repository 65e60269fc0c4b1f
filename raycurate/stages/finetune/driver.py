"""A training as a Ray Train run: how many workers, what each does, what happens when one dies.

Each worker finds the newest whole checkpoint by itself (checkpoints.py) and goes on from there, so a dead worker,
a dead driver and a second command are one case. Ray Train starts the workers, replaces them, and runs the validations
beside the training; errors that the user has to put right end the run at once instead of being tried again.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycurate.core import storage
from raycurate.core.manifest import STAGING
from raycurate.core.observe import get_logger
from raycurate.ray_runtime.capacity import asked_gpus
from raycurate.ray_runtime.cluster import (
    Capacity,
    OperatorDemand,
    raise_user_error,
    user_error,
)
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.training.checkpoints.card import Origin, named_data
from raycurate.training.checkpoints.checkpoints import CHECKPOINTS, CONSOLIDATED, POINTER, CheckpointStore
from raycurate.training.checkpoints.options import Keep

if TYPE_CHECKING:
    from raycurate.stages.finetune.dev_eval import DevOptions
    from raycurate.training.batches.prepared import Prepared
    from raycurate.training.loop import Trained
    from raycurate.training.options import TrainOptions

RUN_RECORD = f"{STAGING}/run.json"
"""What an unfinished training is made from, and its name; in its output."""
_MOST_CPU_WORKERS = 8

log = get_logger(__name__)


@dataclass(frozen=True)
class Layout:
    """The workers: at least and at most so many, and what each takes of its node."""

    least: int
    most: int
    cpus: float
    gpus: float

    def describe(self) -> str:
        count = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{count} workers, {self.cpus:g} CPU and {self.gpus:g} GPU each"

    def demand(self, config: FinetuneConfig) -> OperatorDemand:
        actors = config.actors
        custom = dict(actors.resources)
        if actors.accelerator_type:
            custom[f"accelerator_type:{actors.accelerator_type}"] = 0.001
        return OperatorDemand(
            "Train", self.least, self.cpus, self.gpus, resources=custom, label_selector=actors.label_selector
        )


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    run: the training's name. train, val: folders of the prepared data, on this machine or made again on another.
    steps: of the training in all. questions: of the training data. secret: names the folder of a machine that its
    workers share.
    """

    config: FinetuneConfig
    run: str
    train: str
    val: str | None
    steps: int
    layout: Layout
    versions: dict[str, str]
    questions: int = 0
    secret: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def store(self) -> CheckpointStore:
        return CheckpointStore(storage.join(self.config.output, CHECKPOINTS))

    @property
    def keep(self) -> Keep:
        return Keep(keep_last=self.config.keep_last, keep_best=self.config.keep_best, metric=self.config.metric)

    @property
    def origin(self) -> Origin:
        """What the cards of the models say of this training."""
        config = self.config
        said = config.redacted()
        base = str(said["model"]) + (f"@{config.revision}" if config.revision else "")
        names = ("loss", "n_passages", "temperature", "global_batch_size", "learning_rate", "num_epochs", "seed")
        settings = {"questions": f"{self.questions:,}"} | {name: said[name] for name in (*names, "lora")}
        chosen = {name: value for name, value in settings.items() if value is not None}
        return Origin(base, named_data(config.input), chosen, adapted=config.lora is not None)

    @property
    def writes_beside(self) -> bool:
        """Whether checkpoints are written while the steps go on; offloaded weights would be in that memory twice."""
        wanted = self.config.asynchronous_checkpoints
        return not self.config.cpu_offload if wanted is None else wanted


def layout(config: FinetuneConfig, found: Capacity) -> Layout:
    """How many workers, and what each takes.

    Raises:
        ConfigError: options that cannot both be meant.
        CapacityError: GPUs are asked for on a cluster without them.
    """
    gpus_there = int(max(found.live.gpu, found.largest.gpu))
    asked = asked_gpus(found, config.device, {"actors.num_gpus": config.actors.num_gpus}, where="finetune")
    cuda = config.device == "cuda" or (config.device == "auto" and gpus_there > 0)
    if asked is not None:
        cuda = asked > 0
    gpus = (asked or 1.0) if cuda else 0.0
    cpus = 1.0 if config.actors.num_cpus is None else config.actors.num_cpus
    if isinstance(config.num_workers, int):
        return Layout(config.num_workers, config.num_workers, cpus, gpus)
    if isinstance(config.num_workers, list):
        least, most = config.num_workers
        return Layout(least, most, cpus, gpus)
    room = int(gpus_there // gpus) if cuda else min(_MOST_CPU_WORKERS, int(found.live.cpu // cpus) if cpus else 1)
    count = _dividing(config, max(1, room))
    return Layout(count, count, cpus, gpus)


def _dividing(config: FinetuneConfig, room: int) -> int:
    """The most workers, up to `room`, that share a global batch evenly; `auto` batches are multiples of 1 to 64."""
    batch, local = config.global_batch_size, (config.local_batch_size or 1) if config.loss == "listed" else 1
    if batch == "auto":
        return room
    return max((n for n in range(1, room + 1) if batch % (n * local) == 0), default=1)


def worker_memory(plan: Layout, found: Capacity) -> int | None:
    """Bytes that one worker may fill: its GPU's by the data sheet, or its share of the smallest node that could have
    it; None where that is not known."""
    from raycurate.training.flops import device_named

    shapes = [*found.nodes, *found.groups]
    if plan.gpus:
        kinds = {k.partition(":")[2] for n in shapes for k in n.resources if k.startswith("accelerator_type:")}
        known = [device.memory for kind in kinds if (device := device_named(kind)) is not None]
        return min(known) if known else None
    room = [
        n.resources["memory"] / min(plan.most, max(1, int(n.resources.get("CPU", 0.0) // (plan.cpus or 1.0))))
        for n in shapes
        if n.resources.get("memory")
    ]
    return int(min(room)) if room else None


def steps_of(data: Prepared, options: TrainOptions, plan: Layout) -> int:
    """Steps of the training, its data being shared by as many workers as there may be.

    Raises:
        ConfigError: the workers cannot share the batches, too few questions.
    """
    from raycurate.training.plan import plan_training

    return [plan_training(data, options, rank=0, ranks=ranks).steps for ranks in (plan.least, plan.most)][-1]


def fit(job: Job) -> Trained:
    """Run the training to its end; what rank 0's loop says of it.

    Raises:
        RaycurateError: something that the user has to put right, in whichever worker it was found.
        KeyboardInterrupt: Ctrl-C, once the workers are stopped.
    """
    from ray.train import TrainingFailedError

    with _interruptible():
        try:
            result = _trainer(job).fit()
        except TrainingFailedError as error:
            raise_user_error(error)
            raise
    _take_validations(job, result)
    return result.return_value


def _trainer(job: Job) -> Any:
    import ray.train.torch

    from raycurate.stages.finetune.worker import work

    train: Any = ray.train  # a type checker sees the signatures of its first version
    config, plan = job.config, job.layout
    filesystem, inner = storage.filesystem(storage.join(config.output, STAGING))
    actors = config.actors
    scaling = train.ScalingConfig(
        num_workers=plan.most if plan.least == plan.most else (plan.least, plan.most),
        use_gpu=plan.gpus > 0,
        resources_per_worker={"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {}), **actors.resources},
        accelerator_type=actors.accelerator_type,
        label_selector=dict(actors.label_selector) or None,
    )
    run = train.RunConfig(
        name=job.run,
        storage_path=inner,
        storage_filesystem=filesystem,
        failure_config=train.FailureConfig(max_failures=config.max_failures),
        worker_runtime_env=dict(actors.runtime_env) or None,
        callbacks=[_stop_on_user_errors()],
    )
    return train.torch.TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=train.torch.TorchConfig(timeout_s=int(config.timeout_minutes * 60)),
        scaling_config=scaling,
        run_config=run,
        validation_config=_validation(job),
    )


def _validation(job: Job) -> Any:
    """Ray Train's asynchronous validation of each checkpoint, where there is something to search."""
    if job.config.dev is None:
        return None
    from dataclasses import asdict

    from ray.train import ValidationConfig, ValidationTaskConfig

    told = {"checkpoints": job.store.folder, "options": asdict(dev_options(job))}
    # It waits for tasks and actors of its own: a CPU held meanwhile would be one that they lack.
    return ValidationConfig(
        fn=_validate, task_config=ValidationTaskConfig(fn_kwargs=told), ray_remote_kwargs={"num_cpus": 0}
    )


def dev_options(job: Job) -> DevOptions:
    """How a checkpoint is searched with: as its own files say. Its vectors are kept, as eval asks for them."""
    from raycurate.stages.finetune.dev_eval import DevOptions

    config = job.config
    assert config.dev is not None
    work = storage.join(config.output, STAGING, "dev")
    return DevOptions(config.dev, work, config.checkpoints_run_as, config.cache)


def _validate(checkpoint: Any, **told: Any) -> dict[str, float]:
    """The dev metrics of the checkpoint that a reported one points to."""
    from ray.data import DataContext

    from raycurate.stages.finetune.dev_eval import DevOptions, checkpoint_uri, evaluate_dev

    DataContext.get_current().enable_progress_bars = False  # here they are lines in the log of the training
    name = storage.read_text(storage.join(checkpoint_uri(checkpoint), POINTER)).strip()
    return evaluate_dev(storage.join(told["checkpoints"], name, CONSOLIDATED), DevOptions(**told["options"]))


def _take_validations(job: Job, result: Any) -> None:
    """Put the dev metrics into the records of the checkpoints; those that are missing are measured now."""
    if job.config.dev is None:
        return
    from raycurate.stages.finetune.dev_eval import METRICS, evaluate_dev

    measured = {
        Path(checkpoint.path).name: {k: float(v) for k, v in metrics.items() if k in METRICS}
        for checkpoint, metrics in result.best_checkpoints or []
    }
    for checkpoint in job.store.all():
        if METRICS.keys() <= checkpoint.metrics.keys():
            continue
        found = measured.get(checkpoint.name)
        if not found:
            log.info("finetune: %s was not validated beside the training; now", checkpoint.name)
            found = evaluate_dev(storage.join(job.store.path(checkpoint.name), CONSOLIDATED), dev_options(job))
        job.store.add_metrics(checkpoint.name, {k: v for k, v in found.items() if k in METRICS})


def _stop_on_user_errors() -> Any:
    """A callback of Ray Train's controller: another try would only fail the same way."""
    from ray.train import UserCallback

    class StopOnUserErrors(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                found = user_error(error)
                if found is not None:
                    raise found  # which makes it the controller's error, and that one is not tried again

    return StopOnUserErrors()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as everywhere else in Python. Ray Train takes the signal, stops the workers and ends the process."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)
