"""The logs of a training: what is in the file, what a resumed run keeps, and what happens when a tracker fails."""

from __future__ import annotations

import importlib.util
import json
import logging
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raycurate.core import storage
from raycurate.core.errors import ConfigError, MissingDependencyError, RaycurateError
from raycurate.training.logs import FILE, JsonLines, LogOptions, Logs, Sink, open_logs


def lines(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_text(storage.join(str(folder), FILE)).splitlines()]


def test_each_step_is_a_line_at_once(tmp_path: Path) -> None:
    with open_logs(str(tmp_path), total_steps=3) as logs:
        logs.log({"step": 1, "loss": 2.5, "learning_rate": 1e-6})
        assert [(row["step"], row["loss"], row["learning_rate"]) for row in lines(tmp_path)] == [(1, 2.5, 1e-6)]
        logs.log({"step": 2, "loss": float("nan")})
        logs.log({"step": 2, "val_mrr": 0.5})
    rows = lines(tmp_path)
    assert [set(row) - {"time"} for row in rows] == [
        {"step", "loss", "learning_rate"},
        {"step", "loss"},
        {"step", "val_mrr"},
    ]
    assert rows[1]["loss"] is None, "NaN is no JSON"
    assert rows[0]["time"] <= rows[2]["time"]


def test_a_resumed_run_has_each_step_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_logs(str(tmp_path)) as logs:
        for step in range(1, 6):
            logs.log({"step": step, "loss": 10.0 + step})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 6, "lo')  # as a kill leaves it
    with open_logs(str(tmp_path), first_step=3) as logs:
        for step in (4, 5, 6):
            logs.log({"step": step, "loss": 20.0 + step})
    assert [row["loss"] for row in lines(tmp_path)] == [11, 12, 13, 24, 25, 26]
    with open_logs(str(tmp_path)) as logs:
        logs.log({"step": 1, "loss": 0.0})
    assert len(lines(tmp_path)) == 1, "a run from the beginning begins the file anew"


def test_an_object_store_has_the_whole_file_at_the_end(s3: str) -> None:
    folder = f"{s3}/logs"
    for first in (0, 1):
        with open_logs(folder, first_step=first) as logs:
            logs.log({"step": first + 1, "loss": 1.5})
    assert [row["step"] for row in lines(folder)] == [1, 2]


def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RaycurateError, match="its folder cannot be made"):
        open_logs(str(tmp_path / "file"))


def test_progress_says_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs(str(tmp_path), total_steps=10, first_step=4) as logs:
        logs.log({"step": 6, "loss": 0.75})
    assert "finetune (loss 0.75): 2/6 steps" in capsys.readouterr().err


class Stubborn:
    """A tracker whose server is gone after the first step."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.failed: bool | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.written:
            raise ConnectionError("no route to host")
        self.written.append(step)

    def close(self, *, failed: bool) -> None:
        self.failed = failed


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Stubborn()
    sinks: dict[str, Sink] = {"MLflow": tracker}
    logger = logging.getLogger("raycurate")
    logger.addHandler(caplog.handler)
    with Logs(JsonLines(str(tmp_path / FILE), 0), sinks, None, 0) as logs:
        for step in (1, 2, 3):
            logs.log({"step": step, "loss": 1.0})
    logger.removeHandler(caplog.handler)
    assert tracker.written == [1] and len(lines(tmp_path)) == 3
    assert {r.getMessage() for r in caplog.records if r.name == "raycurate.training.logs"} == {
        "MLflow failed (ConnectionError: no route to host): the training goes on without it"
    }
    assert tracker.failed is None, "it is not closed either"


def test_trackers_hear_how_it_ended(tmp_path: Path) -> None:
    tracker = Stubborn()
    with pytest.raises(KeyError), Logs(JsonLines(str(tmp_path / FILE), 0), {"x": tracker}, None, 0):
        raise KeyError
    assert tracker.failed is True


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard's event files in `folder` hold; a record is length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_tensorboard_has_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with open_logs(str(tmp_path), LogOptions(tensorboard=True)) as logs:
        logs.log({"step": 1, "loss": 2.5})
        logs.log({"step": 2, "loss": 1.25, "val_mrr": 0.5})
    assert scalars(tmp_path / "tensorboard") == [(1, "loss", 2.5), (2, "loss", 1.25), (2, "val_mrr", 0.5)]
    with open_logs(str(tmp_path), LogOptions(tensorboard=str(tmp_path / "other"))) as logs:
        logs.log({"step": 1, "loss": 3.0})
    assert scalars(tmp_path / "other") == [(1, "loss", 3.0)]


def test_tensorboard_in_an_object_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Name a local or shared folder"):
        open_logs(str(tmp_path), LogOptions(tensorboard="s3://bucket/tensorboard"))


def test_mlflow_has_one_run_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # all that there is without a server or SQLAlchemy
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db" if importlib.util.find_spec("sqlalchemy") else (tmp_path / "runs").as_uri()
    options = LogOptions.parse({"mlflow": {"tracking_uri": uri, "experiment": "search"}}, where="test")
    for first in (0, 2):
        with open_logs(str(tmp_path), options, first_step=first, settings={"learning_rate": 1e-5}) as logs:
            logs.log({"step": first + 1, "loss": 2.0 - first})
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("search")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.0), (3, 0.0)]
    assert run.data.params == {"learning_rate": "1e-05"} and run.info.status == "FINISHED"


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    options = LogOptions.parse({"wandb": {"project": "search", "mode": "offline"}}, where="test")
    with open_logs(str(tmp_path), options, settings={"learning_rate": 1e-5}) as logs:
        logs.log({"step": 1, "loss": 2.0})
    kept = json.loads((tmp_path / "trackers.json").read_text())
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{kept['wandb']}/*.wandb"))


@pytest.mark.parametrize(("package", "options"), [("mlflow", {"mlflow": {}}), ("wandb", {"wandb": {"project": "p"}})])
def test_a_missing_package_is_named_before_the_training(tmp_path: Path, package: str, options: dict[str, Any]) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingDependencyError, match=rf"raycurate\[{package}\]"):
        open_logs(str(tmp_path), LogOptions.parse(options, where="logging"))
    assert not (tmp_path / FILE).exists()


def test_misspelt_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        LogOptions.parse({"wandbs": {}}, where="finetune: logging")
    with pytest.raises(ConfigError, match="project"):
        LogOptions.parse({"wandb": {}}, where="finetune: logging")


def test_numbers_are_gauges_of_ray(tmp_path: Path, local_ray: None) -> None:
    from ray.util import metrics

    with open_logs(str(tmp_path)) as logs:
        logs.log({"step": 7, "loss": 0.5, "val_acc@1": 0.25})
        gauges = logs._trackers["Ray's metrics"]._gauges  # type: ignore[attr-defined]
    assert all(isinstance(gauge, metrics.Gauge) for gauge in gauges.values())
    names = {gauge.info["name"] for gauge in gauges.values()}
    assert names == {f"raycurate_finetune_{name}" for name in ("step", "loss", "val_acc_1")}
