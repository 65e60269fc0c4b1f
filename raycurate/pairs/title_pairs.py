"""Pairs from documents with titles (titles.py says how), so that a corpus trains a model with no LLM at hand.

All documents are in the corpus: those that gave a question as what was left of them, the others as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from raycurate.core.errors import InputError
from raycurate.data.documents.documents import DocumentsOptions, Listing, list_documents, make_plan
from raycurate.data.documents.reading import read_segments
from raycurate.data.documents.rows import source_of
from raycurate.data.documents.segments import Kind, cut, kind_of
from raycurate.data.training.sdg import Reject
from raycurate.pairs.convert_options import ConvertOptions
from raycurate.pairs.pairs import Pairs, Query, Unit, normalised
from raycurate.pairs.titles import title_pair

DEFAULT_SPLIT_FIELD = "package"


@dataclass(frozen=True, slots=True)
class _Candidate:
    """What a document gave: the row of its passage; None where too little of it was left."""

    question: str
    row: int | None
    unit: Unit
    document: str
    source: str


def title_pairs(options: ConvertOptions) -> Pairs:
    """Questions from the documents' titles or first sentences.

    Raises:
        InputError: no such input, or no document has the `split_field` that was asked for.
    """
    documents = DocumentsOptions.parse(
        {"id_type": "text", **options.document_options, "input": options.input}, where="prep.document_options"
    )
    listing = list_documents(documents)
    pairs = Pairs()
    candidates: dict[str, list[_Candidate]] = {}
    for row in _documents(documents, listing, options.split_field, pairs.rejects):
        pairs.counts["documents_read"] += 1
        candidate = _candidate(pairs, row, options)
        if candidate is not None:
            candidates.setdefault(normalised(candidate.question), []).append(candidate)
    for group in candidates.values():
        _add_query(pairs, group, options.max_query_repeats)
    pairs.sources = pairs.counts["documents_read"]
    return pairs


@dataclass(frozen=True, slots=True)
class _Document:
    id: str
    title: str | None
    text: str
    source: str
    unit: Unit


def _documents(
    documents: DocumentsOptions, listing: Listing, split_field: str | None, rejects: list[Reject]
) -> Iterator[_Document]:
    """All good rows, in the order of the listing; bad ones go to `rejects`.

    A document is split by its `split_field`, else by the source it names or, where it is a file of its own, by that;
    rows of a table that name no source stand each for themselves.
    """
    plan = make_plan(documents, None if split_field is None else [split_field], listing)
    field = split_field or DEFAULT_SPLIT_FIELD
    containers = {source_of(f.path) for f in listing.files if kind_of(f.path)[0] in (Kind.JSONL, Kind.PARQUET)}
    found_field = False
    for table in read_segments(cut(listing.files), plan):
        values = table[field] if field in table.column_names else pa.nulls(table.num_rows)
        names = ("id", "title", "text", "source", "reject_reason", "reject_detail")
        rows = zip(*(table[name].to_pylist() for name in names), values.to_pylist(), strict=True)
        for name, title, text, source, reason, detail, value in rows:
            if reason is not None:
                rejects.append(Reject(source, 0, reason, detail or ""))
                continue
            found_field |= value is not None
            own = name if source in containers else source.partition("#")[0]
            yield _Document(name, title, text, source, (str(value),) if value is not None else (own,))
    if split_field is not None and not found_field:
        raise InputError(
            f"no document has a value in the column '{split_field}' (split_field)",
            where=str(documents.input),
            fix="Name a column that the documents have",
        )


def _candidate(pairs: Pairs, document: _Document, options: ConvertOptions) -> _Candidate | None:
    """What the document gives, its text added to the corpus; None, and counted, where that is no question."""
    pair = title_pair(document.title, document.text, min_words=options.min_query_words)
    reason = None
    if pair is None:
        reason = "no_question"
    elif len(pair.question.split()) < options.min_query_words:
        reason = "short_question"
    elif len(pair.passage) < options.min_passage_chars:
        reason = "short_passage"
    elif normalised(pair.question) == normalised(pair.passage):
        reason = "question_is_its_document"
    pairs.counts["pairs"] += 1
    text = document.text if reason is not None or pair is None else pair.passage
    row = pairs.documents.add(text, document.id, document.source)
    if reason is not None:
        pairs.left_out[reason] += 1
    if pair is None or reason == "short_question":
        return None
    return _Candidate(pair.question, None if reason else row, document.unit, document.id, document.source)


def _add_query(pairs: Pairs, group: list[_Candidate], max_repeats: int) -> None:
    """One question of all documents that share it, unless these are too many, or one of them answers it unchanged."""
    usable = [c for c in group if c.row is not None]
    if not usable:
        return
    if len(group) > max_repeats:
        pairs.left_out["repeated_question"] += len(usable)
        return
    if len(usable) < len(group):
        # The other document stayed whole, the question in it, and would be the better answer.
        pairs.left_out["question_in_other_document"] += len(usable)
        return
    pairs.counts["merged_questions"] += len(usable) - 1
    pairs.queries.append(
        Query(
            text=usable[0].question,
            positives=tuple(dict.fromkeys(c.row for c in usable if c.row is not None)),
            units=tuple(dict.fromkeys(c.unit for c in usable)),
            metadata={
                "file_name": list(dict.fromkeys(c.source for c in usable)),
                "document_ids": [c.document for c in usable],
            },
        )
    )
