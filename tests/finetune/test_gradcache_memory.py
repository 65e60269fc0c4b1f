"""GradCache's promise, on a real model: a batch of any size in the memory of a small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycurate.data.training.training import read_training_data
from tests.finetune.peak_memory import measure
from tests.finetune.training_sets import prepared_for, write_set

PAIRS = 1024
TOKENS = 64


def passages_of_prose(count: int, words: int) -> list[str]:
    """Distinct texts of so many words: what NumPy says of its functions."""
    prose: list[str] = []
    for name in sorted(dir(np)):
        prose += (getattr(np, name).__doc__ or "").split()
    prose = prose[: count * words]
    assert len(prose) == count * words
    return [" ".join(prose[i * words : (i + 1) * words]) for i in range(count)]


@pytest.mark.slow
def test_a_batch_of_1024_takes_the_memory_of_a_batch_of_64(minilm: str, tmp_path: Path):
    texts = passages_of_prose(2 * PAIRS, 50)  # more than 64 tokens, so that all are cut to 64
    documents = {f"d{i}": text for i, text in enumerate(texts[:PAIRS])}
    rows: list[dict[str, Any]] = [
        {"question": text, "pos_doc": [f"d{i}"], "neg_doc": []} for i, text in enumerate(texts[PAIRS:])
    ]
    data = read_training_data(write_set(tmp_path, rows, documents), require_negatives=False)
    prepared = prepared_for(
        minilm, data, 1, query_max_length=TOKENS, passage_max_length=TOKENS, data_cache=str(tmp_path / "cache")
    )
    assert np.median(prepared.queries.lengths) == np.median(prepared.documents.lengths) == TOKENS
    plain = measure(minilm, prepared.folder, global_batch_size=64)
    cached = measure(minilm, prepared.folder, global_batch_size=PAIRS, local_batch_size=64)
    above = {name: found["peak"] - found["idle"] for name, found in (("plain", plain), ("cached", cached))}
    print(f"MiB above idle: {above['plain']:.0f} for 64 at once, {above['cached']:.0f} for {PAIRS} through GradCache")
    assert cached["tokens"] == 2 * PAIRS * TOKENS and cached["tokens"] >= 16 * plain["tokens"] > 0
    assert above["cached"] <= 1.3 * above["plain"]
