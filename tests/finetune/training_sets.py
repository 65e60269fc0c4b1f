"""Small training sets and a tiny model for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from raycurate.data.training.training import TrainingData, read_training_data, write_corpus
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.training.batches.options import PassageOptions
from raycurate.training.batches.prepared import Prepared, PrepareOptions, prepare
from tests.encoders.tiny import WORDS


def write_set(
    folder: Path, rows: list[dict[str, Any]], documents: dict[str, str], corpus_id: str = "c", **metadata: str
) -> str:
    """The path of a corpus-ID JSON with `rows` over a corpus of `documents`."""
    table = pa.table({"id": list(documents), "text": list(documents.values())})
    write_corpus(str(folder / corpus_id), corpus_id, table, **metadata)
    path = folder / f"{corpus_id}.json"
    given = [{"corpus_id": corpus_id, **row} for row in rows]
    path.write_text(json.dumps({"corpus": {"path": corpus_id}, "data": given}))
    return str(path)


def sentence(draw: random.Random, longest: int = 12) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))


def random_data(folder: Path, questions: int = 90, seed: int = 0, corpus_id: str = "c") -> TrainingData:
    """Questions with one to three positives and one to five negatives of 60 documents, sentences of known words."""
    draw = random.Random(seed)
    documents = {f"d{i}": sentence(draw) for i in range(60)}
    rows = []
    for i in range(questions):
        chosen = draw.sample(sorted(documents), 8)
        positives, negatives = chosen[: draw.randint(1, 3)], chosen[3 : 4 + draw.randint(0, 4)]
        rows.append({"question_id": f"q{i}", "question": sentence(draw, 6), "pos_doc": positives, "neg_doc": negatives})
    return read_training_data(write_set(folder, rows, documents, corpus_id))


def prepared_for(model: str, data: TrainingData, n_passages: int = 3, **options: Any) -> Prepared:
    passages = PassageOptions(
        n_passages=n_passages, **{k: options.pop(k) for k in ("cycle_positives", "teacher_scores") if k in options}
    )
    chosen = {"query_max_length": 16, "passage_max_length": 16} | options
    prompts = chosen.pop("prompts", None)
    contract = EmbeddingContract.from_checkpoint(model, prompts=prompts)
    how = PrepareOptions(passages=passages, **chosen)
    return prepare(data, EncoderOptions(model=model), contract, how, processes=1)
