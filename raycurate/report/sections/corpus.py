"""How long the documents are, in words and in the model's tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raycurate.core.errors import RaycurateError
from raycurate.report import charts
from raycurate.report.charts import Chart
from raycurate.report.context import Context
from raycurate.report.rendering import Section, make_section
from raycurate.report.runs import StageOutput
from raycurate.report.sampling import SEED, Documents
from raycurate.report.text import counted, number, percent

_TOKENIZED = 2000  # documents
_TOKENIZED_CHARS = 50_000  # of one


@dataclass(frozen=True)
class Tokens:
    """Tokens of some documents, and how many the model keeps of one (None: not known)."""

    lengths: np.ndarray
    limit: int | None
    cut: int
    """Documents of which only the first characters were counted."""


def section(context: Context) -> Section | None:
    """None where neither the embeddings nor the sample corpus are there."""
    embed = context.run.of("embed")
    if embed is None and context.run.of("sample-corpus") is None:
        return None
    documents, problem = context.corpus
    word_lengths, token_lengths, no_tokenizer, place = None, None, "", ""
    if documents:
        place = context.run.short(documents.path)
        word_lengths = _words_chart(documents)
        if embed is not None:
            try:
                token_lengths = _tokens_chart(embed, documents)
            except (RaycurateError, OSError, ValueError) as error:  # the last two: what transformers raises
                no_tokenizer = str(error)
    return make_section(
        "corpus",
        "Corpus",
        documents=documents,
        problem=problem or "none was readable",
        place=place,
        word_lengths=word_lengths,
        token_lengths=token_lengths,
        no_tokenizer=no_tokenizer,
    )


def _words_chart(documents: Documents) -> Chart:
    return _lengths(np.array([len((text or "").split()) for text in documents.table["text"].to_pylist()]), "words", "")


def _lengths(lengths: np.ndarray, noun: str, more: str, limit: int | None = None) -> Chart:
    low, middle, high = np.quantile(lengths, [0.05, 0.5, 0.95])
    says = f"Half of the documents have at most {middle:,.0f} {noun}, 90% between {low:,.0f} and {high:,.0f}.{more}"
    words = charts.Words(
        noun, f"Histogram of document length in {noun}", says, x=f"{noun}, bins of equal ratio", y="documents"
    )
    marks = [charts.Mark(limit, f"limit {limit:,}")] if limit else []
    return charts.histogram(words, np.maximum(lengths, 1), log=True, marks=marks)


def _tokens_chart(embed: StageOutput, documents: Documents) -> Chart:
    tokens = _tokens(embed, documents)
    truncated, all_of_them = embed.count("truncated"), max(1, embed.count("documents"))
    more = f" Counted on {counted(len(tokens.lengths), 'document')} taken at random."
    if tokens.cut:
        more += f" Of {tokens.cut:,} of them only the first {_TOKENIZED_CHARS:,} characters were counted."
    if tokens.limit:
        more += (
            f" The model reads the first {tokens.limit:,} tokens; {number(truncated)} of all {all_of_them:,} documents "
            f"({percent(truncated / all_of_them)}) are longer and were cut there."
        )
    return _lengths(tokens.lengths, "tokens", more, tokens.limit)


def _tokens(embed: StageOutput, documents: Documents) -> Tokens:
    """Tokens by the tokenizer of the model that embedded them, which is not downloaded for this.

    Raises:
        RaycurateError: the model is not on this machine, is an endpoint, or its tokenizer is written in Python.
    """
    import tokenizers

    from raycurate.encoders.base import is_url
    from raycurate.encoders.operators import fill_template
    from raycurate.models.options import EncoderOptions
    from raycurate.models.tokenize import serialised_tokenizer

    model = str(embed.options["model"])
    if is_url(model):
        raise RaycurateError("it is behind an endpoint", where=model)
    chosen = {"revision": embed.options.get("revision"), "cache_dir": embed.options.get("cache_dir")}
    options = EncoderOptions.parse({"model": embed.now(model), "local_files_only": True, **chosen}, where=embed.folder)
    serialised = serialised_tokenizer(options)
    if serialised is None:
        raise RaycurateError("it has no fast tokenizer", where=model)
    tokenizer = tokenizers.Tokenizer.from_str(serialised)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    order = np.sort(np.random.default_rng(SEED).permutation(len(documents))[:_TOKENIZED])
    rows = documents.table.take(order).to_pylist()
    texts = [fill_template(documents.template, row["title"], row["text"]) for row in rows]
    encoded = tokenizer.encode_batch_fast([text[:_TOKENIZED_CHARS] for text in texts])
    contract = (embed.manifest.contract if embed.manifest else None) or {}
    lengths = np.array([len(one.ids) for one in encoded])
    return Tokens(lengths, contract.get("max_length"), sum(len(text) > _TOKENIZED_CHARS for text in texts))
