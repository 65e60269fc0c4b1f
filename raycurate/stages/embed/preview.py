"""A look at what came out: the nearest documents of a few queries, read file by file."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.manifest import require_whole
from raycurate.encoders.embed_options import EmbedConfig

SHOWN = 3


def nearest_documents(config: EmbedConfig) -> str:
    """The best documents for each query of `config.show_neighbours`, as text; empty when there is none.

    The queries are embedded with the same model in a Ray task, with its query prompt; scores are cosines.
    """
    if not config.show_neighbours:
        return ""
    import ray

    from raycurate.ray_runtime.cluster import ensure_ray, remote_task

    ensure_ray("show_neighbours")
    task = remote_task(_search, name="Neighbours", num_cpus=0.5)
    found = ray.get(task.remote(config, list(config.show_neighbours)))
    lines = []
    for query, hits in zip(config.show_neighbours, found, strict=True):
        lines.append(f"\nnearest to: {query}")
        lines += [f"  {score:.3f}  {textwrap.shorten(str(label), 110)}" for score, label in hits]
    return "\n" + "\n".join(lines)


def _search(config: EmbedConfig, queries: list[str]) -> list[list[tuple[float, Any]]]:
    from raycurate.encoders.base import encode, load_encoder
    from raycurate.models.tokenize import Tokenizer

    options = config.model_copy(update={"role": "query", "prefix": None, "device": "cpu"})
    encoder = load_encoder(options)
    inputs = Tokenizer(options, encoder.contract)(queries)[0] if encoder.accepts == "tokens" else queries
    vectors_QD = np.asarray(encode(encoder, inputs))
    vectors_QD = vectors_QD / np.linalg.norm(vectors_QD, axis=1, keepdims=True)
    best: list[list[tuple[float, Any]]] = [[] for _ in queries]
    label = "title" if "title" in config.metadata_fields else "id"
    for listed in require_whole(config.output).files:
        if not listed.path.endswith(".parquet"):
            continue
        filesystem, inner = storage.filesystem(storage.join(config.output, listed.path))
        for batch in pq.ParquetFile(inner, filesystem=filesystem).iter_batches(
            8192, columns=[label, config.embedding_field]
        ):
            labels = batch.column(label)
            column = batch.column(config.embedding_field)
            documents_ND = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
            scores_QN = vectors_QD @ documents_ND.T / np.linalg.norm(documents_ND, axis=1)
            for row, scores in enumerate(scores_QN):
                top = np.argsort(-scores)[:SHOWN]
                best[row] = sorted(best[row] + [(float(scores[i]), labels[int(i)].as_py()) for i in top], key=_score)[
                    :SHOWN
                ]
    encoder.close()
    return best


def _score(hit: tuple[float, Any]) -> float:
    return -hit[0]
