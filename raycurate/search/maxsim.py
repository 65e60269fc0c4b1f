"""Exact MaxSim search for multi-vector models, sharded and on Ray (ColBERT: Khattab & Zaharia 2020, arXiv:2004.12832).

A document's score is the sum over the query's tokens of each one's largest inner product with a token of the document.
It is computed twice. First for all documents by float32 products of many queries and documents, of which it is known
how wrong they can be; documents that cannot be among the k best are forgotten. Then for what is left (little more than
k documents a query) in float64, rounded to float32. That rounding is made to be the same whatever was computed beside
it, so that hits and scores do not depend on shards, workers or blocks, and equal scores are equal.

All documents are looked at: meant for corpora of up to some hundred thousand texts. There is no first pass in
bfloat16 as in the search of single vectors: its errors add up over a query's tokens and leave too much open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raycurate.core.errors import InputError
from raycurate.search.distributed import launch, plan_workers
from raycurate.search.hits import EMPTY, MOST_DOCUMENTS, Hits, Limits, keys_of, take_pairs
from raycurate.search.shards import Piece
from raycurate.search.token_shards import Tokens, TokenShards
from raycurate.search.worker import Block, Engine, Place

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raycurate.ray_runtime.cluster import ActorGroupOptions

_GROUP = 4096  # tokens of documents in one product, padding included
_ASKED = 2048  # tokens of queries in one product
_SCORES = 1 << 22  # float64 scores held at a time
_PENDING = 1 << 19  # pairs that wait for their float64 score, of a block
_DOUBLES = 1 << 18  # elements of documents' tokens held in float64
_LONGEST = 1e18  # length of a vector up to which no product leaves float32


def search_maxsim(
    queries: TokenShards | Sequence[np.ndarray],
    documents: TokenShards,
    k: int,
    *,
    query_block: int = 64,
    workers: int | None = None,
    device: str = "auto",
    options: ActorGroupOptions | None = None,
) -> Iterator[tuple[int, Hits]]:
    """The k best documents of each query by MaxSim, exactly; needs a running Ray.

    Args:
        queries: token vectors of each query, float32 [tokens, D]; of shards, one at a time is read here.
        query_block: queries that are handed out at a time.
        documents, workers, device, options: as for `search`.

    Returns:
        (number of the block's first query, hits of the block) in order, ties by the lower document number.

    Raises:
        InputError: vectors that are not finite or that differ in dimension, or a text without any.
        and what `search` raises.
    """
    from raycurate.ray_runtime.cluster import require_ray

    require_ray("search")
    if k < 1 or query_block < 1:
        raise ValueError(f"k={k}, query_block={query_block}")
    if len(documents) > MOST_DOCUMENTS:
        raise InputError(f"{len(documents):,} documents; {MOST_DOCUMENTS:,} can be numbered", where="search")
    place = plan_workers(workers, device, options)
    dimensions = {queries.dimension} if isinstance(queries, TokenShards) else {np.shape(text)[-1] for text in queries}
    if dimensions - {documents.dimension}:
        raise InputError(
            f"token vectors of queries have {sorted(dimensions)} dimensions, those of documents {documents.dimension}",
            where="search",
            fix="Embed both with the same model",
        )

    def blocks() -> Iterator[tuple[int, Hits]]:
        import ray

        for start, part in _in_turn(queries):
            found = launch(
                ray.put(part),
                len(part),
                documents,
                k,
                limits=None,
                block=query_block,
                place=place,
                engine=MaxSim(documents),
            )
            with closing(found):
                for first, hits in found:
                    yield start + first, hits

    return blocks()


def _in_turn(queries: TokenShards | Sequence[np.ndarray]) -> Iterator[tuple[int, Tokens]]:
    """(number of the first query, some queries), until all were given."""
    if isinstance(queries, TokenShards):
        for piece in queries.pieces(0, len(queries)):
            yield piece.first, queries.read(piece)
    elif len(queries):
        yield 0, Tokens.of(queries)


class MaxSim(Engine):
    """The engine of the search by MaxSim. documents: those that are searched, read again for the float64 scores."""

    queries_at_once = 1024

    def __init__(self, documents: TokenShards) -> None:
        self.documents = documents

    def prepare(self, documents_MD: Any, piece: Piece, place: Place, *, where: str) -> Any:
        texts = Texts.of(documents_MD, place.device, where=where)
        return _Prepared(piece.first, texts, _groups(documents_MD.lengths))

    def block(self, queries_QD: Any, k: int, limits: Limits | None, place: Place, *, where: str) -> Block:
        if limits is not None:
            raise ValueError("MaxSim searches without limits")
        return BestTexts(Texts.of(queries_QD, place.device, where=where), k, self.documents)


@dataclass(frozen=True)
class Texts:
    """Token vectors on the device. vectors_TD: float32. offsets: as of `Tokens`. size_T: the vectors' lengths, a
    little too large rather than too small."""

    vectors_TD: Tensor
    offsets: np.ndarray
    size_T: Tensor

    @classmethod
    def of(cls, tokens: Tokens, device: torch.device, *, where: str) -> Texts:
        """See that there is something to search by, and bring it to the device.

        Raises:
            InputError: a vector that is not finite or longer than 1e18, or a text without any; the message counts
                from `where`.
        """
        import torch

        empty_N = tokens.lengths == 0
        if empty_N.any():
            raise InputError(f"text {int(empty_N.argmax()):,} (counted from 0) has no token vectors", where=where)
        vectors_TD = torch.from_numpy(np.require(tokens.vectors_TD, np.float32, ["C", "W"])).to(device)
        size_T = torch.linalg.vector_norm(vectors_TD, dim=1)
        bad_T = ~(size_T <= _LONGEST)
        if bad_T.any():
            token = int(bad_T.nonzero()[0, 0])
            row = int(np.searchsorted(tokens.offsets, token, side="right")) - 1
            kind = "too long for float32 scores" if torch.isfinite(vectors_TD[token]).all() else "not finite"
            raise InputError(f"a token vector of text {row:,} (counted from 0) is {kind}", where=where)
        vanished = vectors_TD.shape[1] ** 0.5 * 2.0**-62  # at most so long is what has squares too small for float32
        return cls(vectors_TD, tokens.offsets, size_T.mul_(1.0001).add_(vanished))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def widest(self) -> float:
        return float(self.size_T.max())


@dataclass(frozen=True)
class _Prepared:
    """Texts first, first + 1, ..., and their rows in groups of like length."""

    first: int
    texts: Texts
    groups: list[np.ndarray]


def _groups(lengths_M: np.ndarray) -> list[np.ndarray]:
    """Rows of texts, the shortest first, so that a group padded to its longest has few tokens more than it has."""
    order = np.argsort(lengths_M, kind="stable")
    found, start = [], 0
    for at, length in enumerate(lengths_M[order].tolist()):
        if at > start and (at + 1 - start) * length > _GROUP:
            found.append(order[start:at])
            start = at
    return [*found, order[start:]] if len(order) else []


class BestTexts:
    """The state of a block of queries.

    lows_QK: float64, the k largest scores that as many documents are known to reach. pending: (query [P], document
    number [P], score it may have at most [P]) of what may be among the k best.
    """

    def __init__(self, queries: Texts, k: int, documents: TokenShards) -> None:
        self.queries, self.k, self.documents = queries, k, documents
        self.tokens_Q = np.diff(queries.offsets)
        self.size_Q = np.add.reduceat(queries.size_T.double().cpu().numpy(), queries.offsets[:-1])
        self.best_QK = np.full((len(queries), k), EMPTY, np.uint64)
        self.lows_QK = np.full((len(queries), k), -np.inf)
        self.pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.dropped_Q = np.zeros(len(queries), np.int64)
        self.device: torch.device = queries.vectors_TD.device

    @property
    def keys_QK(self) -> np.ndarray:
        self.settle()
        return self.best_QK

    def add(self, documents: _Prepared) -> None:
        """Take in documents: what may be among the k best waits for its float64 score."""
        from raycurate.models.devices import true_float32

        error_Q = self._error(documents.texts)
        with true_float32():
            for lo, hi in self._parts(len(documents.texts)):
                scores_RM = self._scores(lo, hi, documents)
                low_RM = scores_RM - error_Q[lo:hi, None]
                lows_RW = np.concatenate([self.lows_QK[lo:hi], low_RM], axis=1)
                self.lows_QK[lo:hi] = -np.partition(-lows_RW, self.k - 1, axis=1)[:, : self.k]
                least_R = self.lows_QK[lo:hi].min(1)
                high_RM = scores_RM + error_Q[lo:hi, None]
                query_P, column_P = np.nonzero(high_RM >= least_R[:, None])
                self.pending.append((query_P + lo, column_P + documents.first, high_RM[query_P, column_P]))
        if sum(len(query_P) for query_P, _, _ in self.pending) > _PENDING:
            self._prune()
            if len(self.pending[0][0]) > _PENDING // 2:
                self.settle()

    def settle(self) -> None:
        """Score what waits, and keep the k best."""
        if not self.pending:
            return
        self._prune()
        query_P, row_P, _ = self.pending.pop()
        order = np.lexsort((row_P, query_P))
        query_P, row_P = query_P[order], row_P[order]
        for piece in self.documents.pieces(0, len(self.documents)):
            here = np.flatnonzero((row_P >= piece.first) & (row_P < piece.first + len(piece)))
            if len(here):
                documents = self.documents.read(piece)
                scores_P = self._exact(query_P[here], row_P[here] - piece.first, documents)
                take_pairs(self.best_QK, query_P[here], keys_of(scores_P, row_P[here]))

    def _error(self, documents: Texts) -> np.ndarray:
        """float64 [Q], how far the first pass is off at most.

        A sum of D products in float32, in any order, is off by at most D * 2^-24 * |x| |c| to first order, and so are
        the largest of several and the sum of those; the factor 2 and the 8 cover the second order and the rounding of
        a score to float32, which may make it equal to a larger one. The last term: products too small for a float32.
        """
        dim = documents.vectors_TD.shape[1]
        tiny_Q = dim * 2.0**-120 * (self.tokens_Q + self.size_Q) * (1 + documents.widest)
        return 2 * (dim + 8) * 2.0**-24 * self.size_Q * documents.widest + tiny_Q

    def _parts(self, documents: int) -> Iterator[tuple[int, int]]:
        """Ranges of queries with few enough tokens and few enough scores."""
        most, start = max(1, _SCORES // max(1, documents)), 0
        for at in range(1, len(self.queries) + 1):
            last = at == len(self.queries)
            if last or at + 1 - start > most or self.queries.offsets[at + 1] - self.queries.offsets[start] > _ASKED:
                yield start, at
                start = at

    def _scores(self, lo: int, hi: int, documents: _Prepared) -> np.ndarray:
        """float64 [hi - lo, M], the sums of float32 products."""
        import torch

        offsets = self.queries.offsets[lo : hi + 1]
        asked_ID = self.queries.vectors_TD[offsets[0] : offsets[-1]]
        lengths_R = torch.from_numpy(np.diff(offsets)).to(self.device)
        query_I = torch.repeat_interleave(torch.arange(hi - lo, device=self.device), lengths_R)
        starts_M, lengths_M = documents.texts.offsets[:-1], np.diff(documents.texts.offsets)
        scores_MR = torch.zeros((len(lengths_M), hi - lo), dtype=torch.float64, device=self.device)
        for rows_G in documents.groups:
            longest = int(lengths_M[rows_G[-1]])
            # Where a text ends its last token is repeated, which leaves the largest product what it is.
            token_GJ = np.minimum(np.arange(longest), lengths_M[rows_G, None] - 1) + starts_M[rows_G, None]
            token_T = torch.from_numpy(token_GJ.ravel()).to(self.device)
            products_TI = documents.texts.vectors_TD.index_select(0, token_T) @ asked_ID.T
            best_GI = products_TI.view(len(rows_G), longest, -1).amax(1).double()
            found_GR = best_GI.new_zeros(len(rows_G), hi - lo).index_add_(1, query_I, best_GI)
            scores_MR[torch.from_numpy(rows_G).to(self.device)] = found_GR
        return scores_MR.T.contiguous().cpu().numpy()

    def _prune(self) -> None:
        """Forget what cannot be among the k best any more."""
        query_P, row_P, high_P = (np.concatenate(parts) for parts in zip(*self.pending, strict=True))
        open_P = high_P >= self.lows_QK.min(1)[query_P]
        self.pending = [(query_P[open_P], row_P[open_P], high_P[open_P])]

    def _exact(self, query_P: np.ndarray, row_P: np.ndarray, documents: Tokens) -> np.ndarray:
        """float32 [P], the scores of pairs, sorted by query, as they are given out."""
        import torch

        queries, scores_P = self.queries, np.empty(len(query_P), np.float32)
        whole_TD = torch.from_numpy(np.require(documents.vectors_TD, np.float32, ["C", "W"]))
        for query, start, count in zip(*np.unique(query_P, return_index=True, return_counts=True), strict=True):
            asked_ID = queries.vectors_TD[queries.offsets[query] : queries.offsets[query + 1]].double()
            for lo, hi in _within(documents.lengths[row_P[start : start + count]], _DOUBLES // whole_TD.shape[1]):
                part = slice(start + lo, start + hi)
                parts = [whole_TD[documents.offsets[row] : documents.offsets[row + 1]] for row in row_P[part]]
                scores_P[part] = exact_maxsim(asked_ID, [part_JD.to(self.device) for part_JD in parts])
        return scores_P


def _within(lengths: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Ranges whose lengths add up to `most`, or of one."""
    start, total = 0, 0
    for at, length in enumerate(lengths.tolist()):
        if at > start and total + length > most:
            yield start, at
            start, total = at, 0
        total += length
    yield start, len(lengths)


def exact_maxsim(query_ID: Tensor, documents: Sequence[Tensor]) -> np.ndarray:
    """float32 [documents], MaxSim in float64, rounded once.

    Args:
        query_ID: float64, token vectors of one query.
        documents: float32 [tokens, D] each.

    A product of matrices sums in an order that depends on what else is in it. Where that could change the rounding,
    the pair is computed alone, in an order of its own.
    """
    import torch

    tokens_TD = torch.cat(list(documents))
    products_IT = query_ID @ tokens_TD.double().T
    best_CI = [part_IJ.amax(1) for part_IJ in products_IT.split([len(tokens_JD) for tokens_JD in documents], 1)]
    sums_C = torch.stack(best_CI).sum(1)
    # Twice for the two orders of summing, and as much again; the sum over the query's tokens has an error too.
    longest = 1.001 * float(torch.linalg.vector_norm(tokens_TD, dim=1).max()) + query_ID.shape[1] ** 0.5 * 2.0**-62
    error = 4 * (sum(query_ID.shape) + 8) * 2.0**-53 * longest * float(torch.linalg.vector_norm(query_ID, dim=1).sum())
    scores_C = (sums_C - error).float()
    for at in (scores_C != (sums_C + error).float()).nonzero()[:, 0].tolist():
        products_IJD = query_ID[:, None] * documents[at].double()[None]
        scores_C[at] = products_IJD.sum(2).amax(1).sum()
    scores: np.ndarray = scores_C.cpu().numpy()
    return scores
