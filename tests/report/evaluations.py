"""An evaluation's output, written by hand in the format of `raycurate eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.report.outputs import write_manifest

K = (1, 5, 10, 100)
MEANS = {"bm25": 0.42, "base": 0.404, "finetuned": 0.546, "bm25+finetuned": 0.561}


def metrics(at_10: float) -> dict[str, dict[str, float]]:
    """All metrics of a system, made up from its nDCG@10 so that they grow with k where they must."""
    grow = dict(zip(K, (0.7, 0.93, 1.0, 1.12), strict=True))
    return {
        "NDCG": {f"NDCG@{k}": at_10 * grow[k] for k in K},
        "MAP": {f"MAP@{k}": at_10 * 0.9 * grow[k] for k in K},
        "Recall": {f"Recall@{k}": min(1.0, at_10 * (0.6, 1.1, 1.3, 1.65)[i]) for i, k in enumerate(K)},
        "Precision": {f"P@{k}": at_10 / k for k in K},
        "MRR": {f"MRR@{k}": at_10 * 0.92 * grow[k] for k in K},
    }


def per_query(queries: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """nDCG@10 of each query: system -> float64 [queries]."""
    random = np.random.default_rng(seed)
    base = np.clip(random.normal(0.4, 0.35, queries), 0, 1).round(3)
    change = np.where(random.random(queries) < 0.45, 0, random.normal(0.24, 0.3, queries))
    return {"base": base, "finetuned": np.clip(base + change, 0, 1).round(3)}


def hit(name: str, text: str, relevant: int, score: float) -> dict[str, Any]:
    return {"id": name, "title": name.upper(), "text": text, "relevant": relevant, "score": score}


def change(question: str, before: float, after: float, number: int) -> dict[str, Any]:
    hits = [
        hit(f"d{number}-{i}", f"What document {number}-{i} says about it.", int(i == 1), 0.9 - i / 10) for i in range(3)
    ]
    return {
        "system": "finetuned",
        "against": "base",
        "query_id": f"q{number}",
        "question": question,
        "from": before,
        "to": after,
        "difference": after - before,
        "before": hits,
        "after": hits[::-1],
    }


def comparison(system: str, against: str, difference: float, verdict: str) -> dict[str, Any]:
    return {
        "system": system,
        "against": against,
        "metric": "NDCG@10",
        "difference": difference,
        "low": difference - 0.03,
        "high": difference + 0.03,
        "p": 0.0001,
        "p_holm": 0.0003,
        "unit": "sources",
        "units": 152,
        "wins": 90,
        "ties": 80,
        "losses": 30,
        "verdict": verdict,
        "says": f"{system} finds the answers better than {against}: nDCG@10 {difference:+.3f}.",
    }


def drift(system: str, metric: str, difference: float, *, ok: bool) -> dict[str, Any]:
    asked = {"system": system, "against": "finetuned", "metric": metric}
    return {**asked, "difference": difference, "tolerance": 0.01, "ok": ok}


def write_evaluation(
    folder: Path, *, changes: Sequence[dict[str, Any]] | None = None, names: dict[str, float] | None = None
) -> Path:
    """The whole output in `folder`."""
    systems = MEANS if names is None else names
    folder.mkdir(parents=True)
    metadata = {
        "format": 1,
        "collection": {
            "name": "eval_beir",
            "path": "prep/eval_beir",
            "split": "test",
            "documents": 13_566,
            "queries": 200,
            "judgements": 212,
            "graded": False,
        },
        "k_values": list(K),
        "ignore_identical_ids": True,
        "systems": {
            name: {
                "kind": "dense",
                "model": f"models/{name}",
                "dimension": 384,
                "seconds": 12.5,
                "bytes_per_document": 1536,
            }
            for name in systems
        },
        "intervals": {name: {"NDCG@10": [mean - 0.027, mean + 0.026]} for name, mean in systems.items()},
        "comparisons": [
            comparison("finetuned", "base", 0.142, "improved"),
            comparison("finetuned", "bm25", 0.126, "improved"),
            comparison("base", "bm25", -0.016, "no difference"),
        ],
        "drift": [
            drift("served", "NDCG@10", -0.02, ok=False),
            drift("served", "MAP@10", 0.004, ok=True),
            drift("exported", "NDCG@10", 0.0, ok=True),
            drift("exported", "P@10", 0.002, ok=True),
        ],
        "missing": {"reranked": "there is no such file or folder"},
    }
    results = {**{name: metrics(mean) for name, mean in systems.items()}, "_metadata": metadata}
    (folder / "eval_results.json").write_text(json.dumps(results))
    scores = per_query()
    columns = {
        "system": [name for name in scores for _ in range(200)],
        "query_id": [f"q{n}" for _ in scores for n in range(200)],
        "answered": [True] * 400,
        "NDCG@10": np.concatenate([scores["base"], scores["finetuned"]]),
    }
    pq.write_table(pa.table(columns), folder / "per_query.parquet")
    given = [change(f"How is thing {n} done?", 0.1, 0.9 - n / 20, n) for n in range(4)] + [
        change(f"When does thing {n} fail?", 0.8, 0.3 - n / 20, n) for n in (5, 4)
    ]
    (folder / "changes.json").write_text(json.dumps(given if changes is None else list(changes)))
    write_manifest(folder, "eval", counts={"systems": len(systems), "queries": 200}, inputs=["prep/eval_beir"])
    return folder
