"""One training of the benchmark finetune.py, in a process of its own: ours, or sentence-transformers' trainer.

python jobs/benchmarks/finetune_training.py TASK.json      # which it replaces by the outcome
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycurate.training.checkpoints.writer import Beside
    from raycurate.training.checkpoints.writing import Interim, Saved, Write

os.environ.setdefault("HF_HUB_OFFLINE", "1")

OURS, PEER = "raycurate", "sentence-transformers"
UNMINED, MASKED = "raycurate, no mined negatives", "raycurate, false negatives"
LOCAL = "raycurate, rank-local negatives"
SYSTEMS = (OURS, PEER, UNMINED, MASKED, LOCAL)
RANKS = 2  # of LOCAL
WARMUP, DECAY = 0.1, 0.01


@dataclass(frozen=True)
class Outcome:
    """A training: where the model is, the seconds it took and the pairs it saw (each as often as it did)."""

    model: str
    seconds: float
    samples: int

    @property
    def rate(self) -> float:
        return self.samples / self.seconds


def train_ours(task: dict[str, Any]) -> Outcome:
    """The training loop in this process, as each rank of a stage runs it."""
    from raycurate.data.training.training import read_training_data
    from raycurate.models.options import EncoderOptions
    from raycurate.training.batches.options import PassageOptions
    from raycurate.training.batches.prepared import PrepareOptions, prepare
    from raycurate.training.checkpoints.checkpoints import CONSOLIDATED
    from raycurate.training.loop import train
    from raycurate.training.loss.options import FalseNegatives
    from raycurate.training.model.backbones import training_contract
    from raycurate.training.model.options import ModelOptions
    from raycurate.training.options import TrainOptions

    length = task["max_length"]
    # unpadded attention has no dropout on CUDA
    model = ModelOptions(max_length=length, attention="unpadded" if task["device"] == "cpu" else None)
    train_options = TrainOptions(
        loss="in_batch",
        temperature=task["temperature"],
        false_negatives=FalseNegatives() if task["system"] == MASKED else None,
        num_epochs=task["epochs"],
        learning_rate=task["learning_rate"],
        weight_decay=DECAY,
        schedule="linear",
        warmup_ratio=WARMUP,
        global_batch_size=task["batch"],
        length_window=task["length_window"],
        seed=task["seed"],
        precision=task["precision"],
        checkpoint_every_steps=1_000_000_000,  # as the other side: none before the end
    )
    passages = PassageOptions(n_passages=1 if task["system"] == UNMINED else 1 + task["negatives"])
    data = read_training_data(task["train"])
    contract = training_contract(task["base"], model)
    started = time.perf_counter()
    prepared = prepare(
        data,
        EncoderOptions(model=task["base"]),
        contract,
        PrepareOptions(passages=passages, query_max_length=length, passage_max_length=length, data_cache=task["work"]),
    )
    reporter = Kept(task["work"])
    trained = train(task["base"], model, prepared, train_options, reporter, device=task["device"])
    return Outcome(f"{task['work']}/{CONSOLIDATED}", reporter.at - started, trained.step * task["batch"])


class Kept:
    """What the loop tells: its one checkpoint, at the end, goes to `folder`; `at` is when the training was done."""

    beside: Beside | None = None

    def __init__(self, folder: str) -> None:
        self.folder, self.at = folder, 0.0

    def log(self, metrics: dict[str, float]) -> None:
        """The table has what there is to say."""

    def save(self, saved: Saved, write: Write) -> None:
        self.at = time.perf_counter()
        write(self.folder)

    def settle(self) -> None:
        """It is written within the step."""

    def after_step(self) -> Interim:
        from raycurate.training.checkpoints.writing import Interim

        return Interim.NO


def train_peer(task: dict[str, Any]) -> Outcome:
    """sentence-transformers' own trainer."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

    model = SentenceTransformer(task["base"], device=task["device"])
    model.max_seq_length = task["max_length"]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=f"{task['work']}/trainer",
        num_train_epochs=task["epochs"],
        per_device_train_batch_size=task["batch"],
        learning_rate=task["learning_rate"],
        weight_decay=DECAY,
        warmup_steps=WARMUP,  # below 1 it is a share of all steps
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=task["seed"],
        bf16=task["precision"] == "bfloat16",
        use_cpu=task["device"] == "cpu",
        batch_sampler=task["sampler"],
        dataloader_drop_last=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns(task)),
        loss=MultipleNegativesRankingLoss(model, scale=1 / task["temperature"]),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    model.save_pretrained(f"{task['work']}/model")
    return Outcome(f"{task['work']}/model", seconds, trainer.state.global_step * task["batch"])


def columns(task: dict[str, Any]) -> dict[str, list[str]]:
    """The same pairs and negatives as ours, negatives from the first again where there are too few."""
    from raycurate.data.training.training import read_training_data

    data = read_training_data(task["train"])
    texts = data.corpora[0].texts.to_pylist()
    rows = data.table.select(["question", "pos", "neg"]).to_pylist()
    found = {"anchor": [row["question"] for row in rows], "positive": [texts[row["pos"][0]] for row in rows]}
    for place in range(task["negatives"]):
        found[f"negative_{place}"] = [texts[row["neg"][place % len(row["neg"])]] for row in rows]
    return found


def run_task(path: str) -> None:
    """One training, in the process that `in_process` started for it."""
    import torch.multiprocessing as mp

    task = json.loads(Path(path).read_text())
    if task["system"] == LOCAL:
        mp.spawn(train_rank, args=(path, task), nprocs=RANKS)
        return
    outcome = (train_peer if task["system"] == PEER else train_ours)(task)
    Path(path).write_text(json.dumps(vars(outcome)))


def train_rank(rank: int, path: str, task: dict[str, Any]) -> None:
    """One of two ranks that share the batch, each with the passages of its own half for negatives."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    work = Path(task["work"])
    dist.init_process_group("gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=RANKS)
    outcome = train_ours(task)
    if rank == 0:
        Path(path).write_text(json.dumps(vars(outcome)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run_task(sys.argv[1])
