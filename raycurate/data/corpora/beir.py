"""Retrieval test sets in the layout of BEIR: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

(Thakur et al., "BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models", 2021.)
Reading is strict where a fault would give a wrong score in silence: a judged document that the corpus lacks can never
be found, so ids that are missing are an error and not a lower number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.errors import InputError, nearest
from raycurate.core.manifest import OutputFile
from raycurate.data.documents.ids import id_text
from raycurate.data.training.inline import strict_json
from raycurate.data.training.training_lines import json_lines
from raycurate.data.training.training_report import NAMED, Problems

QRELS_HEADER = "query-id\tcorpus-id\tscore"
_COLUMNS = (3, 4)
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
    where = storage.join(folder, "qrels", f"{split}.tsv")
    qrels, header = _read_qrels(where, problems)
    corpus = _read_table(storage.join(folder, "corpus.jsonl"), _CORPUS, problems)
    queries = _read_table(storage.join(folder, "queries.jsonl"), _QUERIES, problems)
    judged = {document for documents in qrels.values() for document in documents}
    for ids, table, name in ((judged, corpus, "corpus.jsonl"), (set(qrels), queries, "queries.jsonl")):
        wanted = pa.array(sorted(ids), pa.string())
        gone = wanted.filter(pc.invert(pc.is_in(wanted, value_set=table["_id"])))
        if len(gone):
            named = ", ".join(repr(n) for n in gone.slice(0, NAMED).to_pylist())
            more = f" and {len(gone) - NAMED:,} more" if len(gone) > NAMED else ""
            problems.add("judged ids that are not there", where, f"{name} lacks {named}{more}", times=len(gone))
    if header and (_holds(queries, header[0]) or _holds(corpus, header[-2])):
        problems.add(
            "bad rows", where, f"its first line has ids that are there, and the score {header[-1]!r} is no number"
        )
    problems.raise_if_any()
    judged = pa.array(list(qrels), pa.string())
    return BeirData(corpus, queries.filter(pc.is_in(queries["_id"], value_set=judged)), qrels)


def require_judgements(data: BeirData, folder: str, split: str) -> BeirData:
    """The same data.

    Raises:
        InputError: nothing is judged.
    """
    if any(data.qrels.values()):
        return data
    raise InputError(
        "there is no judgement",
        where=storage.join(folder, "qrels", f"{split}.tsv"),
        fix="Each line names a query, a document and a score; another file of that folder is chosen with split",
    )


def _holds(table: pa.Table, name: str) -> bool:
    found: bool = pc.any(pc.equal(table["_id"], name)).as_py() or False
    return found


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


def _read_qrels(path: str, problems: Problems) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Judgements, and the fields of the line before them where it is none: a header, whatever it says.

    A line is query, document, score, or with a column between query and document, as TREC's tools have it; by tabs, or
    by white space where it has no tab. A score is a whole number, 1.0 too.
    """
    qrels: dict[str, dict[str, int]] = {}
    header: tuple[str, ...] = ()
    try:
        lines = re.split("\r\n|\n|\r", storage.read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problems.add("bad rows", path, f"it is not UTF-8 ({error.reason})")
        return qrels, header
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if not qrels and not header and not problems and len(fields) in _COLUMNS and not _is_number(fields[-1]):
            header = tuple(fields)
            continue
        fault = _fault_of_judgement(fields)
        if fault:
            problems.add("bad rows", f"{path}:{number}", fault)
            continue
        query, document, score = fields[0], fields[-2], int(float(fields[-1]))
        if qrels.setdefault(query, {}).setdefault(document, score) != score:
            problems.add("bad rows", f"{path}:{number}", f"{query!r}, {document!r} has two different scores")
    return qrels, header


def _fault_of_judgement(fields: list[str]) -> str | None:
    if len(fields) not in _COLUMNS:
        return "a row is query-id, corpus-id and score, or has one column between the two ids; by tabs or spaces"
    if not _is_number(fields[-1]) or not float(fields[-1]).is_integer():
        return f"the score {fields[-1]!r} is no whole number"
    if not fields[0].strip() or not fields[-2].strip():
        return "an id is empty"
    return None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", text) is not None


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
