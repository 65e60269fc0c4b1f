"""A small encoder of the tests' own: vectors from hashed words, known without any model.

It is loaded by name (`engine=tests.embed.hashing:HashEncoder`), as a user's own engine would be.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions

DIMENSION = 16


def hash_vector(text: str) -> np.ndarray:
    """The vector of a text: its words counted in 16 buckets by crc32; float32 [16]."""
    vector = np.zeros(DIMENSION, np.float32)
    for word in text.split():
        vector[zlib.crc32(word.encode()) % DIMENSION] += 1
    return vector


class HashEncoder:
    """engine_kwargs: `delay` seconds a block; `poison` a word that gives NaN; `pids` a folder that each
    actor leaves its process id in; `log` a file that gets one line a document encoded."""

    accepts: Literal["tokens", "text"] = "text"

    def __init__(self, options: EncoderOptions) -> None:
        self.kwargs: dict[str, Any] = options.engine_kwargs
        self.contract = EmbeddingContract(
            weights="hash",
            tokenizer="words",
            pooling="mean",
            modules=[],
            normalize=False,
            attention="bidirectional",
            prompts={},
            max_length=1_000_000,
            dimension=DIMENSION,
            engine="hashing",
            dtype="float32",
        )
        if "pids" in self.kwargs:
            Path(self.kwargs["pids"], str(os.getpid())).touch()

    def prepare(self, batch: Any) -> list[str]:
        return list(batch)

    def run(self, prepared: list[str]) -> np.ndarray:
        time.sleep(self.kwargs.get("delay", 0))
        if "log" in self.kwargs:
            with open(self.kwargs["log"], "a") as log:
                log.write("".join(f"{zlib.crc32(text.encode())}\n" for text in prepared))
        vectors = np.stack([hash_vector(text) for text in prepared])
        poison = self.kwargs.get("poison")
        for row, text in enumerate(prepared):
            if poison and poison in text.split():
                vectors[row, 0] = np.nan
        return vectors

    def close(self) -> None:
        """Nothing is held."""


class HashTokens(HashEncoder):
    """A vector for each word, as a multi-vector model gives one for each token."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__(options)
        self.contract = self.contract.model_copy(update={"pooling": "multi_vector"})

    def run(self, prepared: list[str]) -> list[np.ndarray]:  # type: ignore[override]
        whole = super().run(prepared)  # logs, and has NaN for poison
        words = [np.stack([hash_vector(word) for word in text.split()]) for text in prepared]
        return [rows if np.isfinite(one).all() else rows * np.nan for rows, one in zip(words, whole, strict=True)]
