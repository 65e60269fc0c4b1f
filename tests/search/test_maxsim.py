"""MaxSim search against its definition in float64 numpy: rows and scores, for any layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raycurate.core.errors import InputError
from raycurate.search import Hits, Limits, distributed, maxsim
from raycurate.search.maxsim import MaxSim, exact_maxsim, search_maxsim
from raycurate.search.prepared import Buffers
from raycurate.search.token_shards import Tokens, TokenShards
from raycurate.search.worker import Place
from tests.search.brute import assert_equal, unit

DIM = 24


def texts(lengths: list[int], seed: int, dim: int = DIM) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [unit(random.normal(size=(length, dim))) for length in lengths]


def ragged(count: int, longest: int, seed: int) -> list[np.ndarray]:
    """Of 1 to `longest` tokens, both of them among them."""
    lengths = np.random.default_rng(seed).integers(1, longest + 1, count).tolist()
    return texts([1, longest, *lengths[2:]], seed)


def brute(queries: list[np.ndarray], documents: list[np.ndarray], k: int) -> Hits:
    rows_QK, scores_QK = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
    for q, query in enumerate(queries):
        left = query.astype(np.float64)
        scores = np.float32([(left @ document.astype(np.float64).T).max(1).sum() for document in documents])
        best = np.lexsort((np.arange(len(documents)), -scores))[:k]
        rows_QK[q, : len(best)], scores_QK[q, : len(best)] = best, scores[best]
    return Hits(rows_QK, scores_QK, np.zeros(len(queries), np.int64))


def local(queries: list[np.ndarray], documents: TokenShards, k: int, *, most: int | None = None) -> Hits:
    """Without Ray, documents added the last first, `most` at a time."""
    engine, place = MaxSim(documents), Place(torch.device("cpu"), Buffers())
    block = engine.block(Tokens.of(queries), k, None, place, where="queries")
    for piece in reversed(documents.pieces(0, len(documents), most=most)):
        block.add(engine.prepare(documents.read(piece), piece, place, where="documents"))
    return Hits.of(engine.merge([block.keys_QK], k), block.dropped_Q)


def joined(blocks: Iterator[tuple[int, Hits]]) -> Hits:
    parts = list(blocks)
    starts = [first for first, _ in parts]
    assert starts == np.cumsum([0, *(len(hits.dropped_Q) for _, hits in parts)])[:-1].tolist()
    names = ("rows_QK", "scores_QK", "dropped_Q")
    return Hits(*(np.concatenate([getattr(hits, name) for _, hits in parts]) for name in names))


def test_it_equals_its_definition_for_texts_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = ragged(10, 32, 1), ragged(120, 300, 2)
    one = TokenShards.write(str(tmp_path / "one"), documents)
    many = TokenShards.write(str(tmp_path / "many"), documents, shard_tokens=3000)
    assert len(one.paths) == 1 and len(many.paths) > 4 and len(many) == 120
    whole = brute(queries, documents, 150)

    def best(k: int) -> Hits:
        return Hits(whole.rows_QK[:, :k], whole.scores_QK[:, :k], whole.dropped_Q)

    for k in (1, 10, 119, 150):
        assert_equal(local(queries, one, k), best(k))
        assert_equal(local(queries, many, k, most=7), best(k))
    monkeypatch.setattr(maxsim, "_ASKED", 40)  # one or two queries a product
    monkeypatch.setattr(maxsim, "_GROUP", 100)
    monkeypatch.setattr(maxsim, "_SCORES", 1000)
    monkeypatch.setattr(maxsim, "_PENDING", 200)  # settled again and again
    monkeypatch.setattr(maxsim, "_DOUBLES", 5000)
    assert_equal(local(queries, many, 10), best(10))


def test_few_pairs_are_scored_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, counted = ragged(1000, 30, 3), []

    def counting(query_ID: torch.Tensor, found: list[torch.Tensor]) -> np.ndarray:
        counted.append(len(found))
        return exact_maxsim(query_ID, found)

    monkeypatch.setattr(maxsim, "exact_maxsim", counting)
    local(ragged(20, 30, 4), TokenShards.write(str(tmp_path), documents, shard_tokens=2000), 10)
    assert 200 <= sum(counted) < 210


def grid(count: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(-2, 3, size=(int(random.integers(1, 9)), 6)).astype(np.float32) for _ in range(count)]


def test_ties_go_to_the_lower_number(tmp_path: Path) -> None:
    queries, documents = grid(12, 5), grid(600, 6)  # sums of small integers: many equal scores
    documents[300:400] = [text[::-1].copy() for text in documents[:100]]  # the same tokens in another order
    documents[500:] = [documents[0]] * 100
    wanted = brute(queries, documents, 50)
    assert (np.diff(wanted.scores_QK) == 0).mean() > 0.3
    for number, tokens in enumerate((100, 1000, 10**6)):
        stored = TokenShards.write(str(tmp_path / str(number)), documents, shard_tokens=tokens)
        assert_equal(local(queries, stored, 50), wanted)


def test_all_equal_documents_and_zero_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxsim, "_PENDING", 500)
    [text] = texts([20], 7)
    documents = [text if row % 2 else text[::-1].copy() for row in range(300)]
    stored = TokenShards.write(str(tmp_path / "equal"), documents, shard_tokens=900)
    queries = [*texts([5, 1], 8), np.zeros((3, DIM), np.float32), text]
    found = local(queries, stored, 8)
    np.testing.assert_array_equal(found.rows_QK, np.tile(np.arange(8), (4, 1)))
    assert found.scores_QK[2].tolist() == [0] * 8
    np.testing.assert_allclose(found.scores_QK[3], 20, rtol=1e-6)  # each token finds itself


def test_a_query_finds_the_document_that_it_is(tmp_path: Path) -> None:
    documents = ragged(200, 40, 9)
    found = local(documents[50:60], TokenShards.write(str(tmp_path), documents), 1)
    assert found.rows_QK[:, 0].tolist() == list(range(50, 60))


def test_scores_are_those_of_training() -> None:
    training = pytest.importorskip("raycurate.training.model.multi_vector")
    queries, documents = texts([3, 7], 10), texts([5, 9, 1], 11)

    def rectangle(rows: list[np.ndarray]) -> object:
        vectors = torch.zeros(len(rows), max(map(len, rows)), DIM)
        mask = torch.zeros(vectors.shape[:2], dtype=torch.bool)
        for number, row in enumerate(rows):
            vectors[number, : len(row)] = torch.from_numpy(row)
            mask[number, : len(row)] = True
        return training.MultiVectors(vectors, mask)

    theirs = training.maxsim(rectangle(queries), rectangle(documents)).numpy()
    ours = [exact_maxsim(torch.from_numpy(q).double(), [torch.from_numpy(d) for d in documents]) for q in queries]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_score_that_the_rounding_is_open_of_is_always_the_same() -> None:
    # 2^-24 more than 1 lies in the middle of two float32 numbers: which of them, must not depend on the company.
    query = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.float64)
    document = torch.tensor([[1.0, 2.0**-24, 0.0]])
    alone = exact_maxsim(query, [document])
    assert exact_maxsim(query, [document, torch.ones(50, 3) / 3, document])[[0, 2]].tolist() == [alone[0]] * 2
    assert alone[0] == np.float32(1 + 2.0**-24)


@pytest.mark.usefixtures("local_ray")
def test_on_ray_shards_and_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = ragged(50, 20, 12), ragged(300, 60, 13)
    wanted = brute(queries, documents, 12)
    one = TokenShards.write(str(tmp_path / "one"), documents)
    many = TokenShards.write(str(tmp_path / "many"), documents, shard_tokens=2000)
    asked = TokenShards.write(str(tmp_path / "asked"), queries, shard_tokens=150)
    assert_equal(joined(search_maxsim(queries, one, 12, workers=1)), wanted)
    assert_equal(joined(search_maxsim(asked, many, 12, workers=2, query_block=7)), wanted)  # queries are dealt
    monkeypatch.setattr(distributed, "_LEAST_ROWS", 10)
    assert_equal(joined(search_maxsim(queries, many, 12, workers=2, query_block=20)), wanted)  # documents are
    assert list(search_maxsim([], many, 12, workers=1)) == []


@pytest.mark.usefixtures("local_ray")
def test_what_cannot_be_searched_is_said(tmp_path: Path) -> None:
    documents = ragged(30, 9, 14)
    good = TokenShards.write(str(tmp_path / "good"), documents)
    with pytest.raises(InputError, match=r"queries have \[7\] dimensions, those of documents 24"):
        search_maxsim(texts([3], 1, 7), good, 5)
    with pytest.raises(InputError, match=r"text 1 .* has no token vectors"):
        list(search_maxsim([documents[0], documents[0][:0]], good, 5, workers=1))
    documents[20] = documents[20].copy()
    documents[20][-1, 3] = np.nan
    bad = TokenShards.write(str(tmp_path / "bad"), documents)
    with pytest.raises(InputError, match=r"tokens-00000\.npy: a token vector of text 20 .* is not finite"):
        list(search_maxsim(documents[:2], bad, 5, workers=1))
    with pytest.raises(InputError, match=r"a token vector of text 0 .* is not finite"):
        list(search_maxsim([documents[20]], good, 5, workers=1))
    with pytest.raises(ValueError, match="k=0"):
        search_maxsim(documents[:2], good, 0)
    with pytest.raises(ValueError, match="without limits"):
        MaxSim(good).block(
            Tokens.of(documents[:1]), 5, Limits.of(excluded=[[]]), Place(torch.device("cpu"), Buffers()), where="q"
        )


def test_shards_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    stored = TokenShards.write(str(tmp_path), ragged(30, 9, 15))
    with pytest.raises(InputError, match=r"shape \(2, 3\) where \[tokens, 24\]"):
        TokenShards.write(str(tmp_path / "two"), [np.ones((4, 24)), np.ones((2, 3))])
    with pytest.raises(InputError, match="there are no token vectors"):
        TokenShards.write(str(tmp_path / "none"), [])
    with pytest.raises(InputError, match=r"does not hold where 29 texts start"):
        TokenShards(stored.paths, (29,), DIM).read(stored.pieces(0, 29)[0])
    vectors = Path(stored.paths[0])
    vectors.write_bytes(vectors.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"tokens-00000\.npy: it cannot be read"):
        stored.read(stored.pieces(0, 30)[0])


def test_in_a_bucket_only_the_texts_asked_for_are_fetched(s3: str) -> None:
    documents = ragged(40, 9, 16)
    stored = TokenShards.write(f"{s3}/tokens", documents, shard_tokens=60)
    found = [stored.read(piece) for piece in stored.pieces(3, 37, most=4)]
    np.testing.assert_array_equal(np.concatenate([part.vectors_TD for part in found]), np.concatenate(documents[3:37]))
    assert np.concatenate([part.lengths for part in found]).tolist() == [len(text) for text in documents[3:37]]
