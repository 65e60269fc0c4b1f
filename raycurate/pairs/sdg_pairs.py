"""Pairs from question/answer records: each chunk is a document, each question that scored well enough a query."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from raycurate.data.training.sdg import QaPair, Reject, SdgRecord, read_sdg
from raycurate.pairs.convert_options import ConvertOptions
from raycurate.pairs.pairs import Pairs, Query, normalised

METADATA = ("query_type", "reasoning_type", "hop_count", "question_complexity")


def sdg_pairs(options: ConvertOptions) -> Pairs:
    """Every unique chunk text of all records, and the questions that are kept.

    Bad lines go to `rejects`; `left_out` counts the pairs by reason.
    """
    pairs = Pairs(scored_units=set())
    sources: set[str] = set()
    for found in read_sdg(options.input):
        if isinstance(found, Reject):
            pairs.rejects.append(found)
            continue
        pairs.counts["records"] += 1
        sources.update(found.file_name)
        names = {*found.file_name, *([found.source_id] if found.source_id else [])}
        rows = {number: pairs.documents.add(text, *names) for number, text in found.chunks.items()}
        pairs.counts["chunks"] += len(rows)
        _add_queries(pairs, found, rows, options)
    pairs.sources = len(sources)
    return pairs


def _add_queries(pairs: Pairs, record: SdgRecord, rows: dict[int, int], options: ConvertOptions) -> None:
    assert pairs.scored_units is not None
    pairs.rejects += record.problems
    pairs.counts["pairs"] += len(record.pairs) + len(record.problems)
    pairs.left_out["bad_pair"] += len(record.problems)
    if record.misaligned is not None and options.quality_threshold is not None:
        file, _, line = record.origin.rpartition(":")
        pairs.rejects.append(Reject(file, int(line), "misaligned_evaluations", record.misaligned))
        pairs.left_out["misaligned_evaluations"] += len(record.pairs)
        return
    for pair in record.pairs:
        reason = _score_problem(pair, options.quality_threshold)
        if reason is None:
            # A file counts in the split once a pair of it scored well enough, whatever else is wrong with the pair.
            pairs.scored_units.add(record.file_name)
            reason = _pair_problem(pair, rows, options.max_pos_docs)
        if reason is not None:
            pairs.left_out[reason] += 1
            continue
        positives = tuple(dict.fromkeys(rows[number] for number in pair.segment_ids))
        if any(normalised(pair.question) == normalised(pairs.documents.texts[row]) for row in positives):
            pairs.left_out["question_is_its_document"] += 1
            continue
        pairs.queries.append(Query(pair.question, positives, (record.file_name,), _metadata(pair, record)))


def _score_problem(pair: QaPair, threshold: float | None) -> str | None:
    if threshold is None or (pair.score or 0.0) >= threshold:
        return None
    return "no_score" if pair.score is None else "low_score"


def _pair_problem(pair: QaPair, rows: dict[int, int], max_pos_docs: int) -> str | None:
    if not pair.question.strip():
        return "empty_question"
    if len(pair.segment_ids) > max_pos_docs:
        return "too_many_positives"
    if not pair.segment_ids or any(number not in rows for number in pair.segment_ids):
        return "missing_segment"
    return None


def _metadata(pair: QaPair, record: SdgRecord) -> dict[str, Any]:
    """What is known about the pair, in the order of the format; what the record does not say is left out."""
    known = {f.name: getattr(pair, f.name) for f in fields(pair)}
    found = {name: known[name] for name in METADATA}
    found |= {"quality_score": pair.score, "answer": pair.answer, "hop_contexts": pair.hop_contexts}
    found = {name: value for name, value in found.items() if value is not None}
    return {**found, "file_name": list(record.file_name), "segment_ids": list(pair.segment_ids)}
