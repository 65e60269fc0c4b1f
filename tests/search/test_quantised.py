"""Quantised search: against plain numpy without re-scoring, against the exact search with it, for any layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from raycurate.core.errors import ConfigError, InputError
from raycurate.search import Hits, Limits, VectorShards, distributed, search
from raycurate.search.prepared import Buffers
from raycurate.search.quantised import Quantised, ranges_of
from raycurate.search.shards import Piece, truncate, truncated
from raycurate.search.worker import Engine, Exact, Place
from tests.search.brute import assert_equal, brute_force, clustered, unit

KINDS: tuple[Literal["int8", "binary"], ...] = ("int8", "binary")
QUERIES, DOCUMENTS, DIM, K = 60, 3_000, 44, 10


def local(engine: Engine, queries: np.ndarray, documents: np.ndarray, k: int, limits: Limits | None = None) -> Hits:
    """Of one share without Ray."""
    return shares(engine, queries, documents, [[(0, len(documents))]], k=k, limits=limits)


def shares(
    engine: Engine,
    queries: np.ndarray,
    documents: np.ndarray,
    spans: list[list[tuple[int, int]]],
    *,
    k: int = K,
    limits: Limits | None = None,
) -> Hits:
    """Documents lo .. hi in pieces, by share."""
    found = []
    dropped_Q = np.zeros(len(queries), np.int64)
    for share in spans:
        place = Place(torch.device("cpu"), Buffers())
        block = engine.block(queries, k, limits, place, where="queries")
        for lo, hi in share:
            block.add(engine.prepare(documents[lo:hi], Piece(0, lo, hi, lo), place, where="documents"))
        found.append(block.keys_QK)
        dropped_Q += block.dropped_Q
    return Hits.of(engine.merge(found, k), dropped_Q)


def numpy_codes(kind: str, vectors_ND: np.ndarray, documents_MD: np.ndarray) -> np.ndarray:
    """float32 [N, D] that the codes stand for, with the ranges of all documents, written out plainly."""
    if kind == "binary":
        return np.where(vectors_ND > 0, 1, -1).astype(np.float32)
    low, high = documents_MD.min(0), documents_MD.max(0)
    step = (high - low) / np.float32(255)
    code = np.clip(np.round((vectors_ND - low) / step), 0, 255)
    return (code * step + low).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(QUERIES, DIM, 1, centres=20, noise=0.9)


@pytest.fixture(scope="module")
def documents() -> np.ndarray:
    return clustered(DOCUMENTS, DIM, 1, centres=20, noise=0.9)


@pytest.fixture(scope="module")
def stored(documents: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> VectorShards:
    return VectorShards.write(str(tmp_path_factory.mktemp("vectors")), [documents], shard_rows=700)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", ["float", "quantised"])
def test_without_rescoring_it_is_the_search_over_the_codes(
    kind: Any, asked: Any, queries: np.ndarray, documents: np.ndarray, stored: VectorShards
) -> None:
    engine = Quantised.calibrated(kind, stored, rescore=0, queries=asked)
    left = numpy_codes(kind, queries, documents) if asked == "quantised" else queries
    wanted = brute_force(left, numpy_codes(kind, documents, documents), K)
    assert_equal(local(engine, queries, documents, K), wanted)
    if kind == "binary" and asked == "quantised":
        bits = np.packbits(queries > 0, axis=1)[:, None] ^ np.packbits(documents > 0, axis=1)[None]
        hamming_QM = np.bitwise_count(bits).sum(2).astype(int)
        np.testing.assert_array_equal(wanted.scores_QK, DIM - 2 * np.take_along_axis(hamming_QM, wanted.rows_QK, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_with_everything_rescored_it_is_exact(
    kind: Any, queries: np.ndarray, documents: np.ndarray, stored: VectorShards
) -> None:
    engine = Quantised.calibrated(kind, stored, rescore=DOCUMENTS // K)
    assert_equal(local(engine, queries, documents, K), brute_force(queries, documents, K))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rescore", [1, 3])
def test_the_candidates_are_those_of_all_documents_however_they_are_dealt(
    kind: Any, rescore: int, queries: np.ndarray, documents: np.ndarray, stored: VectorShards
) -> None:
    engine = Quantised.calibrated(kind, stored, rescore=rescore)
    first = brute_force(queries, numpy_codes(kind, documents, documents), rescore * K)
    scores_QM = (queries.astype(np.float64) @ documents.astype(np.float64).T).astype(np.float32)
    wanted_QK = np.empty((QUERIES, K), np.int64)
    for q, rows in enumerate(first.rows_QK):
        wanted_QK[q] = rows[np.lexsort((rows, -scores_QM[q, rows]))][:K]
    for spans in (
        [[(0, DOCUMENTS)]],
        [[(0, 7), (7, 1500)], [(1500, DOCUMENTS)]],
        [[(2000, DOCUMENTS), (0, 1000)], [(1999, 2000), (1000, 1999)], []],
    ):
        found = shares(engine, queries, documents, spans)
        np.testing.assert_array_equal(found.rows_QK, wanted_QK)
        np.testing.assert_array_equal(found.scores_QK, np.take_along_axis(scores_QM, wanted_QK, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_ties_zeros_and_few_documents(kind: Any) -> None:
    documents = np.repeat(unit(np.random.default_rng(0).normal(size=(4, 12))), 5, axis=0)
    documents[17] = 0
    queries = np.concatenate([documents[:3], np.zeros((1, 12), np.float32)])
    ranges = np.stack([documents.min(0), documents.max(0)])
    for rescore in (0, 5):
        found = local(Quantised(kind, rescore, ranges_2D=ranges), queries, documents, 30)
        assert (found.rows_QK[:, 20:] == -1).all()
        np.testing.assert_array_equal(np.sort(found.rows_QK[:, :20]), np.tile(np.arange(20), (4, 1)))
        for q in (0, 1, 2):  # its own copies come first, by number
            assert found.rows_QK[q, :5].tolist() == [0, 1, 2, 3, 4]
        assert found.rows_QK[3, :20].tolist() == list(range(20))
    limits = Limits.of(excluded=[[0, 4], [], [1], []])
    found = local(Quantised(kind, 2, ranges_2D=ranges), queries, documents, 3, limits)
    assert found.rows_QK[:3].tolist() == [[1, 2, 3], [0, 1, 2], [0, 2, 3]]


def test_codes_are_those_of_sentence_transformers() -> None:
    quantisation = pytest.importorskip("sentence_transformers.util.quantization")
    vectors = np.random.default_rng(1).normal(size=(300, 40)).astype(np.float32)
    ranges = np.stack([vectors.min(0), vectors.max(0)])
    theirs = quantisation.quantize_embeddings(vectors, "ubinary")
    np.testing.assert_array_equal(Quantised("binary").encode(vectors), theirs)
    codes = Quantised("int8", ranges_2D=ranges).encode(vectors)
    assert codes.dtype == np.int8 and codes.min() == -128 and codes.max() == 127
    # They cut what is behind the point (towards 0), here it is rounded: never more than one step apart.
    theirs = quantisation.quantize_embeddings(vectors, "int8", ranges=ranges)
    assert np.abs(codes.astype(int) - theirs).max() == 1


def test_what_the_codes_hold() -> None:
    vectors = np.random.default_rng(2).normal(size=(50, 21)).astype(np.float32)
    vectors[:, 3] = 0.25  # a dimension without a range
    engine = Quantised("int8", ranges_2D=np.stack([vectors.min(0), vectors.max(0)]))
    codes = engine.encode(vectors)
    assert codes.nbytes == len(vectors) * engine.bytes_per_document(21) == 50 * 21
    step = (vectors.max(0) - vectors.min(0)) / 255
    assert (np.abs(engine.decode(codes, 21) - vectors) <= 0.501 * step).all()
    assert engine.decode(engine.encode(vectors * 9), 21).max() <= vectors.max() + 1e-6  # the end of the range
    binary = Quantised("binary")
    codes = binary.encode(vectors)
    assert codes.nbytes == len(vectors) * binary.bytes_per_document(21) == 50 * 3
    np.testing.assert_array_equal(binary.decode(codes, 21), np.where(vectors > 0, 1, -1))


def test_what_cannot_be_quantised(tmp_path: Path, documents: np.ndarray) -> None:
    with pytest.raises(ValueError, match="int8 needs the ranges"):
        Quantised("int8")
    with pytest.raises(ValueError, match="rescore=-1"):
        Quantised("binary", -1)
    bad = documents.copy()
    bad[1605, 3] = np.nan
    with pytest.raises(InputError, match=r"vectors-00002\.npy: vector 205 .* not finite"):
        Quantised.calibrated("int8", VectorShards.write(str(tmp_path), [bad], shard_rows=700))
    with pytest.raises(InputError, match=r"documents: vector 1,605 .* not finite"):
        local(Quantised("binary"), documents[:3], bad, K)
    bounds = Limits.of(bound_Q=np.full(3, 0.5), excluded=[[]] * 3)
    with pytest.raises(ValueError, match="bounds are for true scores"):
        local(Quantised("binary"), documents[:3], documents, K, bounds)


def test_ranges_of_a_sample_do_not_depend_on_shards(
    documents: np.ndarray, stored: VectorShards, tmp_path: Path
) -> None:
    other = VectorShards.write(str(tmp_path), [documents], shard_rows=31)
    for sample in (50, 10**6):
        np.testing.assert_array_equal(ranges_of(other, sample, 1), ranges_of(stored, sample, 1))
    np.testing.assert_array_equal(ranges_of(stored, 10**6, 1), [documents.min(0), documents.max(0)])


def test_the_first_dimensions(documents: np.ndarray, stored: VectorShards) -> None:
    def read(vectors: VectorShards, most: int) -> np.ndarray:
        return np.concatenate([vectors.read(piece) for piece in vectors.pieces(0, len(vectors), most=most)])

    plain = read(truncated(stored, 16, unit=False), 700)
    np.testing.assert_array_equal(plain, documents[:, :16])
    short = truncated(stored, 16, unit=True)
    assert short.dimension == 16 and len(short) == DOCUMENTS
    scaled = read(short, 700)
    np.testing.assert_allclose(scaled, unit(documents[:, :16]), rtol=1e-6)
    np.testing.assert_array_equal(read(short, 1), scaled)
    np.testing.assert_array_equal(read(truncated(short, 5, unit=False), 90), scaled[:, :5])
    assert truncate(np.array([[0, 0, 3]], np.float32), 2, unit=True).tolist() == [[0, 0]]
    for wanted in (0, 45):
        with pytest.raises(ConfigError, match=f"{wanted} dimensions are asked for; the vectors have 44"):
            truncated(stored, wanted, unit=True)


@pytest.mark.usefixtures("local_ray")
def test_on_ray_shards_and_workers_change_nothing(
    queries: np.ndarray, documents: np.ndarray, stored: VectorShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(blocks: Iterator[tuple[int, Hits]]) -> Hits:
        parts = [hits for _, hits in blocks]
        names = ("rows_QK", "scores_QK", "dropped_Q")
        return Hits(*(np.concatenate([getattr(hits, name) for hits in parts]) for name in names))

    engine = Quantised.calibrated("binary", stored, rescore=2)
    wanted = local(engine, queries, documents, K)
    exact = local(Exact(), queries, documents, K)
    found = [np.isin(a, b).mean() for a, b in zip(wanted.rows_QK, exact.rows_QK, strict=True)]
    assert 0.3 < np.mean(found) < 1  # so that the layout could show
    assert_equal(joined(search(queries, stored, K, workers=1, engine=engine)), wanted)
    monkeypatch.setattr(distributed, "_BLOCK", 16)
    monkeypatch.setattr(distributed, "_LEAST_ROWS", 100)
    assert_equal(joined(search(queries, stored, K, workers=2, query_block=16, engine=engine)), wanted)
    short, left = truncated(stored, 16, unit=True), truncate(queries, 16, unit=True)
    wanted = brute_force(left, truncate(documents, 16, unit=True), K)
    assert_equal(joined(search(left, short, K, workers=2, query_block=16)), wanted)
