"""A look at one mined question: its positives, and the ranking with what was kept, what was not, and why."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycurate.core import storage
from raycurate.core.errors import ConfigError, InputError, nearest
from raycurate.core.manifest import STAGING, Manifest, require_whole
from raycurate.data.training.training import TrainingData, read_training_data
from raycurate.pairs.mine_options import MineOptions
from raycurate.pairs.mined_data import held_out
from raycurate.pairs.mined_files import MINED
from raycurate.pairs.mining import Ready, embedded_corpora, load_vectors
from raycurate.pairs.negatives import bounds

_WIDTH = 100


@dataclass(frozen=True)
class _Found:
    """The question as a row of mined training data, how it was mined, and whose positives were held out."""

    data: TrainingData
    options: MineOptions
    question_id: str
    question: str
    held_out: list[str]


def show(folder: str, wanted: str, *, depth: int = 20) -> str:
    """The question with this id, or that begins so, as text; needs a running Ray.

    Args:
        folder: output of `raycurate mine` or `raycurate prep`.
        depth: documents of the ranking that are shown.

    Raises:
        InputError: no such output, or no or several such questions.
    """
    manifest = require_whole(folder)
    found = _find(folder, manifest, wanted)
    work = storage.join(folder, STAGING, "show")
    try:
        cache = manifest.settings.get("cache") or storage.join(work, "cache")
        [ready] = embedded_corpora(found.data, found.options, work=work, cache=cache)
        return "\n".join(_lines(found, ready, depth))
    finally:
        storage.delete(storage.join(folder, STAGING))


def _find(folder: str, manifest: Manifest, wanted: str) -> _Found:
    names = [file.path for file in manifest.files if file.path.endswith(MINED)]
    if not names:
        raise InputError("no negatives were mined here", where=folder, fix="Give the output of `raycurate mine`")
    known = MineOptions.model_fields.keys()
    values = {name: value for name, value in manifest.key.options.items() if name in known}
    options = MineOptions.parse(values, where=folder)
    ids: list[str] = []
    for name in names:
        data = read_training_data(storage.join(folder, name))
        table = data.table
        at = pc.equal(table["question_id"], wanted)
        if not pc.any(at).as_py():
            at = pc.starts_with(table["question"], wanted)
        count = pc.sum(at).as_py() or 0
        if count > 1:
            some = ", ".join(table.filter(at)["question_id"].slice(0, 5).to_pylist())
            raise InputError(f"{count} questions begin with {wanted!r}", where=name, fix=f"Give an id: {some}, ...")
        if count:
            row = table.filter(at)
            question_id, question = row["question_id"][0].as_py(), row["question"][0].as_py()
            apart = [*options.exclude_positives_of, *_prep_held_out(folder, manifest, name)]
            return _Found(TrainingData(data.corpora, row), options, question_id, question, apart)
        ids += table["question_id"].to_pylist()
    close = nearest(wanted, ids)
    raise InputError(
        f"there is no question with the id {wanted!r}, and none that begins so",
        where=folder,
        fix=f"Did you mean {close}?" if close else f"There are {len(ids):,}, the first is {ids[0] if ids else 'none'}",
    )


def _prep_held_out(folder: str, manifest: Manifest, name: str) -> list[str]:
    """What `prep` itself holds out of this file's negatives."""
    if not manifest.key.options.get("exclude_test_positives"):
        return []
    listed = {file.path for file in manifest.files}
    wanted = {"eval_beir/qrels/test.tsv": "eval_beir"} | ({"val.json": "val.json"} if name.startswith("train") else {})
    return [storage.join(folder, source) for file, source in wanted.items() if file in listed]


def _lines(found: _Found, ready: Ready, depth: int) -> list[str]:
    from raycurate.search import Limits, search

    row = found.data.table
    positives, negatives = row["pos"][0].as_py(), row["neg"][0].as_py() or []
    least = min(score for score in row["pos_score"][0].as_py())
    [bound] = bounds(np.array([least], np.float32), found.options.hard_neg_margin_type, found.options.margin)
    query_D = load_vectors(ready.questions[0].vectors.paths[0])
    none = Limits(None, np.zeros(2, np.int64), np.empty(0, np.int64))
    [(_, hits)] = search(query_D, ready.documents[0].vectors, min(depth, len(ready.corpus)), limits=none)
    keys = ready.documents[0].keys
    twins = keys.take(pa.array(ready.number[positives]))
    own = ready.questions[0].keys[0].as_py()
    apart = held_out(found.held_out)
    lines = [f"{found.question_id}: {found.question}", ""]
    lines += [_line("positive", score, text) for score, text in _scored(ready, positives, row["pos_score"][0].as_py())]
    lines += ["", f"bound {bound:.4f}: what scores more is dropped" if np.isfinite(bound) else "no bound", ""]
    for number, score in zip(hits.rows_QK[0].tolist(), hits.scores_QK[0].tolist(), strict=True):
        if number < 0:
            break
        document = int(ready.order[number])
        key = keys[number].as_py()
        kind = _kind(document, positives, negatives)
        if kind == "-" and (key == own or pc.any(pc.equal(twins, key)).as_py()):
            kind = "same text"
        elif kind == "-" and pc.any(pc.equal(apart, key)).as_py():
            kind = "held out"
        elif kind == "-" and np.float32(score) > bound:
            kind = "dropped"
        lines.append(_line(kind, score, ready.corpus.texts_of([document])[0]))
    shown = set(ready.order[hits.rows_QK[0][hits.rows_QK[0] >= 0]].tolist())
    rest = [(n, s) for n, s in zip(negatives, row["neg_score"][0].as_py() or [], strict=True) if n not in shown]
    if rest:
        lines += ["", f"kept, beyond the first {depth}:"]
        lines += [_line("kept", s, t) for s, t in _scored(ready, [n for n, _ in rest], [s for _, s in rest])]
    return lines


def _scored(ready: Ready, documents: list[int], scores: list[float]) -> list[tuple[float, str]]:
    return list(zip(scores, ready.corpus.texts_of(documents), strict=True))


def _kind(document: int, positives: Any, negatives: Any) -> str:
    if document in positives:
        return "positive"
    return "kept" if document in negatives else "-"


def _line(kind: str, score: float, text: str) -> str:
    return f"{kind:<10}{score:8.4f}  {textwrap.shorten(text, _WIDTH)}"


def add_show_flag(command: argparse.ArgumentParser) -> None:
    """`--show Q`, of the stages that mine."""
    command.add_argument("--show", metavar="Q", help="print what was mined for this question (id or beginning)")


def shown(question: str, output: str | None, connect: Callable[[], object]) -> str:
    """What was mined for a question, in the folder that the command names.

    Raises:
        ConfigError: it names none.
    """
    if not output:
        raise ConfigError("--show needs the folder of what was mined", where="command line", fix="Add output=FOLDER")
    connect()
    return show(output, question)
