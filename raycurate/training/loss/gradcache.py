"""GradCache: a batch as large as the loss wants, in the memory of a chunk [Gao et al. 2021, arXiv:2101.06983].

A contrastive loss needs the vectors of the whole batch at once, but a vector's gradient is all that the encoder
needs from the loss. So: (1) every chunk runs forward without a graph; (2) the loss runs on the vectors, and
backward to them; (3) every chunk runs forward again, with a graph, and backward from the vectors' gradients. The
result is the plain gradient, for one more forward pass.

What makes it exact and safe with many ranks:
* a chunk's second forward sees the random state of its first, so dropout masks are the same;
* all ranks run the same number of chunks (FSDP2 gathers weights in each): a rank with fewer repeats a row with
  gradient 0;
* gradients of all ranks come together once, in the last backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from raycurate.training.collectives import gradient_sync, max_over_ranks
from raycurate.training.loss.losses import Vectors
from raycurate.training.model.multi_vector import MultiVectors

if TYPE_CHECKING:
    from raycurate.training.batches.batches import TokenInputs


@dataclass(frozen=True)
class Role:
    """One side of the batch and what encodes it.

    Attributes:
        encode: tokens -> vectors, through the wrapped model's own call (DDP and FSDP2 act in it); with the caller's
            autocast, twice.
        tokens: of this rank, at least one row.
        rows: at most so many rows a chunk; 0: all at once.
        frozen: nothing of this encoder is trained, so `cached_backward` need not run it twice.
    """

    encode: Callable[[TokenInputs], Vectors]
    tokens: TokenInputs
    rows: int = 0
    frozen: bool = False


@dataclass(eq=False)
class Chunk:
    """Some rows of a role; `filler` only keeps step with ranks that have more."""

    role: int
    rows: Tensor
    tokens: TokenInputs
    filler: bool
    state: _RandomState | None = None


def plain_backward(
    roles: Sequence[Role], loss: Callable[..., Tensor], model: nn.Module, *, synchronise: bool = True
) -> Tensor:
    """Forward and backward of the whole batch at once.

    Args:
        loss: vectors of each role -> scalar to go backward from (see `losses.backward_scale`).
        model: what holds the parameters, as DDP or FSDP2 wrapped it.
        synchronise: False for all but the last of the micro-steps that add up to one optimiser step.

    Returns:
        The loss, detached.
    """
    with gradient_sync(model, synchronise):
        value = loss(*(role.encode(role.tokens) for role in roles))
        value.backward()
    return value.detach()


def cached_backward(
    roles: Sequence[Role],
    loss: Callable[..., Tensor],
    model: nn.Module,
    *,
    synchronise: bool = True,
    group: ProcessGroup | None = None,
) -> Tensor:
    """As `plain_backward`, in chunks: the same gradients in the memory of a chunk (under DDP, of one chunk a role).

    Under DDP use forward_sync_buffers=False: it would write to buffers between the two forwards of a backward. Gradient
    accumulation over calls is as without: `synchronise=False` on all but the last.

    Args:
        loss: as there; it may hold collectives (gathered negatives), which run once.
        group: the ranks that run in step; None: all.

    Raises:
        ValueError: a role without rows on this rank; a role without gradients that is not said to be frozen.
    """
    chunks = plan(roles, group)
    leaves = [_leaf(vectors) for vectors in _first_pass(roles, chunks)]
    value = loss(*leaves)
    value.backward()
    trained = [chunk for chunk in chunks if not roles[chunk.role].frozen]
    if not trained:
        raise ValueError("nothing to train: every role is frozen")
    last = _last(trained, model)
    for chunk in trained:
        if chunk not in last:
            with gradient_sync(model, False):
                _backward(roles, [chunk], leaves)
    with gradient_sync(model, synchronise):
        _backward(roles, last, leaves)
    return value.detach()


def _last(chunks: list[Chunk], model: nn.Module) -> list[Chunk]:
    """The chunks of the last backward, in which gradients are synchronised.

    DDP waits there for every parameter, so each encoder must take part. FSDP2 brings together what it finds, and
    would do so once for each forward that takes part.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return list({chunk.role: chunk for chunk in chunks}.values())
    return chunks[-1:]


def plan(roles: Sequence[Role], group: ProcessGroup | None = None) -> list[Chunk]:
    """The chunks of every role, as many on each rank; every rank must call it.

    Rows of like length go together, longest first, and each chunk is cut to its own longest: less padding to
    compute, and what does not fit in memory fails at once.
    """
    wanted = []
    for role in roles:
        rows = len(role.tokens.input_ids)
        if not rows:
            raise ValueError("a rank without rows cannot take part in a batch")
        wanted.append(-(-rows // role.rows) if role.rows else 1)
    device = roles[0].tokens.input_ids.device
    agreed = max_over_ranks(torch.tensor(wanted, device=device), group).tolist()
    return [chunk for number, role in enumerate(roles) for chunk in _cut(number, role, agreed[number])]


def _cut(number: int, role: Role, many: int) -> Iterator[Chunk]:
    ids = role.tokens.input_ids
    mask = role.tokens.attention_mask
    lengths, starts = torch.stack([mask.sum(1), mask[:, 0]]).cpu().numpy()  # waited for once
    if not starts.all():
        raise ValueError("a row is empty or padded on the left; chunks are cut on the right")
    order = np.argsort(-lengths, kind="stable")
    for part in np.array_split(order, many):
        filler = not len(part)
        rows = order[-1:] if filler else part
        width = min(ids.shape[1], max(8, -(-int(lengths[rows].max()) // 8) * 8))  # lengths that suit tensor cores
        place = torch.from_numpy(rows).to(ids.device)
        tokens = replace(
            role.tokens,
            input_ids=ids[place, :width].contiguous(),
            attention_mask=mask[place, :width].contiguous(),
        )
        yield Chunk(number, place, tokens, filler)


@torch.no_grad()
def _first_pass(roles: Sequence[Role], chunks: Sequence[Chunk]) -> list[Vectors]:
    """The vectors of each role in the rows' own order; each chunk keeps the random state it ran from."""
    parts: list[list[tuple[Chunk, Vectors]]] = [[] for _ in roles]
    for chunk in chunks:
        chunk.state = _RandomState.now(chunk.tokens.input_ids.device)
        parts[chunk.role].append((chunk, roles[chunk.role].encode(chunk.tokens)))
    return [_joined(each) for each in parts]


def _joined(parts: list[tuple[Chunk, Vectors]]) -> Vectors:
    real = [(chunk.rows, vectors) for chunk, vectors in parts if not chunk.filler]
    back = torch.cat([rows for rows, _ in real]).argsort()
    if all(isinstance(vectors, Tensor) for _, vectors in real):
        return torch.cat([vectors for _, vectors in real if isinstance(vectors, Tensor)])[back]
    whole = MultiVectors.join([vectors for _, vectors in real if not isinstance(vectors, Tensor)])
    return MultiVectors(whole.vectors_NTD[back], whole.mask_NT[back])


def _leaf(vectors: Vectors) -> Vectors:
    if isinstance(vectors, Tensor):
        return vectors.detach().requires_grad_()
    return MultiVectors(vectors.vectors_NTD.detach().requires_grad_(), vectors.mask_NT)


def _backward(roles: Sequence[Role], chunks: Sequence[Chunk], leaves: Sequence[Vectors]) -> None:
    """Second forward of these chunks, and one backward from the gradients that the loss left at the leaves."""
    outputs, gradients = [], []
    for chunk in chunks:
        assert chunk.state is not None  # the first pass set it
        with chunk.state.replayed():
            vectors = roles[chunk.role].encode(chunk.tokens)
        values = vectors if isinstance(vectors, Tensor) else vectors.vectors_NTD
        if not values.requires_grad:  # passed over in the last backward, it would leave all gradients unsynchronised
            raise ValueError("an encoder without trainable parameters must be a role with frozen=True")
        outputs.append(values)
        gradients.append(_gradient(chunk, leaves[chunk.role], values))
    torch.autograd.backward(outputs, gradients)


def _gradient(chunk: Chunk, leaf: Vectors, values: Tensor) -> Tensor:
    whole = (leaf if isinstance(leaf, Tensor) else leaf.vectors_NTD).grad
    if chunk.filler or whole is None:  # the loss may leave out a role
        return torch.zeros_like(values)
    return whole[chunk.rows] if values.dim() == 2 else whole[chunk.rows, : values.shape[1]]


@dataclass(frozen=True)
class _RandomState:
    """The generators that dropout draws from: the CPU's and, on an accelerator, the device's."""

    device: torch.device
    cpu: Tensor
    accelerator: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> _RandomState:
        on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
        return cls(device, torch.get_rng_state(), on_device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """The generators as they were then; afterwards as they are now."""
        after = _RandomState.now(self.device)
        self._set()
        try:
            yield
        finally:
            after._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, self.device)
