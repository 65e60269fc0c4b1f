"""Texts on which engines come apart, and the measure: cosine with transformers in float32."""

import json
from pathlib import Path

import numpy as np

ODD = [
    "",
    "x",
    "Ray Data streams rows through pools of actors.",
    "日本語の文書、中文文本 и русский текст; عربى",
    "naïve café — “quotes”, emoji 🙂🚀, zero\u200bwidth",
    "long text, cut at the model's length. " * 300,
    "SELECT id FROM t WHERE x >= 3;\n\tAND y <> 'q'",
]


def texts(shared: Path | None = None) -> list[str]:
    """The odd ones, and real documents where they are on the machine."""
    found = list(ODD)
    for name in ("peps", "tldr_pages", "wiki_vital_en"):
        path = shared / "corpora" / name / "corpus.jsonl" if shared else None
        if path and path.is_file():
            with path.open() as lines:
                found += [json.loads(line)["text"] for _, line in zip(range(8), lines, strict=False)]
    return found


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / norms).min())
