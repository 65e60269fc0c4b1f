"""Which checkpoints are whole, latest, best and kept; on a disk and on an object store."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.stages.finetune.config import FinetuneConfig
from raycurate.stages.finetune.worker import local_copy, resume_place
from raycurate.training.checkpoints.checkpoints import BEST, LATEST, CheckpointStore, better_when, checkpoint_name
from raycurate.training.checkpoints.options import Keep


def _fill(store: CheckpointStore, epoch: int, step: int) -> None:
    """The files of a checkpoint, without the record that makes it whole."""
    folder = store.path(checkpoint_name(epoch, step))
    storage.write_text(storage.join(folder, "state", "__0_0.distcp"), f"state {step}")
    storage.write_text(storage.join(folder, "model/consolidated/model.safetensors"), f"model {step}")


def _save(store: CheckpointStore, epoch: int, step: int, **metrics: float) -> None:
    _fill(store, epoch, step)
    store.commit(epoch, step, metrics, "run")


def _names(store: CheckpointStore) -> list[str]:
    return [c.name for c in store.all()]


def _pointed(store: CheckpointStore, pointer: str) -> str:
    return storage.read_text(storage.join(store.folder, pointer))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "checkpoints"))


def test_nothing_is_whole_without_its_record(store: CheckpointStore) -> None:
    assert store.latest() is None and store.all() == []
    _save(store, 0, 10, val_mrr=0.5)
    _fill(store, 1, 20)
    assert _names(store) == ["epoch_0_step_10"]
    assert _pointed(store, LATEST) == "epoch_0_step_10\n"
    latest = store.latest()
    assert latest is not None and latest.step == 10 and latest.metrics == {"val_mrr": 0.5}
    assert store.discard_partial() == ["epoch_1_step_20"]
    assert not Path(store.path("epoch_1_step_20")).exists()


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_damaged_checkpoint_is_not_whole(store: CheckpointStore, damage: str) -> None:
    _save(store, 0, 10)
    _save(store, 1, 20)
    file = Path(store.path("epoch_1_step_20"), "state", "__0_0.distcp")
    file.write_text("st") if damage == "shorter" else file.unlink()
    latest = store.latest()
    assert latest is not None and latest.name == "epoch_0_step_10"


def test_order_is_by_step_and_not_by_letter(store: CheckpointStore) -> None:
    for epoch, step in ((2, 100), (0, 9), (1, 20)):
        _save(store, epoch, step)
    assert [c.step for c in store.all()] == [9, 20, 100]


def test_last_and_best_are_kept(store: CheckpointStore) -> None:
    keep = Keep(keep_last=2, keep_best=1, metric="val_mrr")
    for step, mrr in ((1, 0.3), (2, 0.9), (3, 0.5), (4, 0.4), (5, 0.6)):
        _save(store, 0, step, val_mrr=mrr)
        store.prune(keep)
    assert _names(store) == ["epoch_0_step_2", "epoch_0_step_4", "epoch_0_step_5"]
    assert _pointed(store, BEST) == "epoch_0_step_2\n"
    assert store.choose_best("val_mrr").step == 2


def test_best_is_one_that_is_kept(store: CheckpointStore) -> None:
    for step, mrr in ((1, 0.9), (2, 0.5), (3, 0.4)):
        _save(store, 0, step, val_mrr=mrr)
    store.prune(Keep(keep_last=2, keep_best=0, metric="val_mrr"))
    assert _names(store) == ["epoch_0_step_2", "epoch_0_step_3"]
    assert _pointed(store, BEST) == "epoch_0_step_2\n"


def test_a_loss_is_good_when_it_is_low(store: CheckpointStore) -> None:
    assert better_when("val_loss") == "lower" and better_when("dev_ndcg10") == "higher"
    for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2)):
        _save(store, 0, step, val_loss=loss)
    assert store.choose_best("val_loss").step == 2
    assert store.choose_best(None).step == 3


def test_equals_go_to_the_later_one(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        _save(store, 0, step, val_mrr=0.5)
    assert store.choose_best("val_mrr").step == 3


def test_a_missing_value_is_an_error_and_named(store: CheckpointStore) -> None:
    _save(store, 0, 1, dev_ndcg10=0.5)
    _save(store, 0, 2, dev_ndcg10=float("nan"))
    with pytest.raises(InputError, match=r"epoch_0_step_2 of 2 checkpoints has no value of 'dev_ndcg10'"):
        store.choose_best("dev_ndcg10")
    store.add_metrics("epoch_0_step_2", {"dev_ndcg10": 0.7})
    assert store.choose_best("dev_ndcg10").step == 2


def test_models_outlive_their_states(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        _save(store, 0, step)
    store.drop_states(Keep(keep_last=1))
    assert [sorted(c.files) for c in store.all()] == [
        ["model/consolidated/model.safetensors"],
        ["model/consolidated/model.safetensors"],
        ["model/consolidated/model.safetensors", "state/__0_0.distcp"],
    ]
    assert not Path(store.path("epoch_0_step_1"), "state").exists()


@pytest.mark.parametrize("later", [False, True])
def test_what_was_made_out_of_turn_is_gone_with_the_next(store: CheckpointStore, later: bool) -> None:
    """It is what to go on from while it is the newest, and never one of those to choose from."""

    def tidy() -> None:
        store.drop_states(keep) if later else store.prune(keep)

    keep = Keep(keep_last=2, keep_best=1, metric="val_mrr")
    _save(store, 0, 1, val_mrr=0.9)
    _save(store, 0, 2, val_mrr=0.1)
    _fill(store, 0, 3)
    store.commit(0, 3, {"loss": 1.0}, "run", interim=True)
    tidy()
    assert [c.step for c in store.all()] == [1, 2, 3]
    latest = store.latest()
    assert latest is not None and latest.interim and "state/__0_0.distcp" in latest.files
    assert store.choose_best("val_mrr").step == 1 and store.choose_best(None).step == 2
    _save(store, 0, 4, val_mrr=0.2)
    tidy()
    assert [c.step for c in store.all()] == [1, 2, 4]


def test_only_one_made_out_of_turn_is_none_to_choose(store: CheckpointStore) -> None:
    _fill(store, 0, 3)
    store.commit(0, 3, {}, "run", interim=True)
    assert store.prune(Keep()) == [] and store.best() is None
    with pytest.raises(InputError, match="there is no whole checkpoint"):
        store.choose_best(None)


def test_where_a_training_goes_on(store: CheckpointStore, tmp_path: Path) -> None:
    _save(store, 0, 1)
    _save(store, 0, 2)
    store.drop_states(Keep(keep_last=1))
    own = CheckpointStore(str(tmp_path / "own" / "checkpoints"))
    values = {"train": "t.jsonl", "model": "m", "output": str(tmp_path / "own")}
    assert resume_place(FinetuneConfig(**values), own) is None

    named = FinetuneConfig(**values, resume=store.path("epoch_0_step_2"))
    place = resume_place(named, own)
    assert place is not None and place[0].folder == store.folder and place[1].step == 2
    with pytest.raises(InputError, match="no whole checkpoint with a training state"):
        resume_place(FinetuneConfig(**values, resume=store.path("epoch_0_step_1")), own)

    _save(own, 0, 7)  # what the training itself has done comes first
    place = resume_place(named, own)
    assert place is not None and place[1].step == 7


def test_on_an_object_store(s3: str, tmp_path: Path) -> None:
    store = CheckpointStore(f"{s3}/run/checkpoints")
    assert store.latest() is None
    for step, mrr in ((1, 0.3), (2, 0.9), (3, 0.5)):
        _save(store, 0, step, val_mrr=mrr)
        store.prune(Keep(keep_last=1, keep_best=1, metric="val_mrr"))
    _fill(store, 1, 4)
    assert _names(store) == ["epoch_0_step_2", "epoch_0_step_3"]
    assert (_pointed(store, BEST), _pointed(store, LATEST)) == ("epoch_0_step_2\n", "epoch_0_step_3\n")
    assert store.discard_partial() == ["epoch_1_step_4"]
    latest = store.latest()
    assert latest is not None
    folder = local_copy(store.path(latest.name), latest, tmp_path)
    assert Path(folder, "state", "__0_0.distcp").read_text() == "state 3"
    assert local_copy(store.path(latest.name), latest, tmp_path) == folder
