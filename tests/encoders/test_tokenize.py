"""Tokens are those of the model's own tokenizer called on prefix + text, cut to length, and what was cut is said."""

import time

import pytest

from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.models.tokenize import Tokenizer, serialised_tokenizer

TEXTS = ["", "x", "naïve café", "日本語のテキスト", "word " * 400, "def f(x):\n    return x"]


def tokenizer_for(minilm: str, **options) -> Tokenizer:
    prompts = options.pop("prompts", {})
    return Tokenizer(
        EncoderOptions(model=minilm, **options), EmbeddingContract.from_checkpoint(minilm, prompts=prompts)
    )


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({}, ""),
        ({"role": "query", "prompts": {"query": "query: "}}, "query: "),
        ({"role": "document", "prompts": {"query": "query: "}}, ""),
        ({"role": "query", "prefix": "ask: ", "prompts": {"query": "query: "}}, "ask: "),
        ({"role": "query", "prefix": "", "prompts": {"query": "query: "}}, ""),
    ],
)
def test_equals_the_models_own_tokenizer(minilm, options, prefix):
    from transformers import AutoTokenizer

    tokens, truncated = tokenizer_for(minilm, **options)(TEXTS)
    own = AutoTokenizer.from_pretrained(minilm)([prefix + t for t in TEXTS], truncation=True, max_length=256)
    assert [row.tolist() for row in tokens] == own["input_ids"]
    assert truncated.tolist() == [False, False, False, False, True, False]


def test_a_serialised_tokenizer_gives_the_same_tokens(minilm):
    options = EncoderOptions(model=minilm)
    there = Tokenizer(options, EmbeddingContract.from_checkpoint(minilm), serialised=serialised_tokenizer(options))
    tokens, truncated = tokenizer_for(minilm)(TEXTS)
    again, cut = there(TEXTS)
    assert [row.tolist() for row in again] == [row.tolist() for row in tokens]
    assert cut.tolist() == truncated.tolist()


def test_a_tokenizer_written_in_python_is_used_as_it_is(minilm, monkeypatch):
    """It has no serialised form, and gives the same tokens and the same word on what was cut."""
    from transformers import AutoTokenizer

    class Python:
        is_fast = False

        def __init__(self, loaded):
            self.loaded = loaded

        def __call__(self, *texts, **options):
            return self.loaded(*texts, **options)

    load = AutoTokenizer.from_pretrained
    expected, cut = tokenizer_for(minilm)(TEXTS)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: Python(load(*a, **k)))
    assert serialised_tokenizer(EncoderOptions(model=minilm)) is None
    tokens, truncated = tokenizer_for(minilm)(TEXTS)
    assert [row.tolist() for row in tokens] == [row.tolist() for row in expected]
    assert truncated.tolist() == cut.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox. " * 40_000,
        " " * 600_000 + "end",
        "a" * 300_000 + " tail",
        "\u65e5" * 200_000,
        "x " * 9 + " " * 300_000 + "y",
    ],
    ids=["words", "spaces", "one-word", "unbroken-cjk", "sparse"],
)
def test_very_long_texts_give_the_tokens_of_the_whole(minilm, text):
    tokenizer = tokenizer_for(minilm)
    started = time.process_time()
    tokens, truncated = tokenizer(["before", text, "after"])
    seconds = time.process_time() - started  # of the processor: other work does not count
    whole = tokenizer._fast.encode(text)
    assert tokens[1].tolist() == whole.ids
    assert truncated.tolist() == [False, bool(whole.overflowing), False]
    assert seconds < 300  # where the time grows with the square of the length it is hours
