"""The stage on a local Ray with two workers: trains, exports, skips, goes on after a worker was killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycurate.core.errors import CapacityError, ConfigError, InputError, OutputExistsError, RaycurateError
from raycurate.data.corpora.beir import write_beir
from raycurate.stages.finetune.result import FinetuneResult
from raycurate.stages.finetune.stage import STAGE
from raycurate.stages.finetune.work import begin
from raycurate.training.checkpoints.checkpoints import CheckpointStore
from tests.encoders.tiny import TEXTS, WORDS
from tests.finetune.runs import STEPS, config_of, losses, small_recipe
from tests.processes import PATIENCE_S, title, tree


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_recipe(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def trained(local_ray: None, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    return STAGE.run(config_of(recipe, tmp_path_factory.mktemp("trained") / "out"))


def test_it_trains_and_says_what_it_did(trained: FinetuneResult) -> None:
    output, counts = Path(trained.output), trained.manifest.counts
    assert (counts["questions"], counts["validation_questions"]) == (60, 20)
    assert (counts["steps"], counts["epochs"], counts["workers"]) == (STEPS, 12, 2)
    curve = losses(output)
    assert list(curve) == list(range(1, STEPS + 1))
    assert np.mean([curve[s] for s in range(STEPS - 6, STEPS + 1)]) < 0.7 * np.mean([curve[s] for s in range(1, 8)])
    assert not (output / "_staging").exists()
    assert "val_mrr" in trained.summary()


def test_only_the_last_and_the_best_are_left(trained: FinetuneResult) -> None:
    store, settings = trained.store, trained.manifest.settings
    assert (Path(store.folder) / "LATEST").read_text() == f"epoch_11_step_{STEPS}\n"
    assert (Path(store.folder) / "BEST").read_text() == settings["best"] + "\n"
    left = store.all()
    assert {c.name for c in left} == {settings["best"], settings["latest"]}
    assert max(c.metrics["val_mrr"] for c in left) == settings["metrics"]["val_mrr"]


def test_sentence_transformers_loads_the_best(trained: FinetuneResult) -> None:
    from sentence_transformers import SentenceTransformer

    best = SentenceTransformer(trained.best, device="cpu")
    assert best.encode_document(TEXTS).shape == (len(TEXTS), 32)
    before = SentenceTransformer(trained.manifest.settings["model"], device="cpu")
    assert np.abs(best.encode_query(TEXTS) - before.encode_query(TEXTS)).max() > 0.01
    assert trained.manifest.contract == json.loads((Path(trained.best) / "contract.json").read_text())


def test_the_second_run_does_nothing(trained: FinetuneResult, recipe: dict[str, Any]) -> None:
    config = config_of(recipe, trained.output, num_workers=1, resume="never")
    again = STAGE.run(config)
    assert again.skipped and again.manifest == trained.manifest
    assert STAGE.state(config) == f"done, {STEPS} steps, best {trained.manifest.settings['best']}"
    with pytest.raises(OutputExistsError, match=r"learning_rate: 0\.001 -> 0\.002"):
        STAGE.run(config_of(recipe, trained.output, learning_rate=2e-3))


def _kill_a_worker(output: Path, after_step: int, killed: list[int]) -> None:
    """Kill one of the training workers once the log has come to a step."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not killed:
        log = output / "train.jsonl"
        if log.exists() and f'"step": {after_step},' in log.read_text():
            workers = [pid for pid in tree(os.getpid()) if "RayTrainWorker" in title(pid)]
            os.kill(workers[-1], signal.SIGKILL)
            killed.append(workers[-1])
        time.sleep(0.005)


def test_a_killed_worker_changes_nothing(trained: FinetuneResult, recipe: dict[str, Any], tmp_path: Path) -> None:
    output, killed = tmp_path / "out", list[int]()
    killer = threading.Thread(target=_kill_a_worker, args=(output, 33, killed))
    killer.start()
    result = STAGE.run(config_of(recipe, output, interim_every_minutes=0.005))  # checkpoints within epochs too
    killer.join()
    assert killed and not result.skipped
    undisturbed, curve = losses(Path(trained.output)), losses(output)
    assert list(curve) == list(undisturbed)
    np.testing.assert_allclose(list(curve.values()), list(undisturbed.values()), rtol=1e-6)
    assert result.manifest.settings["best"] == trained.manifest.settings["best"]
    assert result.manifest.settings["metrics"] == pytest.approx(trained.manifest.settings["metrics"], rel=1e-6)


@pytest.mark.slow
def test_checkpoints_out_of_turn_are_gone_on_from(
    trained: FinetuneResult, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """A worker is killed in a training that would make none before its end: steps that one covers are not repeated."""
    output, before = tmp_path / "out", list[str]()

    def disturb() -> None:
        store, deadline = CheckpointStore(str(output / "checkpoints")), time.monotonic() + PATIENCE_S
        while (made := store.latest()) is None or made.step < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert made.interim
        before.extend((output / "train.jsonl").read_text().splitlines()[: made.step])
        os.kill([pid for pid in tree(os.getpid()) if "RayTrainWorker" in title(pid)][-1], signal.SIGKILL)

    killer = threading.Thread(target=disturb)
    killer.start()
    result = STAGE.run(config_of(recipe, output, val=None, checkpoint_every_steps=10_000, interim_every_minutes=0.005))
    killer.join()
    # Each line has the speed at which its step went: made anew, it would be another.
    assert 5 <= len(before) < STEPS and (output / "train.jsonl").read_text().splitlines()[: len(before)] == before
    np.testing.assert_allclose(list(losses(output).values()), list(losses(Path(trained.output)).values()), rtol=1e-6)
    assert [(made.step, made.interim) for made in result.store.all()] == [(STEPS, False)]


def test_what_workers_would_refuse_is_refused_before(local_ray: None, recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="global_batch_size=8 is no multiple"):
        STAGE.run(config_of(recipe, tmp_path / "a", num_workers=3))
    with pytest.raises(ConfigError, match="cp_size=2"):
        STAGE.run(config_of(recipe, tmp_path / "b", cp_size=2))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_an_unfinished_training_is_gone_on_with_or_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(recipe, tmp_path / "out")
    name = begin(config, STAGE.key(config, STAGE.open(config)))
    store = CheckpointStore(str(tmp_path / "out" / "checkpoints"))
    state_file = Path(store.path("epoch_0_step_5"), "state", "part")
    state_file.parent.mkdir(parents=True)
    state_file.write_text("x")
    store.commit(0, 5, {}, name)
    assert STAGE.state(config) == "interrupted; a new run goes on"
    assert begin(config, STAGE.key(config, STAGE.open(config))) == name and store.latest() is not None

    other = config_of(recipe, tmp_path / "out", learning_rate=1.0)
    with pytest.raises(OutputExistsError, match=r"unfinished training.*learning_rate: 0\.001 -> 1\.0"):
        begin(other, STAGE.key(other, STAGE.open(other)))
    assert store.latest() is not None
    itself = config_of(recipe, tmp_path / "out", resume=store.path("epoch_0_step_5"), overwrite=True)
    with pytest.raises(ConfigError, match="would delete the checkpoint that it starts from"):
        begin(itself, STAGE.key(itself, STAGE.open(itself)))
    never = config_of(recipe, tmp_path / "out", resume="never")
    fresh = begin(never, STAGE.key(never, STAGE.open(never)))
    assert fresh != name and fresh.startswith(name) and store.latest() is None


def test_a_dry_run_says_what_it_takes_and_refuses_what_cannot_fit(
    local_ray: None, recipe: dict[str, Any], tmp_path: Path
) -> None:
    said = STAGE.plan(config_of(recipe, tmp_path / "out"))
    assert (
        "2 workers, 0.5 CPU and 0 GPU each" in said
        and f" {STEPS}, 12 epochs of 60 questions" in said
        and "not run" in said
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(CapacityError, match="GiB"):  # what is asked for in so many words is not cut
        STAGE.plan(config_of(recipe, tmp_path / "out", global_batch_size=2**26, local_batch_size=2**25))
    cut = STAGE.plan(config_of(recipe, tmp_path / "out", global_batch_size=2**26))
    assert f"{2**26} questions of 4 texts a step, {2**25} at once" not in cut and "at once on a worker" in cut
    later = STAGE.plan(config_of(recipe, tmp_path / "out", train=str(tmp_path / "not-there.json")))
    assert "cannot run yet" in later


@pytest.mark.slow
def test_the_best_by_a_search_beside_the_training(local_ray: None, recipe: dict[str, Any], tmp_path: Path) -> None:
    documents = {f"d{i}": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 8)) for i in range(15)}
    queries = {f"q{i}": " ".join(text.split()[:2]) for i, text in enumerate(documents.values())}
    dev = {f"q{i}": {f"d{i}": 1} for i in range(15)}
    rows = [[{"_id": name, "text": text} for name, text in texts.items()] for texts in (documents, queries)]
    write_beir(str(tmp_path / "beir"), corpus=rows[0], queries=rows[1], qrels={"dev": dev})
    changes = {"num_epochs": 2, "checkpoint_every_steps": 7, "best_metric": "dev_ndcg10", "keep_last": 2}
    result = STAGE.run(config_of(recipe, tmp_path / "out", dev=str(tmp_path / "beir"), **changes))
    left = result.store.all()
    assert [c.step for c in left] == [7, 14]
    best = max(left, key=lambda c: (c.metrics["dev_ndcg10"], c.step))
    assert result.manifest.settings["best"] == best.name and 0 < best.metrics["dev_ndcg10"] <= 1
    assert {"val_mrr", "dev_recall100"} <= best.metrics.keys()


@pytest.mark.slow
def test_going_on_from_a_checkpoint_of_another_run(local_ray: None, recipe: dict[str, Any], tmp_path: Path) -> None:
    short = {"max_steps": 30, "keep_last": 2}
    first = STAGE.run(config_of(recipe, tmp_path / "first", **short))
    assert [c.step for c in first.store.all()] == [20, 30]
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(first.output).rglob("*"))
    at = first.store.path("epoch_2_step_20")
    second = STAGE.run(config_of(recipe, tmp_path / "second", **short, resume=at))
    curve, whole = losses(tmp_path / "second"), losses(tmp_path / "first")
    assert list(curve) == list(range(21, 31))
    np.testing.assert_allclose(list(curve.values()), [whole[step] for step in curve], rtol=1e-6)
    assert [c.step for c in second.store.all()] == [30]
    assert second.manifest.settings["metrics"] == pytest.approx(first.store.all()[-1].metrics, rel=1e-6)
    assert sorted((p, p.stat().st_mtime_ns) for p in Path(first.output).rglob("*")) == before

    over = {**short, "resume": first.store.path("epoch_4_step_30")}
    with pytest.raises(ConfigError, match="of step 30, and the training has 30: there is nothing left to do"):
        STAGE.run(config_of(recipe, tmp_path / "third", **over))
    with pytest.raises(InputError, match="this is no whole checkpoint with a training state"):
        STAGE.run(config_of(recipe, tmp_path / "third", **short, resume=str(tmp_path / "nowhere")))
    assert not (tmp_path / "third").exists()
    with pytest.raises(InputError, match="another training: global_batch_size was 8 and is 4"):
        STAGE.run(config_of(recipe, tmp_path / "fourth", **short, resume=at, global_batch_size=4))


@pytest.mark.slow
def test_elastic_training_starts_with_the_workers_that_there_are(
    local_ray: None, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """One or two of three CPUs on a machine that has four: the batches, and so the curve, are those of two workers
    (dropout, which is drawn by rank, aside)."""
    both = {"max_steps": 10, "dropout": 0.0}
    STAGE.run(config_of(recipe, tmp_path / "elastic", num_workers=[1, 2], actors={"num_cpus": 3}, **both))
    STAGE.run(config_of(recipe, tmp_path / "fixed", num_workers=2, **both))
    ranks = json.loads(next((tmp_path / "elastic").rglob("progress.json")).read_text())["ranks"]
    assert ranks == 1
    one, two = (list(losses(tmp_path / name).values()) for name in ("elastic", "fixed"))
    assert len(one) == 10
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_the_user_has_to_put_right_is_not_tried_again(
    local_ray: None, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Weights that explode: saved before, said, and the workers are started once."""
    config = config_of(recipe, tmp_path / "out", learning_rate=1e30, warmup_steps=0, max_grad_norm=None)
    with pytest.raises(RaycurateError, match=r"step \d+ \(epoch 0\)"):
        STAGE.run(config)
    store = CheckpointStore(str(tmp_path / "out" / "checkpoints"))
    latest = store.latest()
    assert latest is not None and list(losses(tmp_path / "out")) == list(range(1, latest.step + 1))
    assert not (tmp_path / "out" / "_manifest.json").exists()
