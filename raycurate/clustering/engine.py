"""What an engine of k-means is: a way for the members of a group to compute together.

`join` meets the others and sees that sums over them are right, `fit` is the whole fit, `leave` ends what `join` began.
Ranks are given at `join`, when it is known who holds vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from raycurate.clustering.lloyd import Iteration
    from raycurate.clustering.options import FitOptions
    from raycurate.clustering.points import Points
    from raycurate.clustering.torch_engine import Fit


class CollectiveError(RuntimeError):
    """A collective did not come to its end: a member is gone, or something took longer than the timeout."""


@dataclass(frozen=True)
class Meeting:
    """Where members find rank 0: `tcp://host:port`, and NCCL's unique id where the engine needs one."""

    address: str
    unique_id: bytes = b""


class Engine(Protocol):
    """What both engines do; `join` and `fit` are called on all members at once."""

    def rendezvous(self) -> Meeting:
        """Called on rank 0 alone, before `join`."""
        ...

    def join(self, meeting: Meeting, rank: int, size: int, *, device: str, timeout_s: float) -> None:
        """Raises RaycurateError when the self-test fails, CollectiveError when the members do not meet."""
        ...

    def fit(self, points: Points, options: FitOptions, state: str | None, progress: Callable[[Iteration], None]) -> Fit:
        """The same result on every rank, saved in `state` as it goes; raises InputError, or CollectiveError."""
        ...

    def leave(self, *, failed: bool) -> None:
        """May be called at any time, also twice; `failed` when other members may be gone."""
        ...
