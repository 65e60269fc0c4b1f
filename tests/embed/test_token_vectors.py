"""Token vectors of texts: what the encoder gives, in the texts' order, cached as single vectors are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.encoders import token_vectors
from raycurate.encoders.cache import Texts, embed_texts
from raycurate.encoders.token_vectors import embed_token_texts
from raycurate.search.token_shards import TokenShards
from tests.embed.hashing import hash_vector

ENGINE = "tests.embed.hashing:HashTokens"
pytestmark = pytest.mark.usefixtures("local_ray")


def column(*texts: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.string())])


def embedded(folder: Path, inputs: list[Texts], **kwargs: Any) -> list[TokenShards]:
    options = {"engine": ENGINE, "concurrency": 1, "engine_kwargs": {"log": str(folder / "log"), **kwargs}}
    return embed_token_texts(inputs, "words", options, cache=str(folder / "cache"), folder=str(folder / "vectors"))


def vectors_of(found: TokenShards) -> list[np.ndarray]:
    tokens = [found.read(piece) for piece in found.pieces(0, len(found))]
    return [part[i : i + 1].vectors_TD for part in tokens for i in range(len(part))]


def test_each_text_has_its_own_in_the_order_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_vectors, "SHARD_TOKENS", 80)
    texts = [" ".join(f"word{number}x{i}" for i in range(1 + number * 7 % 13)) for number in range(30)]
    texts.append(" ".join(f"long{i}" for i in range(90)))  # more than a shard holds
    order = np.random.default_rng(0).permutation(len(texts))
    asked = [Texts("d", column(*texts), "document", order), Texts("q", column("a b", "a b", "c"), "query")]
    for encoded in (31 + 2, 31 + 2):  # the second time nothing is
        documents, queries = embedded(tmp_path, asked)
        assert documents.dimension == queries.dimension == 16 and len(documents) == 31
        assert len(documents.paths) > 2 and queries.rows == (3,)
        assert len((tmp_path / "log").read_text().splitlines()) == encoded
        for number, found in zip(order, vectors_of(documents), strict=True):
            np.testing.assert_array_equal(found, np.stack([hash_vector(word) for word in texts[number].split()]))
        assert [len(found) for found in vectors_of(queries)] == [2, 2, 1]


def test_texts_without_vectors_are_named(tmp_path: Path) -> None:
    texts = column("fine", "a broken text", "  ")
    with pytest.raises(InputError, match=r"2 texts have no vector: 'a broken text' \(the model gave NaN.*'  ' \("):
        embedded(tmp_path, [Texts("d", texts, "document")], poison="broken")


def test_models_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    given, where = [Texts("d", column("a"), "document")], {"cache": str(tmp_path / "c"), "folder": str(tmp_path / "f")}
    with pytest.raises(ConfigError, match="multi-vector model has no single vector"):
        embed_texts(given, "words", {"engine": ENGINE}, **where)
    with pytest.raises(ConfigError, match="its pooling is mean, which gives one vector a text"):
        embed_token_texts(given, "words", {"engine": "tests.embed.hashing:HashEncoder"}, **where)


@pytest.mark.slow
def test_a_real_model_gives_what_training_scores_with(tmp_path: Path, minilm: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["A cat sat.", "The committee will publish its report on river flooding in May."]
    options = {"pooling": "multi_vector", "normalize": True, "dtype": "float32", "concurrency": 1}
    given = [Texts("d", column(*texts), "document")]
    [found] = embed_token_texts(given, minilm, options, cache=str(tmp_path / "c"), folder=str(tmp_path / "f"))
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    for text, vectors in zip(texts, vectors_of(found), strict=True):
        with torch.inference_mode():
            hidden_TH = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden_TH, dim=-1).numpy()  # [CLS] and [SEP] with the others
        np.testing.assert_allclose(vectors, wanted, atol=2e-5)
