"""What one worker of a Ray Train run does: open the data, find where to go on, train.

A worker takes nothing from the driver that is larger than a recipe: the prepared data are mapped from this machine's
cache (made by the first worker of a machine that lacks them), the model is fetched here, and the state is read from the
newest whole checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.observe import get_logger, setup_logging
from raycurate.core.once import once
from raycurate.ray_runtime.cluster import check_environment
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.stages.finetune.driver import RUN_RECORD, Job
from raycurate.training.checkpoints.checkpoints import STATE, Checkpoint, CheckpointStore
from raycurate.training.logs import Logs, open_logs

if TYPE_CHECKING:
    import torch

    from raycurate.training.batches.prepared import Prepared
    from raycurate.training.checkpoints.writer import Beside
    from raycurate.training.loop import Trained
    from raycurate.training.options import TrainOptions

log = get_logger(__name__)


def work(told: dict[str, Any]) -> Trained | None:
    """What one worker does; rank 0's result is the run's."""
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    from raycurate.models.fetch import fetch_model
    from raycurate.stages.finetune.reporting import RayReporter
    from raycurate.training.checkpoints.writing import Maker
    from raycurate.training.loop import train

    job: Job = told["job"]
    config = job.config
    setup_logging()
    check_environment(job.versions, "a training worker")
    if not storage.exists(storage.join(config.output, RUN_RECORD)):
        raise InputError(
            "this machine does not see the output folder of the training",
            where=config.output,
            fix="Write to a folder that all machines share, or to an object store",
        )
    train_data, val_data = open_prepared(job)
    model_folder = fetch_model(config.encoder_options())
    device = get_device() if job.layout.gpus else "cpu"
    if not job.layout.gpus:
        _use_the_cores(ray_train.get_context().get_local_world_size())
    rank = ray_train.get_context().get_world_rank()
    options = _options(config, torch.device(device), cuda=job.layout.gpus > 0, said=rank == 0)
    with _state_to_resume(job) as (state, step), _logs(job, rank, step) as logs:
        beside = _beside(job)
        group = None if beside is None else beside.group
        maker = Maker(
            job.store, job.run, job.keep, measured_later=config.dev is not None, group=group, origin=job.origin
        )
        minutes = config.interim_every_minutes
        reporter = RayReporter(maker, logs=logs, beside=beside, interim_s=None if minutes is None else minutes * 60)
        done = train(
            model_folder,
            config.model_options(),
            train_data,
            options,
            reporter,
            lora=config.lora,
            val_data=val_data,
            resume_from=state,
            device=device,
        )
    return done if rank == 0 else None


def _options(config: FinetuneConfig, device: torch.device, *, cuda: bool, said: bool) -> TrainOptions:
    """What the loop is told, equal on all workers: precision=auto is bfloat16 only if each one's hardware has it."""
    import torch

    from raycurate.models.devices import multiplies_bfloat16, warn_if_imitated
    from raycurate.training.collectives import max_over_ranks

    lacking = max_over_ranks(torch.tensor(float(not multiplies_bfloat16(device)), device=device))
    options = config.settled(cuda=cuda, bfloat16=not lacking.item())
    if said:
        log.info("finetune: precision %s on %s", options.precision, device)
        warn_if_imitated(options.precision, device, where="precision", backward=True)
    return options


def _beside(job: Job) -> Beside | None:
    """The thread that writes checkpoints while the steps go on, where that is wanted."""
    from raycurate.training.checkpoints.writer import Beside

    return Beside(timedelta(minutes=job.config.timeout_minutes)) if job.writes_beside else None


def _use_the_cores(workers: int) -> None:
    """Share this machine's cores among its workers: a worker's logical CPUs say where it runs, not how fast."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def _logs(job: Job, rank: int, step: int) -> AbstractContextManager[Logs | None]:
    """Where rank 0's numbers go; a training that goes on goes on in the same file."""
    if rank != 0:
        return nullcontext()
    config = job.config
    return open_logs(config.output, config.logging, total_steps=job.steps, first_step=step, settings=config.redacted())


def make_prepared(config: FinetuneConfig) -> tuple[Prepared, Prepared | None]:
    """The training and the validation data, tokenised, from this machine's cache or made now.

    Raises:
        RaycurateError: everything that is wrong with the data, or the model that they are tokenised for.
    """
    from raycurate.models.fetch import fetch_encoder
    from raycurate.training.batches.prepared import prepare
    from raycurate.training.model.backbones import training_contract

    encoder = config.encoder_options()
    contract = training_contract(fetch_encoder(encoder), config.model_options())
    made: list[Prepared] = []
    for validation in (False, True):
        data = config.read_data(validation=validation)
        if data is not None:
            made.append(prepare(data, encoder, contract, config.prepare_options(validation=validation)))
    return made[0], made[1] if len(made) > 1 else None


def open_prepared(job: Job) -> tuple[Prepared, Prepared | None]:
    """The data that the driver prepared, or the same made on this machine."""
    from raycurate.training.batches.prepared import Prepared

    folders = [job.train, *([job.val] if job.val else [])]
    if all(Path(folder, "meta.json").is_file() for folder in folders):
        return Prepared(job.train), Prepared(job.val) if job.val else None
    return make_prepared(job.config)


@contextmanager
def _state_to_resume(job: Job) -> Iterator[tuple[str | None, int]]:
    """A local folder with the newest state of this training, or of the one that it was told to go on from, and the
    steps that were done then.

    Raises:
        InputError: the checkpoint that `resume` names is none, or has no state.
    """
    found = resume_place(job.config, job.store)
    if found is None:
        yield None, 0
        return
    store, checkpoint = found
    folder = store.path(checkpoint.name)
    log.info("finetune: going on from %s", folder)
    if not storage.is_remote(folder):
        yield folder, checkpoint.step
        return
    place = storage.private_folder(job.secret)
    try:
        yield local_copy(folder, checkpoint, place), checkpoint.step
    finally:  # loading is a collective, so all ranks have read theirs by now
        shutil.rmtree(place, ignore_errors=True)


def resume_place(config: FinetuneConfig, own: CheckpointStore) -> tuple[CheckpointStore, Checkpoint] | None:
    """Where a training goes on: its own newest checkpoint, else the one that `resume` names; None: at the beginning.

    Raises:
        InputError: what `resume` names is no whole checkpoint with a state.
    """
    latest = own.latest()
    return named_place(config) if latest is None else (own, latest)


def named_place(config: FinetuneConfig) -> tuple[CheckpointStore, Checkpoint] | None:
    """The checkpoint that `resume` names, None where it names none.

    Raises:
        InputError: it is no whole checkpoint with a state.
    """
    if config.resume in ("auto", "never"):
        return None
    folder, _, name = storage.normalise(config.resume).rpartition("/")
    store = CheckpointStore(folder)
    found = store.find(name)
    if found is None or not any(path.startswith(f"{STATE}/") for path in found.files):
        raise InputError(
            "this is no whole checkpoint with a training state",
            where=f"resume={config.resume}",
            fix="Name a folder epoch_E_step_S that a training wrote",
        )
    return store, found


def local_copy(folder: str, checkpoint: Checkpoint, place: Path) -> str:
    """The state of a remote checkpoint in `place` on this machine, copied once for all of its workers.

    Raises:
        InputError: the store names files that do not lie in the checkpoint.
    """
    target = place / f"state-{fingerprint([folder, checkpoint.files])}"
    with once(target) as temporary:
        if temporary is not None:
            storage.copy_folder(storage.join(folder, STATE), temporary / STATE)
    return str(target)
