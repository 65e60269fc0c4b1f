"""An engine of its own: a text's vector is how often each letter stands in it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    """No model is loaded; `engine_kwargs: {case: true}` leaves capitals out."""

    accepts: Literal["tokens", "text"] = "text"

    def __init__(self, options: EncoderOptions) -> None:
        self.lower = not options.engine_kwargs.get("case", False)
        self.contract = EmbeddingContract(
            weights=f"letters-{'lower' if self.lower else 'case'}",
            tokenizer="characters",
            pooling="mean",
            normalize=False,
            attention="bidirectional",
            max_length=1_000_000,
            dimension=len(ALPHABET),
            engine="letters",
            dtype="float32",
        )

    def prepare(self, batch: list[str]) -> list[str]:
        return [text.lower() for text in batch] if self.lower else list(batch)

    def run(self, prepared: list[str]) -> np.ndarray:
        """float32 [n, 26]."""
        return np.array([[text.count(letter) for letter in ALPHABET] for text in prepared], np.float32)

    def close(self) -> None:
        """Nothing is held."""
