"""The order of the questions: which are in which global batch, and which of a batch on which rank.

The order is a function of seed, epoch, the number of questions and their lengths, never of the layout: it is cut
into global batches first, and only then is a batch shared among ranks and micro-steps. So any number of ranks
and any accumulation see the same global batches, and a run that stopped at a step goes on at that step, with
another number of ranks too, without reading what came before.

Questions of like length share a batch, or padding would be half of the work; but only among those that the shuffle
has put within `window` batches of each other, so that an epoch is still a shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raycurate.core.errors import ConfigError


@dataclass(frozen=True)
class BatchSplit:
    """How a global batch is shared: `accumulation` micro-steps of `local` questions on each of `ranks` ranks."""

    global_batch: int
    ranks: int
    local: int

    @property
    def accumulation(self) -> int:
        """Micro-steps of a full batch."""
        return -(-self.global_batch // (self.local * self.ranks))

    def micro_steps(self, batch: np.ndarray) -> list[np.ndarray]:
        """The rows of a global batch, cut for the micro-steps: each `local` x `ranks` rows, the last what is left."""
        size = self.local * self.ranks
        return [batch[first : first + size] for first in range(0, len(batch), size)]

    def share(self, batch: np.ndarray, rank: int) -> list[Share]:
        """What is `rank`'s of `batch`, for each micro-step; every rank has as many micro-steps and a row in each.

        Rows are dealt out one by one: a batch is sorted by length, so ranks get equal work and a micro-step rows
        of like length. In the last micro-step of an incomplete batch there may be fewer rows than ranks.
        """
        return [self._deal(rows, rank) for rows in self.micro_steps(batch)]

    def _deal(self, rows: np.ndarray, rank: int) -> Share:
        if len(rows) >= self.ranks:
            return Share(rows[rank :: self.ranks], None)
        return Share(rows[rank % len(rows)][None], np.array([rank < len(rows)]))


@dataclass(frozen=True)
class Share:
    """Rows of one rank in one micro-step. real: bool, False at a filler, which is there because models that are sharded
    over ranks must run on all of them, and must not count; None where no rank has fillers."""

    rows: np.ndarray
    real: np.ndarray | None


def split_batch(global_batch: int, *, ranks: int, local_batch: int | None = None, uneven: bool = False) -> BatchSplit:
    """How `global_batch` questions are shared among `ranks`.

    Args:
        local_batch: questions of one rank in one micro-step; None: all of the rank's, without accumulation.
        uneven: allow what does not divide; then some ranks have a question less in some micro-steps, and
            means must be weighted by the number of questions (elastic training, validation).

    Raises:
        ConfigError: the global batch is not local x ranks x a whole accumulation; it says what would be.
    """
    for name, value in (("global_batch_size", global_batch), ("ranks", ranks), ("local_batch_size", local_batch)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is less than 1")
    local = -(-global_batch // ranks) if local_batch is None else local_batch
    if not uneven and global_batch % (local * ranks):
        raise _indivisible(global_batch, ranks, local_batch)
    return BatchSplit(global_batch, ranks, local)


def _indivisible(global_batch: int, ranks: int, local_batch: int | None) -> ConfigError:
    step = ranks * (local_batch or 1)
    below, above = global_batch // step * step, (global_batch // step + 1) * step
    fixes = [f"Set global_batch_size to {f'{below} or ' if below else ''}{above}"]
    if global_batch % ranks == 0:
        share = global_batch // ranks
        sizes = [n for n in range(1, share + 1) if share % n == 0]
        shown = sizes if len(sizes) <= 8 else [*sizes[:3], *sizes[-5:]]
        fixes.append(f"or local_batch_size to a divisor of {share}: {', '.join(map(str, shown))}")
    counts = [n for n in range(1, global_batch + 1) if global_batch % (n * (local_batch or 1)) == 0]
    if counts:
        near = sorted(sorted(counts, key=lambda n: abs(n - ranks))[:4])
        fixes.append(f"or train with another number of ranks: {', '.join(map(str, near))}")
    asked = f"{ranks} ranks" if local_batch is None else f"local_batch_size={local_batch} x {ranks} ranks"
    return ConfigError(
        f"global_batch_size={global_batch} is no multiple of {asked} ({step} questions a micro-step)",
        where="batch sizes",
        fix=", ".join(fixes),
    )


@dataclass(frozen=True)
class OrderOptions:
    """How questions are ordered.

    seed: of the shuffle, 0 or more. global_batch: questions a step. window: batches among which rows are sorted by
    length; 0 for no sorting at all. drop_last: leave out the questions of an incomplete last batch (others in each
    epoch); else they are a smaller batch, the last of its group. shuffle: False keeps the file's order but for the
    sorting.
    """

    seed: int
    global_batch: int
    window: int
    drop_last: bool
    shuffle: bool

    @classmethod
    def for_validation(cls, global_batch: int) -> OrderOptions:
        """Every question once, each time in the same order: sorted by length within all."""
        return cls(seed=0, global_batch=global_batch, window=1 << 40, drop_last=False, shuffle=False)


class QuestionOrder:
    """The global batches of every epoch.

    Args:
        lengths: int [n], what a question costs (tokens); only their order matters.
        groups: int [n]: questions of different groups share no batch (homogeneous by corpus); None: all may.

    Raises:
        ConfigError: there are no questions, a negative seed, or a group that would never be trained on because it
            is smaller than a batch and incomplete batches are dropped.
    """

    def __init__(self, lengths: np.ndarray, options: OrderOptions, *, groups: np.ndarray | None = None) -> None:
        self.options = options
        self.lengths = np.asarray(lengths)
        self.members = _members(len(self.lengths), groups)
        if options.seed < 0 or options.global_batch < 1:
            raise ConfigError(f"seed={options.seed} or global_batch_size={options.global_batch} is too small")
        if not len(self.lengths):
            raise ConfigError("there are no questions", where="the training data")
        for group, members in self.members.items():
            if options.drop_last and len(members) < options.global_batch:
                of = "there are" if groups is None else f"corpus number {group} of the training data has"
                raise ConfigError(
                    f"{of} {len(members)} questions, less than one batch of {options.global_batch}",
                    where="global_batch_size",
                    fix=f"Set it to {len(members)} or less, or keep incomplete batches (drop_last=false)"
                    + ("" if groups is None else ", or do not ask for batches of one corpus"),
                )

    def __len__(self) -> int:
        """Steps of an epoch, the same for each."""
        return sum(self._batches_of(len(members)) for members in self.members.values())

    @property
    def dropped(self) -> int:
        """Questions that an epoch leaves out."""
        size = self.options.global_batch
        return sum(len(m) % size for m in self.members.values()) if self.options.drop_last else 0

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, step in it) of a step counted from the beginning of the training."""
        return divmod(step, len(self))

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch: int64 row numbers, each batch by length, the shortest first."""
        parts = [self._group(epoch, group, members) for group, members in self.members.items()]
        batches = [batch for part in parts for batch in part]
        if len(parts) == 1 or not self.options.shuffle:
            return batches
        return [batches[i] for i in shuffled(len(batches), self.options.seed, epoch, -1)]

    def steps(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, np.ndarray]]:
        """(epoch, step in it, rows) from the `start`-th step of the training up to, without, the `end`-th."""
        step = start
        batches: list[np.ndarray] = []
        while end is None or step < end:
            epoch, within = self.place(step)
            if within == 0 or not batches:
                batches = self.epoch(epoch)
            yield epoch, within, batches[within]
            step += 1

    def _batches_of(self, count: int) -> int:
        size = self.options.global_batch
        return count // size if self.options.drop_last else -(-count // size)

    def _group(self, epoch: int, group: int, members: np.ndarray) -> list[np.ndarray]:
        """The batches of one group. What is left over is cut off before any sorting, or it would be the longest."""
        options, size = self.options, self.options.global_batch
        if options.shuffle:
            members = members[shuffled(len(members), options.seed, epoch, group)]
        whole = len(members) // size * size
        windows = range(0, whole, max(options.window, 1) * size)
        batches: list[np.ndarray] = []
        for number, first in enumerate(windows):
            rows = members[first : min(first + windows.step, whole)]
            cut = list(self._sorted(rows).reshape(-1, size))
            if options.shuffle:
                cut = [cut[i] for i in shuffled(len(cut), options.seed, epoch, group, number)]
            batches += cut
        if not options.drop_last and whole < len(members):
            batches.append(self._sorted(members[whole:]))
        return batches

    def _sorted(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(self.lengths[rows], kind="stable")] if self.options.window else rows


def shuffled(count: int, *keys: int) -> np.ndarray:
    """int64 [count]: a permutation that depends on `count` and `keys` (-1 or more) alone.

    It ranks raw 64-bit numbers of PCG64, whose stream numpy promises to keep, unlike that of its `permutation`.
    """
    numbers = np.random.PCG64(np.random.SeedSequence([k + 1 for k in keys])).random_raw(count)
    return np.argsort(numbers, kind="stable")


def _members(count: int, groups: np.ndarray | None) -> dict[int, np.ndarray]:
    """The rows of each group."""
    if groups is None:
        return {0: np.arange(count)} if count else {}
    order = np.argsort(groups, kind="stable")
    names, starts = np.unique(np.asarray(groups)[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True)) if count else {}
