"""Mined questions as files: corpus-ID JSON with scores, and the same with one positive a row."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raycurate.core import storage
from raycurate.core.manifest import OutputFile
from raycurate.data.training.training import Corpus, TrainingData, write_corpus, write_corpus_id_json
from raycurate.pairs.audit import Audit
from raycurate.pairs.mining import MinedQuestion, Scored

MINED = "_mined.automodel.json"
UNROLLED = "_mined.automodel_unrolled.json"


def corpus_paths(data: TrainingData, output: str) -> tuple[list[dict[str, str]], list[OutputFile]]:
    """Where the corpora are, as a file in `output` names them; those written inline get a folder there."""
    listed, files = [], list[OutputFile]()
    for number, corpus in enumerate(data.corpora):
        path = corpus.path
        if not path:
            path = storage.join(output, f"corpus-{number}")
            table = pa.table({"id": corpus.ids, "text": corpus.texts})
            files += _relative(write_corpus(path, corpus.corpus_id, table), f"corpus-{number}")
        listed.append({"path": relative_path(path, output)})
    return listed, files


def _relative(files: Iterable[Any], folder: str) -> list[OutputFile]:
    return [file.model_copy(update={"path": f"{folder}/{os.path.basename(file.path)}"}) for file in files]


def relative_path(path: str, folder: str) -> str:
    """`path` (a folder) as a file in `folder` would name it; a URI that is not within stays as it is."""
    if storage.is_remote(path) or storage.is_remote(folder):
        root, full = storage.normalise(folder).rstrip("/") + "/", storage.normalise(path)
        return f"./{full.removeprefix(root)}/" if full.startswith(root) else full
    return f"./{os.path.relpath(path, folder)}/"


class MinedWriter:
    """Writes NAME_mined.automodel.json, then NAME_mined.automodel_unrolled.json and audit/NAME.parquet."""

    def __init__(self, output: str, name: str, corpora: list[dict[str, str]], arguments: Mapping[str, Any]) -> None:
        self._output, self._name, self._corpora = output, name, corpora
        self._arguments = dict(arguments)
        self.audit = Audit()

    def write(self, data: TrainingData, mined: Iterable[tuple[Corpus, MinedQuestion]]) -> list[OutputFile]:
        corpora: Any = self._corpora[0] if len(self._corpora) == 1 else self._corpora
        with tempfile.TemporaryFile("w+", encoding="utf-8") as kept:
            names = [f"{self._name}{MINED}", f"{self._name}{UNROLLED}"]
            paths = [storage.join(self._output, name) for name in names]
            rows = self._rows(data, mined, kept)
            counts = [write_corpus_id_json(paths[0], corpora, rows, extra={"mining": self._arguments})]
            kept.seek(0)
            counts.append(write_corpus_id_json(paths[1], corpora, unrolled(map(json.loads, kept))))
        files = [output_file(self._output, name, rows=count) for name, count in zip(names, counts, strict=True)]
        return [*files, self.audit.write(self._output, self._name)]

    def _rows(
        self, data: TrainingData, mined: Iterable[tuple[Corpus, MinedQuestion]], kept: Any
    ) -> Iterator[dict[str, Any]]:
        ids, questions = data.table["question_id"], data.table["question"]
        for corpus, found in mined:
            question_id = ids[found.at].as_py()
            self.audit.add(found, question_id, corpus.corpus_id)
            row = {
                "question_id": question_id,
                "question": questions[found.at].as_py(),
                "corpus_id": corpus.corpus_id,
                "pos_doc": _documents(corpus, found.positives),
                "neg_doc": _documents(corpus, found.negatives),
            }
            kept.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            yield row


def _documents(corpus: Corpus, found: list[Scored]) -> list[dict[str, Any]]:
    rows = []
    for name, document in zip(corpus.ids_of([s.row for s in found]), found, strict=True):
        row: dict[str, Any] = {"id": name, "score": plain(document.score)}
        if document.teacher_score is not None:
            row["teacher_score"] = plain(document.teacher_score)
        rows.append(row)
    return rows


def plain(score: float) -> float:
    """The shortest decimal that is this float32."""
    return float(str(np.float32(score)))


def unrolled(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One positive a row: question q1 with several becomes q1_0, q1_1, ... which share its negatives."""
    for row in rows:
        positives = row["pos_doc"] if isinstance(row["pos_doc"], list) else [row["pos_doc"]]
        for number, positive in enumerate(positives):
            name = row["question_id"] if len(positives) == 1 else f"{row['question_id']}_{number}"
            yield {**row, "question_id": name, "pos_doc": [positive]}


def output_file(output: str, path: str, *, rows: int | None = None) -> OutputFile:
    """What a manifest says of a file that was just written."""
    filesystem, inner = storage.filesystem(storage.join(output, path))
    return OutputFile(path=path, size=filesystem.get_file_info(inner).size, rows=rows)
