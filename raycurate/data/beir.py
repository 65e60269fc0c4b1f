"""Retrieval test sets in the layout of BEIR: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

(Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models", 2021.)
Reading is strict where a fault would give a wrong score in silence: a judged document that the corpus lacks can never
be found, so ids that are missing are an error and not a lower number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.errors import InputError, nearest
from raycurate.core.manifest import OutputFile
from raycurate.data.ids import id_text
from raycurate.data.inline import strict_json
from raycurate.data.training_lines import json_lines
from raycurate.data.training_report import NAMED, Problems

QRELS_HEADER = "query-id\tcorpus-id\tscore"
_BATCH_ROWS = 16_384
_CORPUS = pa.schema([("_id", pa.string()), ("title", pa.large_string()), ("text", pa.large_string())])
_QUERIES = pa.schema([("_id", pa.string()), ("text", pa.string()), ("metadata", pa.string())])


@dataclass(frozen=True, eq=False)
class BeirData:
    """One split of a test set.

    `corpus` has _id, title ("" where there is none) and text; `queries` has _id, text and metadata (an object as JSON)
    of the queries that the split judges; both in file order. `qrels` is {query id: {document id: relevance}}.
    """

    corpus: pa.Table
    queries: pa.Table
    qrels: dict[str, dict[str, int]]


def splits_of(folder: str) -> list[str]:
    """Names of the splits that have judgements, sorted."""
    qrels = storage.join(folder, "qrels")
    if not storage.is_dir(qrels):
        return []
    names = [e.path.rpartition("/")[2] for e in storage.list_files(qrels, recursive=False)]
    return sorted(n.removesuffix(".tsv") for n in names if n.endswith(".tsv"))


def read_beir(folder: str, split: str = "test") -> BeirData:
    """Read one split of a BEIR folder, local or remote.

    Raises:
        InputError: everything that is wrong with its files: lines, duplicate ids, judged ids that are not there.
    """
    known = splits_of(folder)
    if split not in known:
        close = nearest(split, known)
        hint = f"Did you mean '{close}'?" if close else f"Splits: {', '.join(known) or 'none'}"
        raise InputError(f"there is no split '{split}' (qrels/{split}.tsv)", where=folder, fix=hint)
    problems = Problems(f"the test set {folder}")
    qrels = _read_qrels(storage.join(folder, "qrels", f"{split}.tsv"), problems)
    corpus = _read_table(storage.join(folder, "corpus.jsonl"), _CORPUS, problems)
    queries = _read_table(storage.join(folder, "queries.jsonl"), _QUERIES, problems)
    judged = {document for documents in qrels.values() for document in documents}
    for ids, table, name in ((judged, corpus, "corpus.jsonl"), (set(qrels), queries, "queries.jsonl")):
        wanted = pa.array(sorted(ids), pa.string())
        gone = wanted.filter(pc.invert(pc.is_in(wanted, value_set=table["_id"])))
        if len(gone):
            named = ", ".join(repr(n) for n in gone.slice(0, NAMED).to_pylist())
            more = f" and {len(gone) - NAMED:,} more" if len(gone) > NAMED else ""
            where = storage.join(folder, "qrels", f"{split}.tsv")
            problems.add("judged ids that are not there", where, f"{name} lacks {named}{more}", times=len(gone))
    problems.raise_if_any()
    judged = pa.array(list(qrels), pa.string())
    return BeirData(corpus, queries.filter(pc.is_in(queries["_id"], value_set=judged)), qrels)


def _read_table(path: str, schema: pa.Schema, problems: Problems) -> pa.Table:
    """corpus.jsonl or queries.jsonl; what is wrong is noted."""
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, str]] = []
    if not storage.exists(path):
        problems.add("missing files", path, "there is no such file")
        return schema.empty_table()
    for line, value in json_lines(storage.list_files(path)[0], problems):
        fault = _fault(value)
        if fault:
            problems.add("bad rows", f"{path}:{line}", fault)
            continue
        row = {name: value.get(name) or "" for name in schema.names}
        row["_id"] = id_text(value["_id"]) or ""
        if "metadata" in row:
            row["metadata"] = json.dumps(value.get("metadata") or {}, ensure_ascii=False)
        rows.append(row)
        if len(rows) >= _BATCH_ROWS:
            batches.append(pa.RecordBatch.from_pylist(rows, schema))
            rows = []
    batches.append(pa.RecordBatch.from_pylist(rows, schema))
    table = pa.Table.from_batches(batches, schema)
    counts = pc.value_counts(table["_id"])
    for name in counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        problems.add("duplicate ids", path, f"the _id {name!r} stands more than once")
    return table


def _fault(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "a row must be an object"
    if id_text(value.get("_id")) is None:
        return "'_id' must be a string"
    for name in ("text", "title"):
        text = value.get(name, None if name == "text" else "")
        if not isinstance(text, str) and not (name == "title" and text is None):
            return f"'{name}' must be a string"
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            return f"'{name}' has half a surrogate pair, which UTF-8 cannot carry"
    return None


def _read_qrels(path: str, problems: Problems) -> dict[str, dict[str, int]]:
    """Judgements; the first line is a header when its third field is no whole number, whatever it says."""
    qrels: dict[str, dict[str, int]] = {}
    try:
        lines = storage.read_bytes(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        problems.add("bad rows", path, f"it is not UTF-8 ({error.reason})")
        return qrels
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip():
            continue
        if len(fields) != 3 or not _is_whole(fields[2]):
            if number > 1:
                problems.add("bad rows", f"{path}:{number}", "a row is query-id, corpus-id and a whole score, by tabs")
            continue
        query, document, score = fields
        if qrels.setdefault(query, {}).setdefault(document, int(score)) != int(score):
            problems.add("bad rows", f"{path}:{number}", f"{query!r}, {document!r} has two different scores")
    return qrels


def _is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def write_beir(
    folder: str,
    *,
    corpus: Iterable[Mapping[str, Any]],
    queries: Iterable[Mapping[str, Any]],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> list[OutputFile]:
    """Write a test set.

    Args:
        folder: local, or a URI.
        corpus: objects with _id and text; `title` "" and `metadata` {} where they have none.
        queries: objects with _id and text; `metadata` {} where they have none.
        qrels: {split: {query id: {document id: relevance}}}; a file is written for each split, empty ones too.

    Returns:
        The files, their paths relative to `folder`.

    Raises:
        InputError: something that JSON or a table of tabs cannot carry.
    """
    wanted = {"corpus.jsonl": (corpus, {"title": "", "text": "", "metadata": {}})}
    wanted["queries.jsonl"] = (queries, {"text": "", "metadata": {}})
    files = []
    for name, (rows, defaults) in wanted.items():
        path, count = storage.join(folder, name), 0
        with storage.open_output(path) as stream:
            for count, row in enumerate(rows, start=1):
                stream.write(strict_json({"_id": row["_id"], **defaults, **row}, f"{path}:{count}") + b"\n")
        files.append(OutputFile(path=name, size=storage.list_files(path)[0].size, rows=count))
    for split, judged in qrels.items():
        path, lines = storage.join(folder, "qrels", f"{split}.tsv"), [QRELS_HEADER]
        for query, documents in judged.items():
            for document, score in documents.items():
                if any(mark in query + document for mark in "\t\n\r"):
                    raise InputError(f"the id {query!r} or {document!r} has a tab or a line break", where=path)
                lines.append(f"{query}\t{document}\t{score}")
        storage.write_text(path, "\n".join(lines) + "\n")
        size = storage.list_files(path)[0].size
        files.append(OutputFile(path=f"qrels/{split}.tsv", size=size, rows=len(lines) - 1))
    return files
