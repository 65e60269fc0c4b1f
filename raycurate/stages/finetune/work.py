"""Training data and a model -> checkpoints in Hugging Face format, the best one named.

    prepare the data ; train on Ray, from the newest checkpoint if there is one ; choose the best ; write the manifest

While a training is unfinished its output has `_staging/run.json`, which says what it is made from. The same command
again goes on; one that would make something else is refused, unless it says overwrite=true or resume=never.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import ConfigError, InputError, OutputExistsError
from raycurate.core.lock import LOCK
from raycurate.core.manifest import (
    REJECTS,
    STAGING,
    OutputFile,
    StageKey,
    delete_manifest,
    listing_fingerprint,
    read_manifest,
)
from raycurate.core.observe import get_logger
from raycurate.data.training.training_files import find_files, parse_sources
from raycurate.ray_runtime.cluster import capacity, check_plan, environment_versions
from raycurate.stage import Made, Run
from raycurate.stages.finetune.base_eval import measure_base, refuse_untrained
from raycurate.stages.finetune.check import DEV_FILES
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.stages.finetune.driver import RUN_RECORD, Job, Layout, fit, layout, steps_of, worker_memory
from raycurate.stages.finetune.worker import make_prepared, resume_place
from raycurate.training.batches.teacher import TEACHER, Teacher
from raycurate.training.checkpoints.card import write_card
from raycurate.training.checkpoints.checkpoints import CHECKPOINTS, CONSOLIDATED, STATE, Checkpoint, CheckpointStore
from raycurate.training.logs import FILE as LOG_FILE

if TYPE_CHECKING:
    from raycurate.models.contract import EmbeddingContract
    from raycurate.ray_runtime.capacity import Capacity
    from raycurate.training.estimate import Setting

_LONGEST = 16  # questions, of which a worker may have as many at once

log = get_logger(__name__)


def inputs_fingerprint(config: FinetuneConfig) -> str:
    """Of the data's files and of the models.

    Raises:
        RaycurateError: the data or a model cannot be read.
    """
    entries = []
    for sources, validation in ((config.train, False), (config.val, True)):
        data = config.read_data(validation=validation)
        if sources is None or data is None:
            continue
        entries += [f.entry for source in parse_sources(sources) for f in find_files(source.path)]
        entries += [entry for corpus in data.corpora if corpus.path for entry in storage.list_files(corpus.path)]
    if config.dev is not None:
        entries += [entry for name in DEV_FILES for entry in storage.list_files(storage.join(config.dev, name))]
    contract, *others = _contracts(config)
    return fingerprint([listing_fingerprint(entries), contract.identity(), *others, *_teachers(config, contract)])


def _contracts(config: FinetuneConfig) -> list[Any]:
    """The contract of the documents' encoder, and the identity of the questions' where that is another."""
    from raycurate.models.fetch import fetch_encoder
    from raycurate.training.model.backbones import training_contract

    options, model = config.encoder_options(), config.model_options()
    document, query = (
        training_contract(fetch_encoder(options.model_copy(update={"role": role})), model)
        for role in ("document", "query")
    )
    return [document] if document.identity() == query.identity() else [document, query.identity()]


def _teachers(config: FinetuneConfig, student: EmbeddingContract) -> list[str]:
    """What the vectors are that the training follows, if it follows any."""
    options = config.teacher_options()
    return [] if options is None else [Teacher.of(options, student).identity]


def describe_plan(config: FinetuneConfig, state: Callable[[], str]) -> str:
    """What a run would take on the cluster that is connected: workers, parameters, memory, steps.

    Args:
        state: says what is in the output, once the training data are there.

    Raises:
        CapacityError: a worker's memory is not enough.
    """
    import torch

    from raycurate.models.devices import warn_if_imitated
    from raycurate.models.fetch import fetch_model
    from raycurate.training.estimate import estimate_training

    found = capacity()
    plan = layout(config, found)
    report = check_plan([plan.demand(config)], found)
    options = config.settled(cuda=plan.gpus > 0)
    if not plan.gpus:
        warn_if_imitated(options.precision, torch.device("cpu"), where="precision", backward=True)
    questions, said = _count(config, state)
    setting = replace(_setting(config, plan, questions), memory=worker_memory(plan, found))
    folder = fetch_model(config.encoder_options())
    config = _cut_to_memory(config, plan, found, questions)
    options = config.settled(cuda=plan.gpus > 0)
    estimate = estimate_training(folder, config.model_options(), options, setting, lora=config.lora)
    estimate.require_fit()
    waits = [report.waits_for_nodes] if report.waits_for_nodes else []
    facts = [f"{name.ljust(12)} {fact}" for name, fact in _model_facts(config)]
    return "\n".join([f"workers      {plan.describe()}", *facts, estimate.report(), f"state        {said}", *waits])


def _setting(config: FinetuneConfig, plan: Layout, questions: int | None) -> Setting:
    from raycurate.training.estimate import Setting

    return Setting(
        ranks=plan.most,
        cuda=plan.gpus > 0,
        questions=questions,
        n_passages=config.n_passages,
        query_length=config.query_max_length,
        passage_length=config.passage_max_length,
    )


def _cut_to_memory(
    config: FinetuneConfig, plan: Layout, found: Capacity, questions: int | None, lengths: np.ndarray | None = None
) -> FinetuneConfig:
    """The same, with a local_batch_size where a worker on a CPU would take more than its share of the memory.

    Args:
        lengths: tokens of each question with its passages, where they are known.
    """
    from raycurate.models.fetch import fetch_model
    from raycurate.training.micro_batch import half_of_a_machine, questions_at_once

    memory = half_of_a_machine(plan.most, len(found.nodes), worker_memory(plan, found))
    fullness = 1.0
    if lengths is not None and len(lengths):
        full = config.query_max_length + config.n_passages * config.passage_max_length
        # Padded texts are all as long as the longest; unpadded ones make up for each other.
        longest = np.sort(lengths)[-_LONGEST:].mean() if config.attention == "unpadded" else lengths.max()
        fullness = min(1.0, float(longest) / full)
    chosen = questions_at_once(
        fetch_model(config.encoder_options()),
        config.model_options(),
        config.settled(cuda=plan.gpus > 0),
        replace(_setting(config, plan, questions), memory=memory),
        lora=config.lora,
        fullness=fullness,
    )
    return config if chosen is None else config.model_copy(update={"local_batch_size": chosen})


def _model_facts(config: FinetuneConfig) -> list[tuple[str, str]]:
    """What the training makes of the model that its name does not say: how it attends, where it cuts texts."""
    from raycurate.models.fetch import fetch_encoder
    from raycurate.training.model.backbones import describe_attention, training_contract

    options = config.model_options()
    folder = fetch_encoder(config.encoder_options().model_copy(update={"role": "document"}))
    longest = training_contract(folder, options).max_length
    trained = max(config.query_max_length, config.passage_max_length)
    which = "its own" if config.export_max_length is None else "export_max_length"
    length = f"the trained model cuts texts at {longest:,} tokens, {which}"
    if trained > longest:
        length += f"; it is trained on texts of up to {trained:,}, and export_max_length={trained} would keep that"
    return [("attention", describe_attention(folder, options)), ("length", length)]


def _count(config: FinetuneConfig, state: Callable[[], str]) -> tuple[int | None, str]:
    """Questions of the training data, None where they are not there yet; and the state of the output."""
    try:
        data = config.read_data()
    except InputError as error:
        return None, f"cannot run yet: {error}"
    return len(data or ()), state()


def finetune(config: FinetuneConfig, run: Run) -> Made:
    """Train; see the module."""
    from raycurate.training.model.parallelize import refuse_what_cannot_be

    key, clock = run.key, run.clock
    found = capacity()
    plan = layout(config, found)
    report = check_plan([plan.demand(config)], found)
    if report.waits_for_nodes:
        log.info("finetune: %s", report.waits_for_nodes)
    options = config.settled(cuda=plan.gpus > 0)
    refuse_what_cannot_be(options)
    refuse_untrained(config)
    for name, said in _model_facts(config):
        log.info("finetune: %s: %s", name, said)
    train_data, val_data = make_prepared(config)
    config = _cut_to_memory(config, plan, found, len(train_data), train_data.lengths)
    options = config.settled(cuda=plan.gpus > 0)
    steps = steps_of(train_data, options, plan)
    _refuse_what_is_over(config, steps)
    clock.lap("prepare")
    job = Job(
        config=config.absolute(),
        run=begin(config, key),
        train=train_data.folder,
        val=val_data.folder if val_data is not None else None,
        steps=steps,
        layout=plan,
        versions=environment_versions(),
        questions=len(train_data),
    )
    rejected = _write_rejected(config)
    log.info("finetune: %s questions, %s; run %s", f"{len(train_data):,}", plan.describe(), job.run)
    before = measure_base(job.config)
    if before:
        clock.lap("base")
    trained = fit(job)
    clock.lap("train")
    best = job.store.choose_best(config.metric)
    job.store.prune(job.keep)
    for checkpoint in job.store.all():  # with what was measured since it was made
        write_card(job.store, checkpoint, job.origin, best=checkpoint.name == best.name)
    clock.lap("choose")
    made = _made(job, best)
    made.settings["base_metrics"] = before
    made.counts |= {
        "questions": len(train_data),
        "validation_questions": len(val_data) if val_data is not None else 0,
        "steps": trained.step,
        "epochs": trained.epoch + 1,
        "stopped_early": int(trained.stopped_early),
        "workers": plan.most,
        "rejected": rejected,
    }
    return made


def _write_rejected(config: FinetuneConfig) -> int:
    """Write the rows of the data that are left out, each with the reason, beside the checkpoints; how many."""
    total = 0
    for name, validation in (("train", False), ("val", True)):
        data = config.read_data(validation=validation) if config.on_bad_rows == "drop" else None
        if data is None or not data.rejected:
            continue
        lines = [
            json.dumps({"origin": r.origin, "reject_reason": r.reason, "row": r.row}, ensure_ascii=False, default=str)
            for r in data.rejected
        ]
        content = ("\n".join(lines) + "\n").encode("utf-8", "replace")
        path = storage.join(config.output, REJECTS, f"{name}.jsonl")
        storage.write_bytes(path, content)
        log.warning("finetune: rows left out of %s: %s, with the reasons in %s", name, f"{len(lines):,}", path)
        total += len(lines)
    return total


def _refuse_what_is_over(config: FinetuneConfig, steps: int) -> None:
    """Look at the checkpoint that `resume` names before anything of the output is deleted for it.

    Raises:
        InputError: it is no whole checkpoint with a state.
        ConfigError: no step is left to do from there.
    """
    own = CheckpointStore(storage.join(config.output, CHECKPOINTS))
    place = resume_place(config, own)
    if place is None or place[0].folder == own.folder or place[1].step < steps:
        return
    raise ConfigError(
        f"this checkpoint is of step {place[1].step}, and the training has {steps}: there is nothing left to do",
        where=f"resume={config.resume}",
        fix="Raise num_epochs or max_steps, or start from its model: model=.../" + CONSOLIDATED + " resume=auto",
    )


def begin(config: FinetuneConfig, key: StageKey) -> str:
    """The name of the training: the one that is unfinished here, or a new one once what is in its way is gone.

    Raises:
        OutputExistsError: an unfinished training of something else is there.
        ConfigError: the training would delete the checkpoint that it starts from.
    """
    record = storage.join(config.output, RUN_RECORD)
    store = CheckpointStore(storage.join(config.output, CHECKPOINTS))
    there = json.loads(storage.read_text(record)) if storage.exists(record) else None
    finished = read_manifest(config.output) is not None
    if there is None and not finished and storage.exists(store.folder):
        raise OutputExistsError(
            f"the folder holds {CHECKPOINTS}/, which no manifest speaks of",
            where=config.output,
            fix=f"Use another output folder, or delete {store.folder}",
        )
    replaces = finished or config.resume == "never"  # is_done has let it
    if there is not None and not replaces:
        then = StageKey.model_validate(there["key"])
        if then == key:
            partial = store.discard_partial()
            if partial:
                log.info("finetune: removed %s, which were not whole", ", ".join(partial))
            return str(there["run"])
        if not config.overwrite:
            raise OutputExistsError(
                "an unfinished training of something else is there; it differs in " + "; ".join(then.differences(key)),
                where=config.output,
                fix="Use another output folder, resume=never, or overwrite=true",
            )
    for name, place in (("model", config.model), ("resume", config.resume)):
        if storage.normalise(place).startswith(store.folder + "/"):
            raise ConfigError(
                "a new training would delete the checkpoint that it starts from",
                where=f"{name}={place}",
                fix="Use another output folder",
            )
    for path in (CHECKPOINTS, LOG_FILE, REJECTS, *_staged(config)):
        storage.delete(storage.join(config.output, path))
    delete_manifest(config.output)
    # Ray Train goes on by itself with whatever has the same name, so a new training gets a new one.
    made = f"finetune-{key.fingerprint()}" + (f"-{uuid.uuid4().hex[:8]}" if config.resume == "never" else "")
    storage.write_text(record, json.dumps({"run": made, "key": key.model_dump(mode="json")}, indent=2) + "\n")
    return made


def _staged(config: FinetuneConfig) -> list[str]:
    """What is in the staging but a teacher's vectors, which this training has just made there."""
    staging = storage.join(config.output, STAGING)
    if config.teacher_options() is None or not storage.exists(staging):
        return [STAGING]
    entries = (e.path[len(storage.normalise(staging)) + 1 :] for e in storage.list_files(staging))
    return [storage.join(STAGING, name) for name in {e.partition("/")[0] for e in entries} if name != TEACHER]


def _made(job: Job, best: Checkpoint) -> Made:
    """Of all files but the states, which serve a further training only and may be deleted."""
    config, store = job.config, job.store
    kept = store.all()
    root = storage.normalise(config.output)
    states = tuple(storage.join(store.path(c.name), STATE) + "/" for c in kept)
    listed = [
        OutputFile(path=e.path[len(root) + 1 :], size=e.size)
        for e in storage.list_files(root)
        if not e.path.startswith((storage.join(root, STAGING) + "/", storage.join(root, LOCK), *states))
    ]
    return Made(
        listed,
        {"checkpoints": len(kept)},
        settings={
            **config.redacted(),
            "best": best.name,
            "latest": kept[-1].name,
            "metric": config.metric,
            "metrics": best.metrics,
        },
        contract=_contract(store, best),
        inputs=config.input,
    )


def _contract(store: CheckpointStore, best: Checkpoint) -> dict[str, Any]:
    """What the best model's vectors are: the documents' one, where the encoders are two."""
    model = storage.join(store.path(best.name), CONSOLIDATED)
    for name in ("contract.json", "document/contract.json"):
        if storage.exists(storage.join(model, name)):
            return dict(json.loads(storage.read_text(storage.join(model, name))))
    raise InputError("this model has no contract.json", where=model)
