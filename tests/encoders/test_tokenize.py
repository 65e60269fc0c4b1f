"""Tokens are those of the model's own tokenizer called on prefix + text, cut to length, and what was cut is said."""

import time

import pytest

from raycurate.core.contract import EmbeddingContract
from raycurate.encoders.options import EncoderOptions
from raycurate.encoders.tokenize import Tokenizer

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
    started = time.monotonic()
    tokens, truncated = tokenizer(["before", text, "after"])
    seconds = time.monotonic() - started
    whole = tokenizer._fast.encode(text)
    assert tokens[1].tolist() == whole.ids
    assert truncated.tolist() == [False, bool(whole.overflowing), False]
    assert seconds < 30
