"""The operators as plain functions on Arrow tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raycurate.core.errors import ConfigError
from raycurate.embed.operators import ensure_reject_columns, fill_template, multi_vector_column, vector_column


def test_null_and_blank_texts_are_marked_and_others_kept() -> None:
    table = pa.table({"text": ["a", None, "  \n", "b"], "reject_reason": pa.array([None, None, None, "mine"])})
    marked = ensure_reject_columns(table, "text")
    assert marked["reject_reason"].to_pylist() == [None, "null_text", "empty_text", "mine"]
    assert marked["reject_detail"].null_count == 4


def test_missing_or_wrong_text_column_is_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'text_body'"):
        ensure_reject_columns(pa.table({"text_body": ["a"]}), "textbody")
    with pytest.raises(ConfigError, match="holds int64"):
        ensure_reject_columns(pa.table({"text": [1]}), "text")


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
