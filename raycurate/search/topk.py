"""The exact k best documents of a block of queries, as documents are added.

Most of the work is a scan in bfloat16 (where the hardware has it) that leaves a few hundred pairs a query open
(scan.py); those are scored one by one. Queries of which a scan leaves too many open are scanned again in float32, and
those of which that leaves too many (many equal or nearly equal documents) are done by a float64 product whose scores
are all looked at, a bounded number of them at a time. What is found is the same whichever way a query went.

Limits apply inside: a document that is excluded or above its query's bound never takes a place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raycurate.models.devices import bfloat16_is_faster, true_float32
from raycurate.search.hits import EMPTY, Hits, Limits, best_of, keys_of, take_pairs
from raycurate.search.prepared import Buffers, Documents, Vectors, score_pairs
from raycurate.search.scan import Asked, most_open, scan, where

_PAIRS = 1 << 22  # open pairs held at a time
_ROWS = 1024  # queries of one scan; the more, the less often the documents are repacked for the product
_DENSE = 1 << 20  # float64 scores held at a time
_DENSE_SPAN = 8192  # documents of one float64 product


class TopK:
    """The state of a block of queries.

    Args:
        queries_QD: float32 [Q, D].
        k: how many documents are wanted.
        limits: of these queries.
        device: where the products are computed; documents must be prepared there.
        rough: whether there is a first pass in bfloat16; None: where the hardware multiplies it.
        buffers: work memory, which several blocks that are searched in turn may share.
        where: what the queries are called in an error.

    Raises:
        InputError: a query that is not finite, or longer than 1e18.
        ValueError: k < 1, or limits of another number of queries.
    """

    def __init__(
        self,
        queries_QD: np.ndarray,
        k: int,
        *,
        limits: Limits | None = None,
        device: torch.device | None = None,
        rough: bool | None = None,
        buffers: Buffers | None = None,
        where: str = "queries",
    ) -> None:
        if k < 1:
            raise ValueError(f"k={k}")
        if limits is not None and len(limits) != len(queries_QD):
            raise ValueError(f"limits of {len(limits)} queries where there are {len(queries_QD)}")
        self.k, self.device = k, device or torch.device("cpu")
        self.rough = bfloat16_is_faster(self.device) if rough is None else rough
        self.queries = Vectors.of(queries_QD, self.device, rough=self.rough, where=where)
        self.buffers = buffers or Buffers()
        count = len(queries_QD)
        self.keys_QK = np.full((count, k), EMPTY, np.uint64)
        self.dropped_Q = np.zeros(count, np.int64)
        bounded = limits is not None and limits.bound_Q is not None and bool((limits.bound_Q < np.inf).any())
        self.bound_Q = limits.bound_Q if bounded and limits is not None else None
        query_E, row_E = np.empty(0, np.int64), np.empty(0, np.int64)
        if limits is not None:
            query_E = np.repeat(np.arange(count), np.diff(limits.excluded_offsets))
            row_E = np.asarray(limits.excluded_rows, np.int64)
        order = np.argsort(row_E, kind="stable")
        self.excluded = query_E[order], row_E[order]
        barred = limits.barred if limits is not None else None
        self.barred = np.empty(0, np.int64) if barred is None else np.unique(np.asarray(barred, np.int64))

    def prepare(self, documents_MD: np.ndarray, first_row: int, *, where: str = "documents") -> Documents:
        """Documents made ready for this block and any other of the same device and first pass."""
        return Documents.of(documents_MD, first_row, self.device, rough=self.rough, where=where)

    def add(self, documents: Documents | np.ndarray, first_row: int = 0) -> None:
        """Take in documents: prepared ones, or float32 [M, D] whose first has the number `first_row`.

        Their numbers must not have been added before; the order of additions does not matter.
        """
        if not isinstance(documents, Documents):
            documents = self.prepare(documents, first_row)
        if not len(documents) or not len(self.queries):
            return
        with torch.inference_mode(), true_float32():
            left_R = torch.arange(len(self.queries), device=self.device)
            if len(documents) > 4 * self.k:
                if self.rough:
                    left_R = self._narrow(left_R, documents, rough=True)
                left_R = self._narrow(left_R, documents, rough=False)
            self._dense(left_R, documents)

    def hits(self) -> Hits:
        """The k best of what was added."""
        return Hits.of(self.keys_QK, self.dropped_Q)

    def _narrow(self, rows_R: Tensor, documents: Documents, *, rough: bool) -> Tensor:
        """Answer these queries by a scan in one precision; returns those that it could not answer."""
        most = max(16, min(_ROWS if rough else _ROWS // 2, _PAIRS // most_open(len(documents), self.k)))
        left = [rows_R[:0]]
        for part_R in rows_R.split(most) if len(rows_R) else ():
            found = scan(self._asked(part_R, documents, rough=rough), documents, self.k, self.buffers)
            query_P = part_R[found.query_P]
            scores_P = score_pairs(self.queries.exact_ND, documents.vectors.exact_ND, query_P, found.column_P)
            dropped_R = found.dropped_R.masked_fill(found.crowded_R, 0)
            self.dropped_Q[part_R.cpu().numpy()] += dropped_R.cpu().numpy()
            column_P = found.column_P.cpu().numpy() + documents.first
            self._take(query_P.cpu().numpy(), column_P, scores_P.cpu().numpy())
            left.append(part_R[found.crowded_R])
        return torch.cat(left)

    def _asked(self, rows_R: Tensor, documents: Documents, *, rough: bool) -> Asked:
        queries, rows = self.queries, rows_R.cpu().numpy()
        bound_R = None
        if self.bound_Q is not None:
            bound_R = torch.from_numpy(self.bound_Q[rows]).double().to(self.device)
        rough_RD = queries.rough_ND[rows_R] if rough and queries.rough_ND is not None else None
        query_E, column_E = self._excluded_from(rows, documents.first, len(documents))
        return Asked(
            queries.exact_ND[rows_R],
            rough_RD,
            queries.size_N[rows_R],
            queries.lost_N[rows_R],
            torch.from_numpy(self._least(rows)).to(self.device),
            bound_R,
            (torch.from_numpy(query_E).to(self.device), torch.from_numpy(column_E).to(self.device)),
            torch.from_numpy(self._barred_from(documents.first, len(documents))).to(self.device),
        )

    def _least(self, rows: np.ndarray) -> np.ndarray:
        """float64 score of each query's k-th hit, -inf where it has fewer."""
        last = Hits.of(self.keys_QK[rows, -1:], self.dropped_Q[rows])
        return last.scores_QK[:, 0].astype(np.float64)

    def _excluded_from(self, rows: np.ndarray, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(index into rows, column among documents first, first + 1, ...) of excluded pairs, sorted by column."""
        query_E, row_E = self.excluded
        lo, hi = np.searchsorted(row_E, (first, first + count))
        index_Q = np.full(len(self.keys_QK), -1)
        index_Q[rows] = np.arange(len(rows))
        index_E = index_Q[query_E[lo:hi]]
        return index_E[index_E >= 0], row_E[lo:hi][index_E >= 0] - first

    def _barred_from(self, first: int, count: int) -> np.ndarray:
        """Columns of documents first, first + 1, ... that are barred, sorted."""
        lo, hi = np.searchsorted(self.barred, (first, first + count))
        return self.barred[lo:hi] - first

    def _take(self, query_P: np.ndarray, row_P: np.ndarray, scores_P: np.ndarray) -> None:
        """Take in scored pairs, sorted by query: those above the bound are counted, the others compete."""
        if self.bound_Q is not None:
            over_P = scores_P > self.bound_Q[query_P]
            self.dropped_Q += np.bincount(query_P[over_P], minlength=len(self.dropped_Q))
            query_P, row_P, scores_P = query_P[~over_P], row_P[~over_P], scores_P[~over_P]
        take_pairs(self.keys_QK, query_P, keys_of(scores_P, row_P))

    def _dense(self, rows_R: Tensor, documents: Documents) -> None:
        """Answer queries by all of their scores."""
        for lo in range(0, len(documents), _DENSE_SPAN) if len(rows_R) else ():
            double_SD = documents.vectors.exact_ND[lo : lo + _DENSE_SPAN].double()
            for part_R in rows_R.split(max(1, _DENSE // len(double_SD))):
                scores_RS = self._all_scores(part_R, documents, lo, double_SD)
                self._take_all(part_R.cpu().numpy(), scores_RS.cpu().numpy(), documents.first + lo)

    def _all_scores(self, rows_R: Tensor, documents: Documents, lo: int, double_SD: Tensor) -> Tensor:
        """Scores of all pairs: the float64 product, rounded where its error cannot change the result."""
        queries = self.queries
        product_RS = queries.exact_ND[rows_R].double() @ double_SD.T
        # Twice D * 2^-53 |x| |c|, once for this order of summing and once for that of score_pairs; and as much again.
        error_R = 4 * (double_SD.shape[1] + 8) * 2.0**-53 * queries.size_N[rows_R].double()
        size_S = documents.vectors.size_N[lo : lo + len(double_SD)].double()
        scores_RS = torch.addr(product_RS, error_R, size_S, alpha=-1).float()
        at_P = where(scores_RS != torch.addr(product_RS, error_R, size_S).float())
        row_P, column_P = at_P // len(double_SD), at_P % len(double_SD)
        exact_MD = documents.vectors.exact_ND
        scores_RS[row_P, column_P] = score_pairs(queries.exact_ND, exact_MD, rows_R[row_P], column_P + lo)
        return scores_RS

    def _take_all(self, rows: np.ndarray, scores_RS: np.ndarray, first: int) -> None:
        """Take in the scores of all pairs of some queries with documents first, first + 1, ..."""
        numbers_S = np.arange(first, first + scores_RS.shape[1])
        keys_RS = keys_of(scores_RS, numbers_S[None])
        excluded, barred = self._excluded_from(rows, first, len(numbers_S)), self._barred_from(first, len(numbers_S))
        if self.bound_Q is not None:
            over_RS = scores_RS > self.bound_Q[rows][:, None]
            over_RS[excluded] = False
            over_RS[:, barred] = False
            self.dropped_Q[rows] += over_RS.sum(1)
            keys_RS[over_RS] = EMPTY
        keys_RS[excluded] = EMPTY
        keys_RS[:, barred] = EMPTY
        self.keys_QK[rows] = best_of(np.concatenate([self.keys_QK[rows], keys_RS], axis=1), self.k)
