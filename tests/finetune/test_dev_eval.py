"""Validation over a whole corpus: hand-worked scores, sentence-transformers as reference, and Ray Train's own task."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from raycurate.core import storage
from raycurate.core.errors import ConfigError, InputError
from raycurate.data.corpora.beir import write_beir
from raycurate.retrieval.metrics import evaluate_hits
from raycurate.stages.finetune.dev_eval import DevOptions, checkpoint_uri, evaluate_dev, read_dev
from raycurate.training.checkpoints.checkpoints import CONSOLIDATED
from tests.encoders.tiny import WORDS
from tests.processes import PATIENCE_S

HASHED: dict[str, Any] = {"engine": "tests.embed.hashing:HashEncoder", "concurrency": 1}
SMALL = {"dev_ndcg10": 1 / math.log2(3), "dev_recall10": 1.0, "dev_recall100": 1.0, "dev_mrr10": 0.5}
SMALL["dev_questions"] = 2.0


def write_set(folder: Path, documents: dict[str, str], queries: dict[str, str], **qrels: Any) -> str:
    rows = [[{"_id": name, "text": text} for name, text in texts.items()] for texts in (documents, queries)]
    write_beir(str(folder), corpus=rows[0], queries=rows[1], qrels=qrels)
    return str(folder)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Words that fall into different buckets of the hashing encoder, so scores are counts of shared words.

    q0 finds d1 second, as d0 has the word twice; q1's d3 ties with d4, whose id is larger, so it is second too.
    """
    documents = {
        "d0": "stone stone",
        "d1": "stone dawn",
        "d2": "bridge",
        "d3": "rain rain",
        "d4": "rain rain",
        "d5": " ",
    }
    queries = {"q0": "stone", "q1": "rain", "q2": "dawn"}
    dev = {"q0": {"d1": 1}, "q1": {"d3": 1}}
    return write_set(tmp_path / "set", documents, queries, dev=dev, test={"q2": {"d0": 1}})


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_separate_encoders_as_sentence_transformers_ranks(dense_model: str, tmp_path: Path) -> None:
    """Prompts, Dense heads, normalisation: each role by its own folder, against a ranking worked out without Ray."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    for role in ("query", "document"):
        shutil.copytree(dense_model, folder / role)
    settings = folder / "query" / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"prompts": {"query": "the old bridge "}}))
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(70)]
    documents = {f"d{i:02d}": text for i, text in enumerate(texts[:50])}
    queries = {f"q{i}": text for i, text in enumerate(texts[50:])}
    dev = {f"q{i}": {f"d{i:02d}": 1, f"d{i + 25}": 2} for i in range(20)}
    data = write_set(tmp_path / "set", documents, queries, dev=dev)
    encoder = {"dtype": "float32", "concurrency": 1, "passage_prefix": "dawn "}
    options = DevOptions(data, str(tmp_path / "work"), encoder)
    found = evaluate_dev(str(folder), options)
    asking, held = (SentenceTransformer(str(folder / role), device="cpu") for role in ("query", "document"))
    vectors = asking.encode_query(list(queries.values())), held.encode(list(documents.values()), prompt="dawn ")
    scores = vectors[0] @ vectors[1].T
    order = np.argsort(-scores, axis=1)
    names = np.array(list(documents), object)[order]
    wanted = evaluate_hits(dev, list(queries), names, np.take_along_axis(scores, order, 1))
    assert found["dev_ndcg10"] == pytest.approx(wanted["NDCG@10"], abs=1e-6)
    assert found["dev_mrr10"] == pytest.approx(wanted["MRR@10"], abs=1e-6)


def report_one(settings: dict[str, Any]) -> None:
    """A training that reports the folder it was told of as its checkpoint."""
    import ray.train

    ray.train.report({"loss": 1.0}, checkpoint=ray.train.Checkpoint(settings["folder"]), validation=True)


def validate(checkpoint: Any, **options: Any) -> dict[str, float]:
    return evaluate_dev(storage.join(checkpoint_uri(checkpoint), CONSOLIDATED), DevOptions(**options))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.slow
def test_hand_worked_scores_of_a_checkpoint_that_ray_train_validates(small: str, tmp_path: Path) -> None:
    """In a task of Ray Train's, which itself asks for encoders; the metrics join those that the training reported."""
    from ray.train import RunConfig, ScalingConfig, ValidationConfig, ValidationTaskConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    folder = tmp_path / "epoch_0_step_1"
    (folder / CONSOLIDATED).mkdir(parents=True)
    told = ValidationTaskConfig(asdict(DevOptions(small, str(tmp_path / "work"), HASHED)), timeout_s=PATIENCE_S)
    trainer = DataParallelTrainer(
        report_one,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="dev", storage_path=str(tmp_path / "runs")),
        validation_config=ValidationConfig(validate, told, ray_remote_kwargs={"num_cpus": 0}),
    )
    [(_, metrics)] = trainer.fit().best_checkpoints
    assert metrics == pytest.approx({"loss": 1.0, **SMALL})
    assert list((tmp_path / "work").iterdir()) == []


def test_a_set_without_dev_questions_is_refused(tmp_path: Path) -> None:
    none = write_set(tmp_path / "none", {"d0": "rain"}, {"q0": "rain"}, test={"q0": {"d0": 1}})
    with pytest.raises(InputError, match="there is no split 'dev'"):
        read_dev(none)


def test_uris_of_checkpoints(tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem
    from ray.train import Checkpoint

    assert checkpoint_uri(Checkpoint(str(tmp_path))) == str(tmp_path)
    s3 = fs.S3FileSystem(access_key="k", secret_key="s", region="us-east-1")
    assert checkpoint_uri(Checkpoint("bucket/run/epoch_0_step_1", s3)) == "s3://bucket/run/epoch_0_step_1"
    memory = fs.PyFileSystem(fs.FSSpecHandler(MemoryFileSystem()))
    assert checkpoint_uri(Checkpoint("/run", memory)) == "memory:///run"
    with pytest.raises(ConfigError, match="filesystem of type subtree"):
        checkpoint_uri(Checkpoint("run", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())))
