"""A disk that fills up while a checkpoint is written: a real, small filesystem."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycurate.core import storage
from raycurate.core.errors import RaycurateError
from raycurate.training.checkpoints.checkpoints import CheckpointStore
from raycurate.training.checkpoints.options import Keep
from raycurate.training.checkpoints.writer import Beside
from raycurate.training.checkpoints.writing import Maker, Saved, Write
from raycurate.training.loop import train
from raycurate.training.model.options import ModelOptions
from tests.finetune.families import save_family
from tests.finetune.training_sets import prepared_for, random_data
from tests.finetune.trainings import Case, Diary, one_thread

BYTES = 8 * 2**20


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={BYTES}", "tmpfs", str(place)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a filesystem can be mounted by the superuser only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("full")
    model = save_family(root / "bert", "bert")
    return Case(model, prepared_for(model, random_data(root)), options={"max_steps": 3, "checkpoint_every_steps": 1})


class Making(Diary):
    """A Reporter that makes whole checkpoints. room: share of a checkpoint that is left after the first one."""

    def __init__(self, maker: Maker, room: float | None, beside: Beside | None) -> None:
        super().__init__(beside=beside)
        self.maker, self.room = maker, room

    def save(self, saved: Saved, write: Write) -> None:
        self.settle()
        if saved.step == 2 and self.room is not None:
            fill(Path(self.maker.store.folder).parent, self.room)
        if self.beside is None:
            self.maker.make(saved, write)
        else:
            self.beside.start(lambda: self.maker.make(saved, write))


def fill(disk: Path, room: float) -> None:
    """Leave free so much of the disk, as a share of what the first checkpoint takes."""
    files = storage.list_files(str(disk / "checkpoints" / "epoch_0_step_1"))
    pages = sum(-(-file.size // 4096) for file in files)
    found = os.statvfs(disk)
    free = found.f_bavail * found.f_frsize
    (disk / "filler").write_bytes(b"x" * int(free - room * pages * 4096))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("room", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_the_checkpoint_before_stays_and_the_new_one_is_none(
    bert: Case, small_disk: Path, room: float, beside: bool
) -> None:
    store = CheckpointStore(str(small_disk / "checkpoints"))
    maker = Maker(store, "run", Keep(keep_last=3))

    def go(resume_from: str | None, room: float | None) -> list[float]:
        reporter = Making(maker, room, Beside() if beside else None)
        model = ModelOptions(dropout=0.0, normalize=True)
        return train(bert.model, model, bert.data, bert.train_options, reporter, resume_from=resume_from).losses

    with pytest.raises(RaycurateError, match=r"epoch_0_step_2: the storage is full\. Free some space"):
        go(None, room)
    first = store.latest()
    assert first is not None and [c.step for c in store.all()] == [1]
    assert (small_disk / "checkpoints" / "LATEST").read_text() == "epoch_0_step_1\n"
    store.discard_partial()
    assert sorted(p.name for p in (small_disk / "checkpoints").iterdir()) == ["BEST", "LATEST", "epoch_0_step_1"]

    (small_disk / "filler").unlink()
    assert len(go(store.path(first.name), None)) == 2
    assert [c.step for c in store.all()] == [1, 2, 3]


def test_a_limit_of_the_process_is_said_too(bert: Case, tmp_path: Path) -> None:
    """The largest file that it may write: another error, with its reason, and nothing is whole."""
    import resource

    store = CheckpointStore(str(tmp_path / "checkpoints"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(RaycurateError, match=r"epoch_0_step_1: it cannot be written .*File too large"):
            reporter = Making(Maker(store, "run", Keep()), None, None)
            train(bert.model, ModelOptions(), bert.data, bert.train_options, reporter)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.latest() is None
