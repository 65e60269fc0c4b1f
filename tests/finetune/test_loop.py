"""The loop in one process: golden losses, validation, stopping, and what happens when a loss is no number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycurate.core.errors import ConfigError, InputError
from raycurate.data.training.training import TrainingData, read_training_data
from raycurate.training.batches.prepared import Prepared
from raycurate.training.loop import Trained, export_weights, train
from raycurate.training.model.options import LoraOptions, ModelOptions
from raycurate.training.options import TrainOptions
from raycurate.training.plan import plan_training
from raycurate.training.step import NotANumberError
from raycurate.training.validate import repeated
from tests.encoders.tiny import TEXTS, WORDS
from tests.finetune.families import save_family
from tests.finetune.training_sets import prepared_for, write_set
from tests.finetune.trainings import (
    COMMON,
    Case,
    Diary,
    gradients,
    norm_of,
    run,
    save_as_tensors,
    save_poisoned,
    weights_in,
)

pytestmark = pytest.mark.usefixtures("on_one_thread")

# Of this code, when two ranks agreed with one: a change of the losses must be wanted.
GOLDEN = {
    ("bert", "listed"): [1.2498, 1.87831, 1.49185, 1.58062],
    ("bert", "in_batch"): [4.35651, 4.95739, 4.46315, 4.33287],
    ("llama", "listed"): [1.92171, 1.49489, 1.83395, 1.23893],
    ("llama", "in_batch"): [6.46478, 5.72125, 5.8257, 4.85288],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_family(root / name, name) for name in ("bert", "llama")}


@pytest.fixture(scope="module")
def bert(models: dict[str, str], data: TrainingData) -> Case:
    return Case(models["bert"], prepared_for(models["bert"], data))


def trained(case: Case, diary: Diary, **more: Any) -> Trained:
    return train(
        case.model,
        ModelOptions(dropout=0.0, normalize=True),
        case.data,
        case.train_options,
        diary,
        export=save_as_tensors,
        **more,
    )


@pytest.mark.parametrize("loss", ["listed", "in_batch"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_golden_losses(models: dict[str, str], data: TrainingData, family: str, loss: str):
    case = Case(models[family], prepared_for(models[family], data), options={"loss": loss, "max_steps": 4})
    assert run(case).losses == pytest.approx(GOLDEN[family, loss], abs=1e-4)


def test_what_is_told_at_every_step(bert: Case):
    diary = Diary()
    result = trained(replace(bert, options={"max_steps": 3, "schedule": "constant", "warmup_steps": 2}), diary)
    assert [m["loss"] for m in diary.logs] == result.losses
    assert [m["step"] for m in diary.logs] == [1, 2, 3]
    assert [m["learning_rate"] for m in diary.logs] == [1.5e-4, 3e-4, 3e-4]
    assert diary.logs[0]["grad_norm"] == pytest.approx(norm_of(gradients(bert)), rel=1e-5)
    for metrics in diary.logs:
        assert metrics["tokens_per_s"] > metrics["samples_per_s"] > 0
        assert metrics["memory_gib"] > 0.05
    assert [(epoch, step) for epoch, step, _ in diary.saves] == [(0, 3)]


def test_checkpoints_and_validations_come_when_they_are_due(bert: Case):
    diary = Diary()
    options = {"checkpoint_every_steps": 4, "validate_every_steps": 3, "log_every_steps": 5}
    trained(replace(bert, options=options), diary, val_data=bert.data)  # 90 questions: 5 steps an epoch, 2 epochs
    assert [(epoch, step) for epoch, step, _ in diary.saves] == [(0, 4), (1, 8), (1, 10)]
    assert [m["step"] for m in diary.logs if "loss" in m] == [5, 10]
    assert [m["step"] for m in diary.logs if "val_mrr" in m] == [3, 4, 6, 8, 9, 10]
    assert all(metrics["val_questions"] == 90 for _, _, metrics in diary.saves)
    by_epoch = Diary()
    trained(bert, by_epoch, val_data=bert.data)
    assert [(epoch, step) for epoch, step, _ in by_epoch.saves] == [(0, 5), (1, 10)]


def test_without_shuffling_each_epoch_has_the_order_of_the_data(bert: Case):
    plan = plan_training(bert.data, replace(bert, options={"shuffle": False}).train_options, rank=0, ranks=1)
    batches = [batch.question_ids for batch in plan.feed.batches(0, plan.steps)]
    assert [name for batch in batches for name in batch] == [f"q{i}" for i in range(80)] * 2
    shuffled = plan_training(bert.data, bert.train_options, rank=0, ranks=1)
    assert shuffled.identity() != plan.identity() and shuffled.feed.order.options.shuffle


def test_validation_does_not_rank_against_copies(bert: Case, tmp_path: Path):
    """A question with fewer negatives than asked for is judged by those that it has, each counted once."""
    documents = {f"d{i}": " ".join(TEXTS[0].split()[: i % 5 + 1] + WORDS[i : i + 3]) for i in range(12)}
    rows: list[dict[str, Any]] = [
        {"question_id": f"q{i}", "question": documents[f"d{i}"].split()[-1], "pos_doc": [f"d{i}"],
         "neg_doc": [f"d{(i + 1 + k) % 12}" for k in range(1 + i % 2)]}
        for i in range(12)
    ]  # fmt: skip
    found = []
    for negatives in (2, 7):  # one or two stand there; with seven asked for there are copies
        data = read_training_data(write_set(tmp_path / str(negatives), rows, documents, "few"))
        prepared = prepared_for(bert.model, data, n_passages=1 + negatives)
        diary = Diary()
        trained(replace(bert, options={"max_steps": 1}), diary, val_data=prepared)
        found.append({name: value for name, value in diary.saves[0][2].items() if name.startswith("val_")})
    assert found[0]["val_mrr"] < 1 and found[0] == pytest.approx(found[1], rel=1e-5)
    texts = torch.tensor([[5, 7, 7, 5, 9], [1, 2, 3, 4, 6]])
    assert repeated(texts).tolist() == [[False, False, True, True, False], [False] * 5]


def test_validation_numbers_do_not_depend_on_the_batch(bert: Case):
    found = []
    for size in (7, 64):
        diary = Diary()
        trained(replace(bert, options={"max_steps": 1, "validation_batch_size": size}), diary, val_data=bert.data)
        found.append(diary.saves[0][2])
    for name in ("val_loss", "val_acc1", "val_mrr", "val_questions"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)


def test_it_learns(bert: Case):
    diary = Diary()
    trained(
        replace(bert, options={"num_epochs": 12, "learning_rate": 1e-3, "schedule": "constant"}),
        diary,
        val_data=bert.data,
    )
    validations = [m for m in diary.logs if "val_mrr" in m]
    assert validations[-1]["val_mrr"] > validations[0]["val_mrr"] + 0.2


def test_early_stopping_stops_and_saves(bert: Case):
    """With a rate at which nothing moves, no validation is better than the first."""
    diary = Diary()
    options = {"learning_rate": 1e-12, "early_stopping": 2, "validate_every_steps": 2, "checkpoint_every_steps": 100}
    result = trained(replace(bert, options=options), diary, val_data=bert.data)
    assert result.stopped_early
    assert (result.step, result.epoch) == (6, 1)
    assert [step for _, step, _ in diary.saves] == [6]
    with pytest.raises(ConfigError, match="needs validation data"):
        trained(replace(bert, options=options), diary)


def test_a_run_that_was_at_its_end_does_nothing(bert: Case, tmp_path: Path):
    case = replace(bert, folder=tmp_path, options={"max_steps": 2})
    assert len(run(case).losses) == 2
    again = Diary()
    result = trained(case, again, resume_from=str(tmp_path / "epoch_0_step_2"))
    assert (result.step, result.losses, again.saves) == (2, [], [])


def test_going_on_bit_for_bit_with_dropout_and_early_stopping(bert: Case, tmp_path: Path):
    case = replace(bert, folder=tmp_path / "whole", dropout=0.1, options={"checkpoint_every_steps": 3, "max_steps": 7})
    whole = run(case)
    at = case.folder / "epoch_0_step_3"  # type: ignore[operator]
    assert json.loads((at / "state" / "progress.json").read_text())["step"] == 3
    again = run(replace(case, folder=tmp_path / "again", resume_from=at))
    assert again.losses == whole.losses[3:]
    one, other = (weights_in(tmp_path / name / "epoch_1_step_7") for name in ("whole", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="another training: global_batch_size was 16 and is 8"):
        run(replace(case, resume_from=at, options=case.options | {"global_batch_size": 8}))


def test_adapters_are_trained_resumed_and_exported(bert: Case, tmp_path: Path):
    options = {"checkpoint_every_steps": 2, "max_steps": 4}
    case = replace(bert, options=options)
    whole = Diary(tmp_path / "whole")
    lora = LoraOptions(dim=2)
    first = train(
        case.model, ModelOptions(dropout=0.0, normalize=True), case.data, case.train_options, whole, lora=lora
    )
    again = train(
        case.model,
        ModelOptions(dropout=0.0, normalize=True),
        case.data,
        case.train_options,
        Diary(),
        lora=lora,
        resume_from=str(tmp_path / "whole" / "epoch_0_step_2"),
        export=export_weights,
    )
    assert again.losses == first.losses[2:]
    place = tmp_path / "whole" / "epoch_0_step_4" / "model" / "consolidated"
    assert (place / "adapter" / "adapter_model.safetensors").is_file()
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(place), device="cpu").encode(["a bird sings"]).shape == (1, 32)


@pytest.mark.parametrize("loss", ["listed", "in_batch"])
def test_a_loss_that_is_no_number_stops_saves_and_names_the_questions(tmp_path: Path, loss: str):
    """Also with in-batch negatives, where one bad text spoils every question's loss."""
    model = save_poisoned(tmp_path / "model")
    documents = {f"d{i}": "a bird " * (i + 1) for i in range(12)}
    rows: list[dict[str, Any]] = [
        {"question_id": f"q{i}", "question": "the rain", "pos_doc": [f"d{i % 12}"], "neg_doc": [f"d{(i + 1) % 12}"]}
        for i in range(32)
    ]
    rows[5]["question"] = rows[20]["question"] = "zebra"
    prepared = prepared_for(model, read_training_data(write_set(tmp_path, rows, documents)), n_passages=2)
    case = Case(model, prepared, options={"loss": loss, "global_batch_size": 8})
    plan = plan_training(prepared, case.train_options, rank=0, ranks=1)
    step, named = first_bad(prepared, plan, {5, 20})
    diary = Diary(tmp_path / "out")
    with pytest.raises(NotANumberError, match=f"the loss is nan, because of .* of 8 questions: {named}") as caught:
        trained(case, diary)
    assert caught.value.where == f"step {step + 1} (epoch 0)"
    assert [saved for _, saved, _ in diary.saves] == [step]
    kept = weights_in(tmp_path / "out" / f"epoch_0_step_{step}")
    sound = {name: t for name, t in kept.items() if "word_embeddings" not in name}
    assert all(tensor.isfinite().all() for tensor in sound.values())


def first_bad(prepared: Prepared, plan: Any, bad: set[int]) -> tuple[int, str]:
    for number, (_, _, rows) in enumerate(plan.feed.order.steps(0)):
        found = [row for row in np.asarray(rows).tolist() if row in bad]
        if found:
            return number, ", ".join(prepared.ids_of(np.array(found)))
    raise AssertionError("no batch has them")


def test_plain_accumulation_with_in_batch_negatives_is_refused_with_the_reason(bert: Case):
    options = TrainOptions(**COMMON | {"loss": "in_batch", "local_batch_size": 4, "gradcache": False})
    with pytest.raises(ConfigError, match="only the negatives of its micro-step"):
        plan_training(bert.data, options, rank=0, ranks=1)


def test_a_batch_that_does_not_divide_says_how(bert: Case):
    options = TrainOptions(**COMMON | {"local_batch_size": 5})
    with pytest.raises(ConfigError, match="global_batch_size=16 is no multiple of local_batch_size=5 x 2 ranks"):
        plan_training(bert.data, options, rank=0, ranks=2)
    elastic = options.model_copy(update={"num_workers": [1, 3]})
    assert plan_training(bert.data, elastic, rank=0, ranks=3).feed.split.accumulation == 2
