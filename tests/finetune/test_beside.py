"""Checkpoints written beside the training: the same files as within it, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raycurate.core.errors import RaycurateError
from raycurate.training.checkpoints.checkpoints import CheckpointStore
from raycurate.training.checkpoints.export import _names
from raycurate.training.checkpoints.options import Keep
from raycurate.training.checkpoints.writer import Beside
from raycurate.training.checkpoints.writing import Maker, Saved, together
from raycurate.training.collectives import world
from raycurate.training.loop import export_weights, train
from raycurate.training.model.bi_encoder import load_bi_encoder
from raycurate.training.model.options import LoraOptions, ModelOptions
from tests.finetune.families import save_family
from tests.finetune.training_sets import prepared_for, random_data
from tests.finetune.trainings import Case, Diary, one_thread, run
from tests.processes import PATIENCE_S
from tests.ranks import in_two_ranks

EVERY_STEP = {"max_steps": 4, "checkpoint_every_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("beside")
    model = save_family(root / "bert", "bert")
    return Case(model, prepared_for(model, random_data(root)), options=EVERY_STEP)


def files(folder: Path) -> dict[str, bytes]:
    """All files below, but the index of the state, which has the time in it."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.endswith(".metadata")}


def test_the_files_and_the_losses_are_those_of_writing_within_the_step(bert: Case, tmp_path: Path) -> None:
    within = run(replace(bert, folder=tmp_path / "within"))
    beside = run(bert, Diary(tmp_path / "beside", beside=Beside()))
    assert beside.losses == within.losses
    there = files(tmp_path / "within")
    assert len({name.split("/")[0] for name in there}) == 4
    assert files(tmp_path / "beside") == there


def _both_ways(case: Case, folder: Path) -> list[list[float]]:
    """The losses of the trainings in this rank, by strategy: within the step and beside it."""
    found = []
    for strategy in ("ddp", "fsdp2", "hsdp"):
        options = case.options | {"strategy": strategy, "shard_size": 2}
        for name, beside in (("within", None), ("beside", Beside())):
            diary = Diary(folder / strategy / name, beside=beside)
            found.append(run(replace(case, options=options), diary).losses)
    return found


def _adapted(case: Case, folder: Path) -> None:
    for name, beside in (("within", None), ("beside", Beside())):
        train(
            case.model,
            ModelOptions(dropout=0.0, normalize=True),
            case.data,
            replace(case, options=case.options | {"strategy": "fsdp2"}).train_options,
            Diary(folder / "adapted" / name, beside=beside),
            lora=LoraOptions(dim=2),
            export=export_weights,
        )


def _fails_on_the_second_rank(folder: Path) -> list[str]:
    """What is raised on each rank; and nothing is whole."""
    maker = Maker(CheckpointStore(str(folder / "failed")), "run", Keep())

    def write(target: str) -> None:
        if world()[0] == 1:
            raise OSError(28, "No space left on device")
        Path(target).mkdir(parents=True)

    said = ""
    try:
        maker.make(Saved(0, 1, {}), write)
    except RaycurateError as error:
        said = str(error)
    everywhere = [""] * world()[1]
    dist.all_gather_object(everywhere, said)
    assert maker.store.latest() is None
    return everywhere


class _Both(NamedTuple):
    """Of two ranks: where they wrote, the losses of `_both_ways`, what `_fails_on_the_second_rank` saw."""

    folder: Path
    losses: list[list[float]]
    said: list[str]


def _all_in_two_ranks(case: Case, folder: Path) -> tuple[list[list[float]], list[str]]:
    _adapted(case, folder)
    return _both_ways(case, folder), _fails_on_the_second_rank(folder)


@pytest.fixture(scope="module")
def two_ranks(bert: Case, tmp_path_factory: pytest.TempPathFactory) -> _Both:
    folder = tmp_path_factory.mktemp("two")
    case = replace(bert, options=EVERY_STEP | {"max_steps": 3})
    return _Both(folder, *in_two_ranks(_all_in_two_ranks, case, folder))


@pytest.mark.slow
def test_with_shards_of_two_ranks(two_ranks: _Both) -> None:
    assert two_ranks.losses[::2] == two_ranks.losses[1::2]
    for strategy in ("ddp", "fsdp2", "hsdp"):
        there = files(two_ranks.folder / strategy / "within")
        assert {"__0_0.distcp", "__1_0.distcp"} <= {Path(name).name for name in there}
        assert files(two_ranks.folder / strategy / "beside") == there


@pytest.mark.slow
def test_sharded_adapters_are_exported_alike(two_ranks: _Both) -> None:
    there = files(two_ranks.folder / "adapted" / "within")
    assert any(name.endswith("adapter/adapter_model.safetensors") for name in there)
    assert files(two_ranks.folder / "adapted" / "beside") == there


@pytest.mark.slow
def test_all_ranks_hear_of_one_that_failed(two_ranks: _Both) -> None:
    assert len(set(two_ranks.said)) == 1 and "epoch_0_step_1: the storage is full" in two_ranks.said[0]


def test_names_are_those_of_the_state_dict(bert: Case) -> None:
    for lora in (None, LoraOptions(dim=2)):
        encoder = load_bi_encoder(bert.model, ModelOptions(), lora=lora)
        assert _names(encoder) == set(encoder.state_dict())
    with_buffers = nn.Sequential(nn.BatchNorm1d(2))
    with_buffers.register_buffer("passing", torch.zeros(1), persistent=False)
    assert _names(with_buffers) == set(with_buffers.state_dict())


def test_copies_share_memory_where_the_originals_do_and_do_not_move() -> None:
    weight, other = torch.ones(2, 3), torch.full((2,), 2.0)
    first, second = Beside().copies({"a": weight, "tied": weight.detach(), "b": other}, {"again": weight})
    weight.add_(1)
    assert torch.equal(first["a"], torch.ones(2, 3)) and torch.equal(first["b"], other)
    assert first["a"] is first["tied"] is second["again"]


@pytest.mark.parametrize("when", ["the next save", "the end"])
def test_what_fails_beside_is_raised_in_the_loop(bert: Case, tmp_path: Path, when: str) -> None:
    (tmp_path / "file").write_text("")  # where a folder is to be
    diary = Diary(tmp_path / "file", beside=Beside())
    every = {"checkpoint_every_steps": 1 if when == "the next save" else 10}
    with pytest.raises(NotADirectoryError):
        run(replace(bert, options=EVERY_STEP | every), diary)
    assert [step for _, step, _ in diary.saves] == [1 if when == "the next save" else 4]


def test_work_is_done_one_after_the_other_and_waited_for() -> None:
    beside, may_end, done = Beside(), threading.Event(), list[int]()

    def slowly() -> None:
        may_end.wait(PATIENCE_S)
        done.append(1)

    beside.start(slowly)
    assert not beside.over and done == []
    may_end.set()
    beside.start(lambda: done.append(2))
    assert done[0] == 1
    beside.settle()
    assert done == [1, 2] and not beside.over


def test_a_checkpoint_out_of_turn(bert: Case, tmp_path: Path) -> None:
    """Saved at the end of that step and without validation; the loss curve does not feel it."""
    undisturbed = Diary()
    options = {"max_steps": 4, "checkpoint_every_steps": 10}
    whole = run(replace(bert, options=options), undisturbed, val_data=bert.data)
    diary = Diary(tmp_path, urgent_after=2)
    disturbed = run(replace(bert, options=options), diary, val_data=bert.data)
    assert disturbed.losses == whole.losses
    assert [step for _, step, _ in diary.saves] == [2, 4]
    assert "val_mrr" not in diary.saves[0][2] and "val_mrr" in diary.saves[1][2]
    again = run(replace(bert, options=options, resume_from=tmp_path / "epoch_0_step_2"))
    assert again.losses == whole.losses[2:]


def test_errors_that_are_not_the_users_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0, "here")
