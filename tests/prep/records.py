"""Question/answer records of the tests' own: small, with everything that a conversion has to tell apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [f"word{number}" for number in range(120)]


def records(files: int = 30, chunks: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Records of `files` source files: chunks of random words, questions of words of one or two of them."""
    random = np.random.default_rng(seed)
    made = []
    for file in range(files):
        texts = [" ".join(random.choice(WORDS, 12)) for _ in range(chunks)]
        pairs, evaluations = [], []
        for number in range(chunks):
            segments = [number + 1] if number % 2 else [number + 1, (number + 1) % chunks + 1]
            words = [word for s in segments for word in random.choice(texts[s - 1].split(), 3)]
            pairs.append({"question": f"what of {' '.join(words)} in {file}?", "answer": "a", "segment_ids": segments})
            evaluations.append({"overall": {"score": 9.0 if (file + number) % 5 else 3.0, "assessment": ""}})
        made.append(
            {
                "file_name": [f"file{file}.md"],
                "chunks": [{"text": text, "chunk_id": number + 1} for number, text in enumerate(texts)],
                "deduplicated_qa_pairs": pairs,
                "qa_evaluations": {"evaluations": evaluations},
            }
        )
    return made


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return path
