"""Small question/answer records of the form that SDG tools write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def pair(question: str, segments: Sequence[int], **more: Any) -> dict[str, Any]:
    return {
        "question": question,
        "answer": f"answer to {question}",
        "question_complexity": 3,
        "query_type": "contextual",
        "reasoning_type": "factual",
        "segment_ids": list(segments),
        "hop_count": len(segments),
        "hop_contexts": [{"hop_number": 1, "segment_ids": list(segments), "summary": "s"}],
        **more,
    }


def record(
    name: str | list[str],
    chunks: Sequence[str],
    pairs: Sequence[dict[str, Any]],
    scores: Sequence[float],
    first: int = 1,
) -> dict[str, Any]:
    """A record whose chunks are numbered from `first`."""
    return {
        "file_name": [name] if isinstance(name, str) else name,
        "source_id": "-".join([name] if isinstance(name, str) else name),
        "text": " ".join(chunks),
        "chunks": [{"text": text, "chunk_id": number} for number, text in enumerate(chunks, first)],
        "deduplicated_qa_pairs": list(pairs),
        "qa_evaluations": {"evaluations": [{"overall": {"score": s, "assessment": "ok"}} for s in scores]},
    }


def corpus(files: int, pairs: int = 2) -> list[dict[str, Any]]:
    """Records of so many files, with three chunks each and one question a chunk, all good."""
    found = []
    for n in range(files):
        chunks = [f"File {n} tells about topic {n}-{c} in some words of its own." for c in range(3)]
        asked = [pair(f"What does file {n} tell about topic {n}-{p}?", [p % 3 + 1]) for p in range(pairs)]
        found.append(record(f"docs/{n:03}.txt", chunks, asked, [8.0] * pairs))
    return found


def write_jsonl(path: Path, records: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)
