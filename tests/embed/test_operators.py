"""The operators as plain functions on Arrow tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycurate.core.errors import ConfigError
from raycurate.data.documents.rows import TEXT_CUT
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.encoders.inspect import one_dtype
from raycurate.encoders.operators import (
    INPUT_TEXT,
    Tokenise,
    ensure_reject_columns,
    fill_template,
    multi_vector_column,
    require_text_field,
    vector_column,
)
from raycurate.encoders.transform import OPTIONS_OF_FILES
from tests.embed.hashing import HashEncoder


def test_null_and_blank_texts_are_marked_and_others_kept() -> None:
    table = pa.table({"text": ["a", None, "  \n", "b"], "reject_reason": pa.array([None, None, None, "mine"])})
    marked = ensure_reject_columns(table, "text")
    assert marked["reject_reason"].to_pylist() == [None, "null_text", "empty_text", "mine"]
    assert marked["reject_detail"].null_count == 4


def test_missing_or_wrong_text_column_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'text_body'"):
        ensure_reject_columns(pa.table({"text_body": ["a"]}), "textbody")
    with pytest.raises(ConfigError, match="holds int64, not text"):
        require_text_field("text", {"text": pa.int64()})
    marked = ensure_reject_columns(pa.table({"text": [1, None]}), "text")  # where nobody could know before
    assert marked["reject_reason"].to_pylist() == ["wrong_type", "wrong_type"]
    assert "holds int64" in marked["reject_detail"][0].as_py()
    assert marked["text"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_all_sorts_of_strings_are_text(kind: pa.DataType) -> None:
    marked = ensure_reject_columns(pa.table({"text": pa.array(["a", None], kind)}), "text")
    assert marked["text"].to_pylist() == ["a", None]
    assert marked["reject_reason"].to_pylist() == [None, "null_text"]


def config(**options: Any) -> EmbedConfig:
    base = {"input": "i", "output": "o", "model": "hash", "engine": "tests.embed.hashing:HashEncoder"}
    return EmbedConfig.parse(base | options, where="test")


def test_over_long_texts_are_cut_for_the_model_or_rejected() -> None:
    table = ensure_reject_columns(pa.table({"text": ["\U0001f600" * 5, "abcde", None, "abcdef"]}), "text")
    contract = HashEncoder(config()).contract.to_json()
    names = {"accepts": "text", "text_field": "text", "title_field": "title", "keep_text": True}
    cut = Tokenise(config(max_chars=5), contract, **names)(table)
    assert cut[INPUT_TEXT].to_pylist() == ["\U0001f600" * 5, "abcde", None, "abcde"]
    assert cut["text"].to_pylist() == table["text"].to_pylist()  # the user's own stays as it is
    assert cut[TEXT_CUT].to_pylist() == [False, False, False, True]
    rejected = Tokenise(config(max_chars=5, over_long="reject"), contract, **names)(table)
    assert rejected["reject_reason"].to_pylist() == [None, None, "null_text", "too_long"]
    assert rejected[TEXT_CUT].to_pylist() == [False] * 4


HEEDED_ON_A_DATA_SET = {
    "model", "revision", "engine", "pooling", "normalize", "max_length", "padding_side", "role", "prefix", "dtype",
    "batch_tokens", "batch_size", "sort_by_length", "engine_kwargs", "cache_dir", "hf_token", "trust_remote_code",
    "local_files_only", "device", "text_field", "title_field", "max_chars", "over_long", "embedding_field",
    "output_dtype", "keep_text", "concurrency", "num_gpus", "actors", "tokenizer", "add_bos", "add_eos",
}  # fmt: skip


def test_every_option_is_heeded_or_refused_by_rc_embed() -> None:
    """Whoever adds an option of the stage says here what it does on a data set."""
    assert not HEEDED_ON_A_DATA_SET & OPTIONS_OF_FILES
    assert set(EmbedConfig.model_fields) == HEEDED_ON_A_DATA_SET | OPTIONS_OF_FILES


def test_an_old_recipe_with_pretokenize_is_told_to_leave_it_out() -> None:
    for value in (True, False, "auto"):
        with pytest.raises(ConfigError, match=r"pretokenize is no option any more.*leave it out"):
            config(pretokenize=value)


@pytest.mark.parametrize(
    ("choices", "dtype"),
    [
        (["bfloat16"] * 3, "bfloat16"),
        (["float32"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float16", "bfloat16"], "float32"),
        ([], "bfloat16"),
    ],
)
def test_all_actors_have_one_precision(choices: list[str], dtype: str) -> None:
    assert one_dtype(choices) == dtype


def test_template_needs_a_title() -> None:
    assert fill_template("{title} {text}", "A", "b") == "A b"
    assert fill_template("{title} {text}", None, "b") == "b"
    assert fill_template("title: {title} | text: {text}", "{text}", "b") == "title: {text} | text: b"


def test_vectors_land_on_their_rows() -> None:
    good, finite = np.array([True, False, True, True]), np.array([True, False, True])
    vectors = np.array([[1, 2], [np.nan, 0], [5, 6]], np.float32)
    column = vector_column(good, finite, vectors, 2, np.dtype("float16"))
    assert column.type == pa.list_(pa.float16(), 2)
    assert column.to_pylist() == [[1, 2], None, None, [5, 6]]
    empty = vector_column(np.array([False]), np.array([], bool), np.asarray([]), 2, np.dtype("float32"))
    assert empty.to_pylist() == [None]


def test_multi_vectors_are_lists_of_vectors() -> None:
    good, finite = np.array([True, False, True]), np.array([True, True])
    column = multi_vector_column(
        good, finite, [np.ones((2, 2), np.float32), np.zeros((1, 2), np.float32)], 2, np.dtype("float32")
    )
    assert column.to_pylist() == [[[1, 1], [1, 1]], None, [[0, 0]]]
