"""The cache of vectors: what is there is not made again, and what is laid out is what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.encoders.cache import Embedded, Texts, embed_texts, text_keys
from tests.embed.hashing import hash_vector

ENGINE = "tests.embed.hashing:HashEncoder"
pytestmark = pytest.mark.usefixtures("local_ray")


def column(*texts: str) -> pa.ChunkedArray:
    half = len(texts) // 2
    return pa.chunked_array([pa.array(texts[:half], pa.string()), pa.array(texts[half:], pa.string())])


def embedded(folder: Path, inputs: list[Texts], passage_prefix: str | None = None, **kwargs: Any) -> list[Embedded]:
    options = {"engine": ENGINE, "concurrency": 1, "engine_kwargs": {"log": str(folder / "log"), **kwargs}}
    options["passage_prefix"] = passage_prefix
    return embed_texts(
        inputs, "words", options, cache=str(folder / "cache"), folder=str(folder / "vectors"), unit=False
    )


def encoded(folder: Path) -> int:
    """Texts that went through an encoder so far."""
    return len((folder / "log").read_text().splitlines())


def vectors_of(found: Embedded) -> np.ndarray:
    return np.concatenate([np.load(path) for path in found.vectors.paths])


def test_only_what_changed_is_embedded_again(tmp_path: Path) -> None:
    texts = [f"word{number} and word{number % 3}" for number in range(40)]
    first = embedded(
        tmp_path, [Texts("d", column(*texts, texts[0]), "document"), Texts("q", column("a b", "c"), "query")]
    )
    assert [found.fresh for found in first] == [40, 2] and encoded(tmp_path) == 42  # the repeated text once
    texts[7] = "another text"
    order = np.arange(40)[::-1].copy()
    [second] = embedded(tmp_path, [Texts("d", column(*texts), "document", order)])
    assert second.fresh == 1 and encoded(tmp_path) == 43
    np.testing.assert_array_equal(vectors_of(second), np.stack([hash_vector(text) for text in texts[::-1]]))
    assert second.keys.to_pylist() == text_keys(column(*texts[::-1])).to_pylist()


def test_another_prefix_or_option_is_another_store(tmp_path: Path) -> None:
    texts = column("one", "two", "three")
    embedded(tmp_path, [Texts("d", texts, "document")])
    embedded(tmp_path, [Texts("d", texts, "document")], passage_prefix="passage: ")
    assert encoded(tmp_path) == 6
    embedded(tmp_path, [Texts("d", texts, "document")], passage_prefix="passage: ")
    assert encoded(tmp_path) == 6
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_unit_vectors_and_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycurate.encoders.cache.SHARD_ROWS", 7)
    texts = [f"word{number}" for number in range(20)]
    [found] = embed_texts(
        [Texts("d", column(*texts), "document")],
        "words",
        {"engine": ENGINE, "concurrency": 1},
        cache=str(tmp_path / "cache"),
        folder=str(tmp_path / "vectors"),
    )
    assert found.vectors.rows == (7, 7, 6) and found.vectors.dimension == 16
    exact = np.stack([hash_vector(text) for text in texts])
    np.testing.assert_allclose(vectors_of(found), exact / np.linalg.norm(exact, axis=1, keepdims=True), rtol=1e-6)


def test_texts_without_a_vector_are_named(tmp_path: Path) -> None:
    texts = column("fine", "a broken text", "  ")
    with pytest.raises(
        InputError, match=r"2 texts have no vector: 'a broken text' \(the model gave NaN.*'  ' \("
    ) as error:
        embedded(tmp_path, [Texts("d", texts, "document")], poison="broken")
    assert error.value.where == "d"


def test_options_that_embed_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_length'"):
        embed_texts([Texts("d", column("a", "b"), "document")], "words", {"max_lenght": 3}, cache="c", folder="f")


def test_only_the_first_dimensions_are_laid_out(tmp_path: Path) -> None:
    texts = [f"word{number} other" for number in range(9)]
    given = [Texts("d", column(*texts), "document")]
    where = {"cache": str(tmp_path / "cache"), "folder": str(tmp_path / "vectors")}
    options = {"engine": ENGINE, "concurrency": 1}
    exact = np.stack([hash_vector(text) for text in texts])[:, :5]
    [plain] = embed_texts(given, "words", options, unit=False, dimensions=5, **where)
    assert plain.vectors.dimension == 5
    np.testing.assert_array_equal(vectors_of(plain), exact)
    [scaled] = embed_texts(given, "words", options, dimensions=5, **where)
    assert scaled.fresh == 0  # the cache has whole vectors
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(scaled), exact / np.maximum(lengths, 1e-9), rtol=1e-6)
    with pytest.raises(ConfigError, match="17 dimensions are asked for; the vectors have 16"):
        embed_texts(given, "words", options, dimensions=17, **where)
