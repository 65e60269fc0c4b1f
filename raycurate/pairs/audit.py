"""What mining did, question by question and as distributions of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.manifest import OutputFile
from raycurate.pairs.mining import MinedQuestion

SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "corpus_id": pa.string(),
        "positives": pa.int32(),
        "least_positive": pa.float32(),
        "bound": pa.float32(),
        "dropped": pa.int64(),
        "excluded": pa.int32(),
        "dropped_by_models": pa.int32(),
        "dropped_by_teacher": pa.int32(),
        "dropped_from_file": pa.int32(),
        "negatives": pa.int32(),
        "best_negative": pa.float32(),
        "last_negative": pa.float32(),
    }
)
"""dropped: documents above the bound (the first model's); excluded: documents left out for having the text of a
positive or of the question; best_negative, last_negative: scores, null without a negative."""

_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Audit:
    """Collects a row a question."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def add(self, mined: MinedQuestion, question_id: str, corpus_id: str) -> None:
        scores = [negative.score for negative in mined.negatives]
        row = {
            "question_id": question_id,
            "corpus_id": corpus_id,
            "positives": len(mined.positives),
            "least_positive": min(positive.score for positive in mined.positives),
            "bound": mined.bound if np.isfinite(mined.bound) else None,
            "dropped": mined.dropped,
            "excluded": mined.excluded,
            "dropped_by_models": mined.by_models,
            "dropped_by_teacher": mined.by_teacher,
            "dropped_from_file": mined.from_file,
            "negatives": len(scores),
            "best_negative": scores[0] if scores else None,
            "last_negative": scores[-1] if scores else None,
        }
        for name, value in row.items():
            self._columns[name].append(value)

    @property
    def table(self) -> pa.Table:
        return pa.table(self._columns, schema=SCHEMA)

    def write(self, output: str, name: str) -> OutputFile:
        """`audit/NAME.parquet` in `output`."""
        path = f"audit/{name}.parquet"
        with storage.open_output(storage.join(output, path)) as stream:
            pq.write_table(self.table, stream, compression="zstd")
            size = stream.tell()
        return OutputFile(path=path, size=size, rows=self.table.num_rows)

    def counts(self, wanted: int) -> dict[str, int]:
        """questions, negatives, how many questions have fewer than were wanted, and what was dropped."""
        table = self.table
        sums = {name: int(np.sum(table[name].to_numpy())) for name in ("negatives", "dropped", "excluded")}
        for name in ("dropped_by_models", "dropped_by_teacher", "dropped_from_file"):
            found = int(np.sum(table[name].to_numpy()))
            if found:
                sums[name] = found
        short = int((table["negatives"].to_numpy() < wanted).sum())
        none = int((table["negatives"].to_numpy() == 0).sum())
        return {"questions": table.num_rows, **sums, "questions_with_fewer": short, "questions_without": none}

    def distribution(self) -> dict[str, dict[str, float]]:
        """Quantiles of the scores: of positives (the least of each question), bounds and negatives."""
        found: dict[str, dict[str, float]] = {}
        for name in ("least_positive", "bound", "best_negative", "last_negative"):
            values = self.table[name].drop_null().to_numpy()
            if len(values):
                quantiles = np.quantile(values, _SHARES)
                found[name] = {f"{share:.0%}": round(float(q), 4) for share, q in zip(_SHARES, quantiles, strict=True)}
        return found


def distribution_lines(found: dict[str, dict[str, float]]) -> list[str]:
    """The distributions as a table."""
    if not found:
        return []
    heads = list(next(iter(found.values())))
    lines = [f"{'scores':<16}" + "".join(f"{head:>9}" for head in heads)]
    for name, values in found.items():
        lines.append(f"{name.replace('_', ' '):<16}" + "".join(f"{values[head]:9.4f}" for head in heads))
    return lines
