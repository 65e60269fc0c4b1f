"""Small outputs of every stage, written by hand in the stages' formats: no model and no Ray is needed to report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 8
DOCUMENTS = 120
REMOVED = 6
CLUSTERS = 4


def write_manifest(folder: Path, stage: str, *, created: str = "2026-11-22T01:00:00+00:00", **more: Any) -> None:
    """_manifest.json for what lies in the folder; Parquet files with their rows."""
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "_manifest.json"):
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
        files.append({"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "rows": rows})
    options = more.pop("options", {})
    manifest = {
        "format_version": 1,
        "key": {"stage": stage, "algorithm_version": 1, "input_fingerprint": "f", "options": options},
        "files": files,
        "settings": {"output": str(folder), **more.pop("settings", {})},
        "versions": {"raycurate": "0.1.0"},
        "created": created,
        "timings": {"read": 0.5, "wall": 12.0},
        **more,
    }
    (folder / "_manifest.json").write_text(json.dumps(manifest))


def name(number: int) -> str:
    return f"doc-{number:03}"


def text(number: int) -> str:
    """Texts of 3 to 122 words."""
    return " ".join(["word"] * (number + 2) + [f"text{number}"])


def vectors() -> np.ndarray:
    """Unit vectors, float32 [DOCUMENTS, DIM]; the last REMOVED nearly equal the first ones."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(DOCUMENTS, DIM)).astype(np.float32)
    rows[-REMOVED:] = rows[:REMOVED] + 0.02 * random.normal(size=(REMOVED, DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _embedded(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM)


def write_corpus(workdir: Path, texts: dict[str, str] | None = None) -> None:
    folder = workdir / "corpus"
    folder.mkdir(parents=True)
    given = {name(n): text(n) for n in range(DOCUMENTS)} | (texts or {})
    lines = [json.dumps({"id": key, "title": f"Title of {key}", "text": value}) for key, value in given.items()]
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(folder, "sample-corpus", counts={"documents": DOCUMENTS})


def write_embeddings(workdir: Path, model: str = "no/such-model") -> None:
    folder = workdir / "embeddings"
    folder.mkdir(parents=True)
    columns = {"id": [name(n) for n in range(DOCUMENTS)], "embeddings": _embedded(vectors())}
    pq.write_table(pa.table(columns), folder / "embeddings-0.parquet")
    write_manifest(
        folder,
        "embed",
        inputs=[str(workdir / "corpus")],
        options={"input": str(workdir / "corpus"), "model": model, "embedding_field": "embeddings"},
        counts={"documents": DOCUMENTS, "tokens": 9000, "truncated": 30},
        rejects={"empty_text": 2},
        contract={"max_length": 64, "document_template": "{title} {text}"},
    )


def write_clusters(workdir: Path) -> None:
    folder = workdir / "clusters"
    rows = vectors()
    for cluster in range(CLUSTERS):
        part = folder / f"centroid={cluster}"
        part.mkdir(parents=True)
        mine = np.arange(cluster, DOCUMENTS, CLUSTERS)
        columns = {
            "id": [name(n) for n in mine],
            "embeddings": _embedded(rows[mine]),
            "cosine_dist_to_cent": np.linspace(0.1, 0.5, len(mine), dtype=np.float32),
            "title": [f"Title of {name(n)}" for n in mine],
        }
        pq.write_table(pa.table(columns), part / "part-0.parquet")
    np.save(folder / "_kmeans_centroids.npy", rows[:CLUSTERS])
    write_manifest(
        folder,
        "kmeans",
        inputs=[str(workdir / "embeddings")],
        options={"id_field": "id", "embedding_field": "embeddings", "metadata_fields": ["title"]},
        counts={"rows": DOCUMENTS, "clusters": CLUSTERS},
    )


def write_dedup(workdir: Path) -> None:
    folder = workdir / "dedup"
    for part in ("duplicates", "edges"):
        (folder / part).mkdir(parents=True)
    pairs = [(name(DOCUMENTS - REMOVED + n), name(n), 0.99 - n / 1000) for n in range(REMOVED)]
    below = [(name(50), name(51), 0.93), (name(52), name(53), 0.945)]
    duplicates = dict(zip(("id", "kept_id", "cosine_sim_score"), map(list, zip(*pairs, strict=True)), strict=True))
    edges = dict(zip(("id", "earlier_id", "cosine"), map(list, zip(*pairs, *below, strict=True)), strict=True))
    for part, columns, score in (("duplicates", duplicates, "cosine_sim_score"), ("edges", edges, "cosine")):
        table = pa.table({**columns, score: pa.array(columns[score], pa.float32())})
        pq.write_table(table, folder / part / "part-0.parquet")
    write_manifest(
        folder,
        "dedup",
        inputs=[str(workdir / "clusters")],
        options={"eps": 0.05, "decision": "survivor", "score_floor": 0.9},
        settings={"sweep": {"0.01": 1, "0.03": 6, "0.1": 8}},
        counts={"rows": DOCUMENTS, "removed": REMOVED, "clusters": CLUSTERS, "edges": 8},
    )


def write_prep(workdir: Path, **options: Any) -> None:
    folder = workdir / "prep"
    for part in ("audit", "corpus"):
        (folder / part).mkdir(parents=True)
    audit = {
        "least_positive": pa.array([0.8, 0.6, 0.5, 0.4], pa.float32()),
        "best_negative": pa.array([0.5, 0.5, 0.4, None], pa.float32()),
        "dropped": [0, 3, 10, 200],
        "negatives": pa.array([5, 5, 5, 0], pa.int32()),
    }
    pq.write_table(pa.table(audit), folder / "audit" / "train.parquet")
    documents = {"id": ["d_a", "d_b"], "text": ["The positive's text.", "The negative's text."]}
    pq.write_table(pa.table(documents), folder / "corpus" / "train.parquet")
    row = {"question_id": "q0", "question": "What is asked?", "corpus_id": "corpus"}
    row |= {"pos_doc": [{"id": "d_a", "score": 0.8}], "neg_doc": [{"id": "d_b", "score": 0.5}]}
    lines = ["{", '"corpus": {"path": "./corpus/"},', '"data": [', json.dumps(row), "]", "}"]
    (folder / "train_mined.automodel.json").write_text("\n".join(lines) + "\n")
    write_manifest(
        folder,
        "prep",
        inputs=[str(workdir / "dedup")],
        options={"hard_neg_margin_type": "perc", "hard_neg_margin": None, "hard_negatives_to_mine": 5, **options},
        settings={"summary": ["leak      0.00% of 10 test questions were trained on in some form"]},
        counts={
            "pairs": 130,
            "corpus_documents": 114,
            "train_questions": 80,
            "val_questions": 10,
            "test_questions": 10,
            "left_out_short_passage": 30,
        },
    )


def log_lines(steps: int = 40) -> str:
    """A training's log: the loss falls from 2 by 0.04 a step; two validations."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rows.append({"step": step, "loss": 2 - 0.04 * step, "grad_norm": 2.0, "learning_rate": 1e-4 / step})
        if step % 20 == 0:
            rows.append({"step": step, "val_loss": 1.5 - step / 100, "val_mrr": 0.4 + step / 200})
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_finetune(workdir: Path, *, ended: bool = True) -> None:
    folder = workdir / "finetune"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(log_lines())
    if not ended:
        return
    for step, score in ((20, 0.5), (40, 0.46)):
        checkpoint = folder / "checkpoints" / f"epoch_0_step_{step}"
        checkpoint.mkdir(parents=True)
        found = {"epoch": 0, "step": step, "metrics": {"dev_ndcg10": score, "dev_recall10": score + 0.1}}
        (checkpoint / "checkpoint.json").write_text(json.dumps(found))
    write_manifest(
        folder,
        "finetune",
        inputs=[str(workdir / "prep" / "train_mined.automodel.json")],
        options={"model": "all-MiniLM-L6-v2", "global_batch_size": 32, "loss": "cross_rank", "max_grad_norm": 1.0},
        settings={
            "best": "epoch_0_step_20",
            "metric": "dev_ndcg10",
            "metrics": {"dev_ndcg10": 0.5, "dev_recall10": 0.6},
            "base_metrics": {"dev_ndcg10": 0.4, "dev_recall10": 0.55},
        },
        counts={"questions": 80, "steps": 40, "epochs": 1, "checkpoints": 2, "workers": 1},
    )


def write_run(workdir: Path, **texts: str) -> Path:
    """All stages up to the training; `texts`: of further documents, by id."""
    write_corpus(workdir, texts)
    write_embeddings(workdir)
    write_clusters(workdir)
    write_dedup(workdir)
    write_prep(workdir)
    write_finetune(workdir)
    return workdir
