"""Synthetic question/answer records in: JSON Lines, a JSON array, Parquet, or a folder of them.

    for found in read_sdg("sdg/"):         # SdgRecord, or Reject for what cannot be used

The records come from several tools and versions of them, so reading is lenient where nothing is lost by it: types
outside their enums, hop contexts as strings, a file name that is no list, a missing source_id or text, chunk ids
that start anywhere. What cannot be understood is yielded as a `Reject` with its file and line, never dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.manifest import OLD_REJECTS, OWN_FILES
from raycurate.data.documents.parquet_schema import check_names
from raycurate.data.documents.reading import Lines
from raycurate.data.documents.rows import encodable, excerpt
from raycurate.data.documents.segments import Kind, Segment, extension_of, kind_of

EXTENSIONS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".parquet")
GENERATION_RESULT = "generation_result.json"
_NOT_RECORDS = OWN_FILES | {GENERATION_RESULT}
_MAX_LINE_BYTES = 1 << 30
_PARQUET_ROWS = 64


@dataclass(frozen=True, slots=True)
class Reject:
    """What could not be used: the file, its line (or record) counted from 1 (0: the whole file), and why."""

    file: str
    line: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class QaPair:
    """A question with the chunks that answer it; what the writer left out is None.

    `segment_ids` are `chunk_id`s of the same record, each once, in the order given. `score` is the overall score of
    the evaluation at the same place, None where there is none.
    """

    question: str
    segment_ids: tuple[int, ...]
    answer: str | None = None
    query_type: str | None = None
    reasoning_type: str | None = None
    question_complexity: int | float | None = None
    hop_count: int | None = None
    hop_contexts: Any = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class SdgRecord:
    """One source file or bundle. `chunks`: text by chunk_id. `misaligned`: says how many evaluations there are for
    how many pairs, where these differ and so none can be told to be whose."""

    file_name: tuple[str, ...]
    chunks: Mapping[int, str]
    pairs: tuple[QaPair, ...]
    origin: str
    source_id: str | None = None
    misaligned: str | None = None
    problems: tuple[Reject, ...] = field(default=())


class _BadRecordError(ValueError):
    """A record that cannot be understood; args: reason, detail."""


def read_sdg(path: str | Sequence[str]) -> Iterator[SdgRecord | Reject]:
    """The records of a file, a folder, a glob, a list of them, or of the output that a generation_result.json names.

    Files are read in the order of their paths, whatever order they were given in.

    Raises:
        InputError: nothing is there, or no file of a supported kind.
    """
    for file in list_sdg(path):
        extension = extension_of(file)
        if extension == ".parquet":
            values = _parquet_values(file)
        elif extension == ".json":
            values = _json_values(file)
        else:
            values = _line_values(file)
        for line, value in values:
            yield value if isinstance(value, Reject) else _record_or_reject(value, file, line)


def list_sdg(path: str | Sequence[str]) -> list[str]:
    """The files that `read_sdg` reads, sorted.

    Raises:
        InputError: nothing is there, or no file of a supported kind.
    """
    found: set[str] = set()
    inputs = [path] if isinstance(path, str) else list(path)
    for one in inputs:
        if one.rstrip("/").rpartition("/")[2] == GENERATION_RESULT:
            found |= set(list_sdg(_named_output(one)))
            continue
        root = storage.normalise(one)
        for entry in storage.list_files(one):
            relative = entry.path[len(root) :].strip("/") if entry.path.startswith(root + "/") else ""
            name = relative.rpartition("/")[2]
            hidden = any(part.startswith((".", "_")) or part == OLD_REJECTS for part in relative.split("/"))
            named_itself = not relative and entry.path == root
            if named_itself or not (hidden or name in _NOT_RECORDS or extension_of(entry.path) not in EXTENSIONS):
                found.add(entry.path)
    if not found:
        raise InputError(
            f"no file of question/answer records; {', '.join(EXTENSIONS)} are read",
            where=", ".join(inputs[:3]),
            fix="Give the output of `raycurate sdg`, or a file of such records",
        )
    return sorted(found)


def _named_output(path: str) -> str:
    """`output_path` of a generation_result.json; a relative one is beside it."""
    try:
        named = json.loads(storage.read_text(path))["output_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"it names no output_path ({error})", where=path, fix="Give the records themselves") from error
    if not isinstance(named, str) or not named:
        raise InputError(f"output_path is {named!r}", where=path, fix="Give the records themselves")
    if storage.is_remote(named) or named.startswith("/"):
        return named
    return storage.join(storage.normalise(path).rpartition("/")[0], named)


# --- values, each with its line -------------------------------------------------------------------


def _line_values(path: str) -> Iterator[tuple[int, Any]]:
    """The values of JSON Lines; of a JSON array that is called .jsonl, its members."""
    _, compression = kind_of(path)
    lines = Lines(Segment(0, path, 0, Kind.JSONL, compression), _MAX_LINE_BYTES)
    number = 0
    try:
        for number, (_, data, length) in enumerate(lines, 1):
            line = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
            if not line or line.isspace():
                continue
            if number == 1 and line.lstrip().startswith(b"[") and compression is None:
                yield from _json_values(path)
                return
            if length > len(data):
                yield number, Reject(path, number, "too_long", f"{length} bytes: {excerpt(line)}")
                continue
            yield number, _parsed(line, path, number)
    except (OSError, pa.ArrowException) as error:
        yield 0, Reject(path, number + 1, "unreadable_file", encodable(str(error)))


def _loads(data: bytes) -> Any:
    """JSON, its NaN and infinities (which Python writes and JSON does not have) read as null."""
    return json.loads(data.decode("utf-8"), parse_constant=lambda _: None)


def _parsed(line: bytes, path: str, number: int) -> Any:
    try:
        return _loads(line)
    except UnicodeDecodeError as error:
        return Reject(path, number, "undecodable", f"byte {error.start}: {excerpt(line)}")
    except (ValueError, RecursionError) as error:
        return Reject(path, number, "invalid_json", f"{error}: {excerpt(line)}")


def _json_values(path: str) -> Iterator[tuple[int, Any]]:
    """The members of a JSON array, a single object, or JSON Lines in a file that is called .json."""
    data = storage.read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    try:
        value = _loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is one
        if data.lstrip().startswith(b"{") and b"\n" in data.strip():
            parsed = [(n, _parsed(line, path, n)) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
            if not isinstance(parsed[0][1], Reject):
                yield from parsed
                return
        yield 0, Reject(path, 0, "invalid_json", f"{error}: {excerpt(data)}")
        return
    yield from enumerate(value, 1) if isinstance(value, list) else [(1, value)]


def _parquet_values(path: str) -> Iterator[tuple[int, Any]]:
    filesystem, inner = storage.filesystem(path)
    number = 0
    try:
        with filesystem.open_input_file(inner) as source:
            file = pq.ParquetFile(source)
            check_names(file.schema_arrow, path)
            for batch in file.iter_batches(_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield number, value
    except (OSError, pa.ArrowException) as error:
        yield 0, Reject(path, number + 1, "unreadable_file", encodable(str(error)))


# --- values to records ----------------------------------------------------------------------------


def _record_or_reject(value: Any, path: str, line: int) -> SdgRecord | Reject:
    try:
        return _record(value, path, line)
    except _BadRecordError as error:
        reason, detail = error.args
        return Reject(path, line, reason, encodable(detail))


def _record(value: Any, path: str, line: int) -> SdgRecord:
    if not isinstance(value, dict):
        raise _BadRecordError("not_an_object", f"a {type(value).__name__}: {excerpt(str(value))}")
    value = {key: _unpacked(content) for key, content in value.items()}
    file_name = _file_name(value)
    given, evaluations = _pairs_given(value), _evaluations(value)
    misaligned = None
    if evaluations is not None and len(evaluations) != len(given):
        misaligned, evaluations = f"{len(evaluations)} evaluations for {len(given)} pairs", None
    pairs, problems = [], []
    for index, pair in enumerate(given):
        try:
            pairs.append(_pair(pair, evaluations[index] if evaluations else None))
        except _BadRecordError as error:
            reason, detail = error.args
            problems.append(Reject(path, line, reason, encodable(f"pair {index + 1}: {detail}")))
    return SdgRecord(
        file_name=file_name,
        chunks=_chunks(value.get("chunks")),
        pairs=tuple(pairs),
        origin=f"{path}:{line}",
        source_id=None if value.get("source_id") is None else str(value["source_id"]),
        misaligned=misaligned,
        problems=tuple(problems),
    )


def _unpacked(value: Any) -> Any:
    """Nested columns that a writer of flat tables kept as JSON text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value  # a text that happens to begin so
    return value


def _file_name(value: Mapping[str, Any]) -> tuple[str, ...]:
    for key in ("file_name", "bundle_members", "source_id"):
        found = value.get(key)
        names = found if isinstance(found, list) else [found]
        if names and all(isinstance(n, str | int) and n != "" for n in names):
            return tuple(encodable(str(n)) for n in names)
    raise _BadRecordError(
        "missing_file_name", "neither file_name nor bundle_members nor source_id says where it is from"
    )


def _chunks(value: Any) -> dict[int, str]:
    """Text by chunk_id; chunks without an id are numbered from 1 by their place, blank ones left out."""
    if value is None:
        return {}
    if not isinstance(value, list):
        raise _BadRecordError("bad_chunks", f"chunks is a {type(value).__name__}")
    chunks: dict[int, str] = {}
    for place, chunk in enumerate(value, 1):
        text = chunk.get("text") if isinstance(chunk, dict) else chunk
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        if not isinstance(text, str):
            raise _BadRecordError("bad_chunks", f"chunk {place} has no text but {excerpt(str(chunk))}")
        own = chunk.get("chunk_id") if isinstance(chunk, dict) else None
        number = place if own is None else _integer(own, f"chunk {place}: chunk_id")
        text = encodable(text)
        if chunks.setdefault(number, text) != text:
            raise _BadRecordError("bad_chunks", f"chunk_id {number} stands for two texts")
    return chunks


def _pairs_given(value: Mapping[str, Any]) -> list[Any]:
    """deduplicated_qa_pairs where the record has them, else qa_generation's."""
    pairs = value.get("deduplicated_qa_pairs")
    if pairs is None:
        generation = value.get("qa_generation")
        pairs = generation.get("pairs") if isinstance(generation, dict) else generation
    if pairs is None:
        return []
    if not isinstance(pairs, list):
        raise _BadRecordError("bad_pairs", f"the pairs are a {type(pairs).__name__}")
    return pairs


def _evaluations(value: Mapping[str, Any]) -> list[Any] | None:
    evaluations = value.get("qa_evaluations")
    if isinstance(evaluations, dict):
        evaluations = evaluations.get("evaluations")
    return evaluations if isinstance(evaluations, list) else None


def _pair(value: Any, evaluation: Any) -> QaPair:
    value = _unpacked(value)
    if not isinstance(value, dict):
        raise _BadRecordError("bad_pair", f"a {type(value).__name__}: {excerpt(str(value))}")
    question = value.get("question")
    if question is not None and not isinstance(question, str):
        raise _BadRecordError("bad_pair", f"the question is a {type(question).__name__}")
    segments = value.get("segment_ids")
    segments = [] if segments is None else segments if isinstance(segments, list) else [segments]
    hop_count = value.get("hop_count")
    return QaPair(
        question=encodable(question or ""),
        segment_ids=tuple(dict.fromkeys(_integer(s, "segment_ids") for s in segments)),
        answer=_text(value.get("answer")),
        query_type=_text(value.get("query_type")),
        reasoning_type=_text(value.get("reasoning_type")),
        question_complexity=_number(value.get("question_complexity")),
        hop_count=hop_count if isinstance(hop_count, int) else None,
        hop_contexts=value.get("hop_contexts"),
        score=_overall(evaluation),
    )


def _overall(evaluation: Any) -> float | None:
    overall = evaluation.get("overall") if isinstance(evaluation, dict) else None
    score = _number(overall.get("score") if isinstance(overall, dict) else overall)
    return None if score is None else float(score)


def _text(value: Any) -> str | None:
    return None if value is None else encodable(value if isinstance(value, str) else json.dumps(value))


def _number(value: Any) -> int | float | None:
    """A finite number, also one that was written as a string; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and abs(value) < float("inf") else None


def _integer(value: Any, what: str) -> int:
    number = _number(value)
    if number is None or number != int(number):
        raise _BadRecordError("bad_id", f"{what} is {excerpt(repr(value))}, not a whole number")
    return int(number)
