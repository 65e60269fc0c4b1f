"""Batches of one rank and one micro-step, made a few ahead in a thread.

    for batch in Feed(prepared, order, split, rank=0).prefetched(start=1200, end=3000): ...

A batch is a function of the prepared data, the order and the place in it (epoch, step, micro-step, rank) and of nothing
else: no state is kept between batches, so a run can begin at any step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from raycurate.models.tokenize import TokenBatch
from raycurate.training.batches.known_positives import offsets_of, spread
from raycurate.training.batches.order import BatchSplit, QuestionOrder, Share
from raycurate.training.batches.prepared import Prepared
from raycurate.training.loss.losses import Columns
from raycurate.training.loss.masks import Keys, own_columns

FILLER_KEY = 0
"""The key of passages that are there only so that no rank is without a row; no question may count them."""


@dataclass(frozen=True)
class TokenInputs:
    """What a model reads: int64 [n, length], padded on the right; the mask is 1 at real tokens."""

    input_ids: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.attention_mask.sum())


class Place(NamedTuple):
    """Where in the training a batch stands. `last`: it is the last micro-step of its step. `questions`: of the step, on
    all ranks and in all micro-steps, which is what a mean over the global batch divides by."""

    epoch: int
    step: int
    micro_step: int
    last: bool
    questions: int


@dataclass(frozen=True)
class Batch:
    """Q questions and their N passages each.

    Attributes:
        queries: [Q, length].
        passages: [Q * N, length], row by row, the positive of each question first.
        keys: what the masks are made from, for this batch's own columns or those of all ranks (masks.py).
        question_keys_Q: int64, of (corpus, question text).
        real_Q: bool; False at a filler, which stands where a rank would have no row in the last, incomplete batch. Its
            loss must not count; its passages are forbidden to every question.
        teacher_QN: float32 scores of the passages, None unless asked for.
        teacher_queries_QD, teacher_passages_PD: float32, a teacher's vectors of the questions and of the passages in
            their order; None unless the data were prepared with one.
        question_ids: for messages.
    """

    place: Place
    queries: TokenInputs
    passages: TokenInputs
    keys: Keys
    question_keys_Q: Tensor
    real_Q: Tensor
    teacher_QN: Tensor | None
    teacher_queries_QD: Tensor | None
    teacher_passages_PD: Tensor | None
    question_ids: list[str]

    def __len__(self) -> int:
        """Questions, fillers included."""
        return len(self.queries)

    @property
    def columns(self) -> Columns:
        """The columns are this batch's own passages; `masks.gathered_columns(batch.keys)` for those of all ranks."""
        return own_columns(self.keys)

    def to(self, device: torch.device | str) -> Self:
        """The same on a device; from pinned memory without waiting for the copy."""
        return _map_tensors(self, lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same in page-locked memory (CUDA only)."""
        return _map_tensors(self, Tensor.pin_memory)


def _map_tensors(value: Any, change: Any) -> Any:
    """A dataclass with every tensor in it changed."""
    changed = {}
    for each in fields(value):
        held = getattr(value, each.name)
        if isinstance(held, Tensor):
            changed[each.name] = change(held)
        elif isinstance(held, TokenInputs | Keys):
            changed[each.name] = _map_tensors(held, change)
    return replace(value, **changed)


def pad_tokens(
    tokens: TokenBatch, rows: np.ndarray, pad_id: int, *, multiple_of: int = 1, positions: int | None = None
) -> TokenInputs:
    """`rows` of `tokens` as a rectangle.

    Args:
        pad_id: what stands at padding.
        multiple_of: the length is a multiple of it, so that kernels see few shapes and fill their tiles.
        positions: what the model has; a multiple beyond it is cut to it.
    """
    starts = np.asarray(tokens.offsets[rows])
    counts = np.asarray(tokens.offsets[rows + 1]) - starts
    longest = max(int(counts.max(initial=1)), 1)
    length = -(-longest // multiple_of) * multiple_of
    length = length if positions is None else max(min(length, positions), longest)
    mask = np.arange(length)[None, :] < counts[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = tokens.ids[spread(starts, counts)]
    return TokenInputs(torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64)))


def collate(prepared: Prepared, share: Share, place: Place, *, pad_to_multiple_of: int = 8) -> Batch:
    """The batch of these questions."""
    rows = share.rows
    documents_QN, teacher_QN = prepared.passages.pick(rows, place.epoch)
    documents = documents_QN.ravel()

    def padded(tokens: TokenBatch, which: np.ndarray) -> TokenInputs:
        return pad_tokens(tokens, which, prepared.pad_id, multiple_of=pad_to_multiple_of, positions=prepared.positions)

    return Batch(
        place=place,
        queries=padded(prepared.queries, rows),
        passages=padded(prepared.documents, documents),
        keys=_keys(prepared, share, documents),
        question_keys_Q=torch.from_numpy(prepared.question_keys[rows]),
        real_Q=torch.from_numpy(np.ones(len(rows), bool) if share.real is None else share.real),
        teacher_QN=None if teacher_QN is None else torch.from_numpy(teacher_QN),
        teacher_queries_QD=_rows(prepared.teacher_questions, rows),
        teacher_passages_PD=_rows(prepared.teacher_documents, documents),
        question_ids=prepared.ids_of(rows),
    )


def _rows(vectors_nD: np.ndarray | None, rows: np.ndarray) -> Tensor | None:
    """Copied out of the file that they are mapped from."""
    return None if vectors_nD is None else torch.from_numpy(np.asarray(vectors_nD[rows]))


def _keys(prepared: Prepared, share: Share, documents: np.ndarray) -> Keys:
    """With fillers anywhere in the micro-step, their passages have a key that is a known positive of every question."""
    document_keys, text_keys = prepared.document_keys[documents], prepared.text_keys[documents]
    offsets, known = prepared.known.of_rows(share.rows)
    if share.real is not None:
        filler = np.repeat(~share.real, len(documents) // len(share.rows))
        document_keys, text_keys = (np.where(filler, FILLER_KEY, keys) for keys in (document_keys, text_keys))
        known = np.insert(known, offsets[:-1], FILLER_KEY)
        offsets = offsets_of(np.diff(offsets) + 1)
    return Keys(*(torch.from_numpy(a) for a in (document_keys, text_keys, known, offsets)))


@dataclass(frozen=True)
class Feed:
    """Where a rank's batches come from: the data, the order of the questions, and this rank's share of a batch."""

    prepared: Prepared
    order: QuestionOrder
    split: BatchSplit
    rank: int = 0
    pad_to_multiple_of: int = 8

    def batches(self, start: int = 0, end: int | None = None) -> Iterator[Batch]:
        """This rank's batches from the `start`-th step of the training up to, without, the `end`-th."""
        for epoch, step, rows in self.order.steps(start, end):
            yield from self.step(epoch, step, rows)

    def step(self, epoch: int, step: int, rows: np.ndarray) -> Iterator[Batch]:
        """This rank's micro-steps of one global batch; every rank has as many."""
        shares = self.split.share(rows, self.rank)
        for number, share in enumerate(shares):
            place = Place(epoch, step, number, number == len(shares) - 1, len(rows))
            yield collate(self.prepared, share, place, pad_to_multiple_of=self.pad_to_multiple_of)

    def prefetched(self, start: int = 0, end: int | None = None, *, ahead: int = 4) -> Iterator[Batch]:
        """`batches`, made by a thread up to `ahead` before they are asked for."""
        return prefetch(self.batches(start, end), ahead)


_END = object()


def prefetch(items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """`items` in order, at most `ahead` made before they are asked for; an error comes where its item would have.

    The thread ends when the iterator is closed or forgotten, at the latest with the item that it is making.
    """
    waiting: queue.Queue[Any] = queue.Queue(max(ahead, 1))
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=work, name="raycurate-batches", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
