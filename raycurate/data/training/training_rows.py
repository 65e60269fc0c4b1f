"""One question with its documents, as every form of training data writes it, and many of them as an Arrow table.

The forms differ in where they are and in how they name a document (by id, or by its text); what a row may look like is
said once, here. A row with several faults gives all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from raycurate.data.documents.ids import id_text
from raycurate.data.training.training_report import Problems

RAW_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("corpus_id", pa.string()),
        pa.field("pos", pa.list_(pa.string())),
        pa.field("neg", pa.list_(pa.string())),
        pa.field("pos_score", pa.list_(pa.float32())),
        pa.field("neg_score", pa.list_(pa.float32())),
        pa.field("line", pa.int64()),
    ]
)
_FLUSH_ROWS = 16_384
_FLOAT32_MAX = 3.4028234663852886e38

DocumentName = Callable[[str], str]
"""From what a row says of a document (its id, or its text) to the id it has in the corpus."""


class RowForm(NamedTuple):
    """How a form of training data writes a row."""

    document_key: str
    """`id` or `text`: what an object that stands for a document must hold."""
    question_keys: tuple[str, ...]
    id_keys: tuple[str, ...]
    has_corpus_id: bool


INLINE = RowForm("text", ("query", "question"), ("question_id", "id"), has_corpus_id=False)
BY_ID = RowForm("id", ("question",), ("question_id",), has_corpus_id=True)


class RowsBuilder:
    """Checks rows and gathers them as a table of `RAW_SCHEMA`."""

    def __init__(self, form: RowForm, problems: Problems, name_document: DocumentName = str) -> None:
        self._form, self._problems, self._name_document = form, problems, name_document
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, value: Any, line: int, where: str) -> None:
        """Take a row as JSON has it; what is wrong with it is noted under `where`, and it is left out."""
        faults: list[tuple[str, str]] = []
        if isinstance(value, dict):
            row = self._row(value, faults)
            row["line"] = line
        else:
            faults.append(("wrong types", f"a row must be an object, this is {_kind(value)}"))
        for kind, what in faults:
            self._problems.add_row(kind, where, what, row=value)
        if not faults:
            self._rows.append(row)
            if len(self._rows) >= _FLUSH_ROWS:
                self._flush()

    def finish(self) -> pa.Table:
        """All good rows."""
        self._flush()
        return pa.Table.from_batches(self._batches, RAW_SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, RAW_SCHEMA))
            self._rows = []

    def _row(self, value: Mapping[str, Any], faults: list[tuple[str, str]]) -> dict[str, Any]:
        form = self._form
        row: dict[str, Any] = {
            "question_id": self._question_id(value, faults),
            "question": self._question(value, faults),
            "corpus_id": None,
        }
        if form.has_corpus_id:
            row["corpus_id"] = value.get("corpus_id")
            if not isinstance(row["corpus_id"], str) or not _is_utf8(row["corpus_id"]):
                faults.append(("wrong types", f"'corpus_id' must be a string, this is {_kind(row['corpus_id'])}"))
        for name in ("pos", "neg"):
            row[name], row[f"{name}_score"] = self._documents(value, f"{name}_doc", faults)
        return row

    def _question(self, value: Mapping[str, Any], faults: list[tuple[str, str]]) -> str:
        names = self._form.question_keys
        key = next((k for k in names if k in value), None)
        text = value.get(key) if key is not None else None
        if key is None:
            faults.append(("missing keys", f"there is no '{_either(names)}'; keys: {', '.join(map(str, value))}"))
        elif not isinstance(text, str):
            faults.append(("wrong types", f"'{key}' must be a string, this is {_kind(text)}"))
        elif not text.strip():
            faults.append(("empty questions", f"'{key}' is empty"))
        elif not _is_utf8(text):
            faults.append(("undecodable texts", f"'{key}' has half a surrogate pair, which UTF-8 cannot carry"))
        return text if isinstance(text, str) else ""

    def _question_id(self, value: Mapping[str, Any], faults: list[tuple[str, str]]) -> str | None:
        key = next((k for k in self._form.id_keys if value.get(k) is not None), None)
        if key is None:
            return None
        found = value[key]
        if isinstance(found, int | float) and not isinstance(found, bool):
            found = id_text(found)
        if not isinstance(found, str):
            faults.append(("wrong types", f"'{key}' must be a string, this is {_kind(found)}"))
            return None
        if found == "" or not _is_utf8(found):
            faults.append(("wrong types", f"'{key}' is {'empty' if found == '' else 'not UTF-8'}"))
        return found

    def _documents(
        self, value: Mapping[str, Any], key: str, faults: list[tuple[str, str]]
    ) -> tuple[list[str], list[float | None] | None]:
        if key not in value:
            hint = "; [] stands for no negatives" if key == "neg_doc" else ""
            faults.append(("missing keys", f"there is no '{key}'; keys: {', '.join(map(str, value))}{hint}"))
            return [], None
        found = value[key]
        listed = found if isinstance(found, list) else [] if found is None else [found]
        if key == "pos_doc" and not listed:
            faults.append(("questions without positives", "'pos_doc' is empty"))
        names, scores = [], []
        for document in listed:
            try:
                name, score = self._document(document)
            except _FaultError as fault:
                faults.append((fault.kind, f"'{key}': {fault}"))
                continue
            names.append(self._name_document(name))
            scores.append(score)
        return names, scores if any(s is not None for s in scores) else None

    def _document(self, document: Any) -> tuple[str, float | None]:
        """(id or text, score) of a document; `_FaultError` for what is none."""
        wanted, score = self._form.document_key, None
        if type(document) is dict:
            if wanted not in document:
                raise _FaultError("missing keys", _wrong_form(wanted, document))
            score, document = document.get("score"), document[wanted]
            if score is not None:
                _check_score(score)
        if type(document) in (int, float) and wanted == "id":
            document = id_text(document)
        if type(document) is not str:
            raise _FaultError("wrong types", f"a document's {wanted} must be a string, this is {_kind(document)}")
        if not document or document.isspace():
            raise _FaultError("empty documents", f"a document's {wanted} is empty")
        if not document.isascii() and not _is_utf8(document):
            raise _FaultError("undecodable texts", "a document has half a surrogate pair, which UTF-8 cannot carry")
        return document, score


class _FaultError(Exception):
    """What is wrong with one document of a row."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def _check_score(score: Any) -> None:
    if type(score) is not float and type(score) is not int:
        raise _FaultError("wrong types", f"a score must be a number, this is {_kind(score)}")
    if not -_FLOAT32_MAX <= score <= _FLOAT32_MAX:
        raise _FaultError("wrong types", f"a score must be finite, as float32, this is {score}")


def _wrong_form(wanted: str, document: Mapping[str, Any]) -> str:
    if wanted == "text" and "id" in document:
        return "a document has an 'id' and no 'text'; ids need a corpus-ID JSON file, which names the corpus"
    if wanted == "id" and "text" in document:
        return "a document has a 'text' and no 'id'; texts belong in an inline JSONL file"
    return f"a document has no '{wanted}'; keys: {', '.join(map(str, document))}"


def _either(names: tuple[str, ...]) -> str:
    return "' or '".join(names)


_KINDS = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number", "str": "a string"}
_KINDS |= {"list": "a list", "dict": "an object"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value).__name__, type(value).__name__)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
