"""Mining training data into a folder: what the stages that mine share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from raycurate.core import storage
from raycurate.core.config import fingerprint
from raycurate.core.errors import InputError
from raycurate.core.manifest import STAGING, OutputFile, listing_fingerprint
from raycurate.core.observe import Clock, Progress
from raycurate.data.training.training import Corpus, TrainingData, read_training_data
from raycurate.pairs.audit import Audit, distribution_lines
from raycurate.pairs.mine_options import MineOptions
from raycurate.pairs.mined_files import MinedWriter, corpus_paths
from raycurate.pairs.mining import MinedQuestion, Ready, embedded_corpora, held_out_keys, mine
from raycurate.pairs.teacher import Teacher


def mining_lines(counts: dict[str, int], scores: dict[str, Any]) -> list[str]:
    """What a mining did, for a summary."""
    questions = counts["questions"]
    each = counts["negatives"] / questions if questions else 0.0
    lines = [
        f"mined     {counts['negatives']:,} negatives for {questions:,} questions ({each:.1f} each); "
        f"{counts['questions_with_fewer']:,} have fewer than asked, {counts['questions_without']:,} none",
        f"dropped   {counts['dropped']:,} documents above the bound; left out {counts['excluded']:,} with the "
        "text of a positive or of the question",
    ]
    for name, what in (
        ("dropped_by_models", "of the first model's candidates by a further model's bound"),
        ("dropped_by_teacher", "candidates by the teacher"),
        ("dropped_from_file", "of the file's own negatives"),
    ):
        if counts.get(name):
            lines.append(f"          {counts[name]:,} {what}")
    return [*lines, *distribution_lines(scores)]


def inputs_fingerprint(paths: Sequence[str]) -> str:
    """Fingerprint of the files that these paths name, ours that are not data left out.

    Raises:
        InputError: a path that is not there.
    """
    entries = []
    for path in paths:
        if not storage.exists(path) and not any(mark in path for mark in "*?["):
            raise InputError("there is no such file or folder", where=path)
        entries += [entry for entry in storage.list_files(path) if f"/{STAGING}/" not in entry.path]
    return listing_fingerprint(entries)


def models_fingerprint(options: MineOptions) -> str:
    """What the models are: the identity of each, and the teacher's name."""
    from raycurate.encoders.cache import config_for
    from raycurate.encoders.inspect import read_contract

    found = [read_contract(config_for(m, options.encoder_of(m), "document")).identity() for m in options.models]
    return fingerprint([found, options.teacher])


def held_out(sources: Sequence[str]) -> pa.Array:
    """Keys of the texts that are positives of these training files or of the test split of these BEIR folders."""
    texts = []
    for source in sources:
        if storage.exists(storage.join(source, "qrels")):
            texts.append(_beir_positives(source))
            continue
        data = read_training_data(source)
        for number, corpus in enumerate(data.corpora):
            listed = data.table.filter(pa.compute.equal(data.table["corpus"], number))["pos"].combine_chunks()
            texts.append(corpus.texts.take(listed.flatten().unique()))
    return held_out_keys(texts)


def _beir_positives(folder: str) -> pa.ChunkedArray:
    from raycurate.data.corpora.beir import read_beir

    found = read_beir(folder, "test")
    ids = {name for judged in found.qrels.values() for name, score in judged.items() if score > 0}
    table = found.corpus.filter(pa.compute.is_in(found.corpus["_id"], value_set=pa.array(sorted(ids), pa.string())))
    rows = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
    return pa.chunked_array([pa.array([f"{title} {text}" if title else text for title, text in rows], pa.string())])


class Mining:
    """Mines training data into a folder: what `mine` and `prep` share.

    settings: what is worth keeping of how it was done.
    """

    def __init__(self, options: MineOptions, output: str, staging: str) -> None:
        self.options, self.output, self.staging = options, output, staging
        self.cache = options.cache or storage.join(staging, "cache")
        self.settings: dict[str, Any] = {}
        self.ready: list[Ready] = []

    def write(self, data: TrainingData, name: str, apart: pa.Array, clock: Clock) -> tuple[list[OutputFile], Audit]:
        """Mine and write NAME's files."""
        if not len(data):
            raise InputError("there is no question to mine for", where=name)
        corpora, files = corpus_paths(data, self.output)
        work = storage.join(self.staging, f"vectors-{name}")
        self.ready = list(embedded_corpora(data, self.options, work=work, cache=self.cache))
        clock.lap(f"embed_{name}")
        writer = MinedWriter(self.output, name, corpora, self.options.result_keys())
        teacher = Teacher(self.options.teacher) if self.options.teacher else None
        try:
            files += writer.write(data, self._mined(data, apart, teacher, name))
        finally:
            if teacher is not None:
                teacher.close()
        recalls = [recall for ready in self.ready for recall in ready.recalls]
        if recalls:
            self.settings[f"approximate_recall_{name}"] = round(min(recalls), 4)
        clock.lap(f"mine_{name}")
        return files, writer.audit

    def _mined(
        self, data: TrainingData, apart: pa.Array, teacher: Teacher | None, name: str
    ) -> Iterator[tuple[Corpus, MinedQuestion]]:
        with Progress(f"mine {name}", total=len(data), unit="question") as progress:
            for ready in self.ready:
                for found in mine(data, ready, self.options, apart, teacher):
                    progress.update()
                    yield ready.corpus, found
