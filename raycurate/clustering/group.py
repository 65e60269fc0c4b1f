"""KMeansGroup: a placement group of workers that fit together, and are replaced together when one dies.

A collective has no use for a survivor: when a worker is lost the others are ended, the placement group is
removed, and a new group of the size that now fits goes on from the centroids that were saved last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycurate.clustering.engine import CollectiveError
from raycurate.clustering.options import FitOptions
from raycurate.clustering.shards import Piece, shares
from raycurate.clustering.worker import KMeansWorker
from raycurate.core.errors import CapacityError, ConfigError, RaycurateError
from raycurate.ray_runtime.capacity import NodeShape, matches

if TYPE_CHECKING:
    from raycurate.clustering.torch_engine import Fit

log = logging.getLogger(__name__)
_PINGS = "pings"  # a worker's thread beside the one that computes
_PING_S = 30.0  # a worker that does not answer for so long is taken for lost


@dataclass(frozen=True)
class GroupPlan:
    """How the group is laid out.

    size: workers; fewer where the vectors do not make as many shares, or after a loss. min_size: fewest workers
    after a loss. cpus, gpus: what each reserves. threads: what each may use on a CPU, 0 for the library's choice.
    remote_args: of every worker (resources, accelerator_type, label_selector, runtime_env). timeout_s: of each
    collective. start_s: how long the group may take to get its places. max_failures: groups lost before giving up.
    """

    size: int
    cpus: float
    gpus: float = 0.0
    threads: int = 0
    remote_args: dict[str, Any] | None = None
    timeout_s: float = 60.0
    start_s: float = 600.0
    max_failures: int = 3
    min_size: int = 1

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker reserves, by Ray's names of resources."""
        extra = self.remote_args or {}
        kind = extra.get("accelerator_type")
        bundle = {"CPU": self.cpus, "GPU": self.gpus, **extra.get("resources", {})}
        if kind:
            bundle[f"accelerator_type:{kind}"] = 0.001
        return {name: float(amount) for name, amount in bundle.items() if amount}

    @property
    def labels(self) -> dict[str, str]:
        """The labels that a worker's node must have."""
        return dict((self.remote_args or {}).get("label_selector") or {})

    def size_on(self, nodes: Iterable[NodeShape]) -> int:
        """How many workers, `min_size` to `size`, these nodes hold when nothing else runs on them."""
        bundle = self.bundle
        places = 0
        for node in nodes:
            if matches(node.labels, self.labels):
                # Ray counts in ten-thousandths.
                times = [round(node.resources.get(n, 0.0) * 1e4) // round(a * 1e4) for n, a in bundle.items()]
                places += min(times, default=self.size)
        return max(self.min_size, min(self.size, places))


class KMeansGroup:
    """Fits centroids to the vectors of `pieces`.

    Args:
        pieces: of `kmeans.shards.pieces_of`.
        column: that holds the vectors.
        dimension: of every vector.
    """

    def __init__(self, plan: GroupPlan, pieces: list[Piece], column: str, dimension: int) -> None:
        self.plan = plan
        self.pieces = pieces
        self.column = column
        self.dimension = dimension
        self.workers: list[Any] = []
        self.failures = 0
        self._placement: Any = None

    def fit(self, options: FitOptions, state: str | None = None) -> Fit:
        """Fit, and fit on when workers are lost or do not hear of each other in time.

        Args:
            state: folder or URI where the centroids are saved as it goes; without one a lost group begins anew.

        Raises:
            InputError: the vectors or the options cannot be used.
            CapacityError: the group got no place in `start_s`.
            RaycurateError: that happened more than `max_failures` times.
        """
        import ray

        if options.engine == "raft" and not self.plan.gpus:
            raise ConfigError("the engine 'raft' needs a GPU for each worker", where="engine", fix="Set engine=torch")
        options = options.settled(cuda=self.plan.gpus > 0)
        if options.engine == "raft" and options.warm_start_fraction is not None:
            raise ConfigError(
                "the engine 'raft' has no warm start",
                where="warm_start_fraction",
                fix="Leave it out, or set engine=torch",
            )
        while True:
            try:
                dealt = self._deal()
                self._start(len(dealt), options.engine)
                return self._run(dealt, options, state)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                self._count(f"a worker was lost ({_brief(error)})", _LOST, error)
            except CollectiveError as error:
                self._count(f"a collective failed with all workers alive ({_brief(error)})", self._late(), error)
            finally:
                self.close()

    def close(self) -> None:
        """End the workers and give their places back."""
        import ray

        for worker in self.workers:
            ray.kill(worker)
        self.workers = []
        if self._placement is not None:
            ray.util.remove_placement_group(self._placement)
            self._placement = None

    def process_ids(self) -> list[int]:
        """Of each worker, also while it computes; raises RayActorError or GetTimeoutError when one is lost."""
        import ray

        return ray.get([w.ping.options(concurrency_group=_PINGS).remote() for w in self.workers], timeout=_PING_S)

    def _count(self, what: str, fix: str, error: Exception) -> None:
        """One failure more; raises when that is one too many."""
        self.failures += 1
        if self.failures > self.plan.max_failures:
            raise RaycurateError(f"the group failed {self.failures} times: {what}", where="kmeans", fix=fix) from error
        log.warning("kmeans: %s; a new group goes on from the saved centroids", what)

    def _late(self) -> str:
        return (
            f"The timeout of a collective is {self.plan.timeout_s:g} s: set collective_timeout_s higher if the workers "
            "are of unlike speed, and see that their nodes reach each other on all ports"
        )

    def _deal(self) -> list[list[Piece]]:
        """Each worker's pieces, none without any; after a loss for as many workers as still have a place."""
        from raycurate.ray_runtime.cluster import capacity

        size = self.plan.size_on(capacity().nodes) if self.failures else self.plan.size
        if size < self.plan.size:
            log.warning("kmeans: there is room for %d of %d workers now", size, self.plan.size)
        return [share for share in shares(self.pieces, size) if share] or [[]]

    def _start(self, size: int, engine: str) -> None:
        """Place the workers, and see that they have what the driver and the engine ask for."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from raycurate.ray_runtime.cluster import environment_versions

        plan = self.plan
        labels = {"bundle_label_selector": [plan.labels] * size} if plan.labels else {}
        self._placement = ray.util.placement_group([plan.bundle] * size, strategy="PACK", **labels)
        if not self._placement.wait(plan.start_s):
            raise CapacityError(
                f"no place was found in {plan.start_s:.0f} s for {size} workers of {plan.bundle}",
                where="kmeans",
                fix="Use fewer workers (num_workers) or give each less (actors.num_cpus)",
            )
        extra = {name: value for name, value in (plan.remote_args or {}).items() if name != "label_selector"}
        # Calls run one after the other in one thread, which finds the memory again that reading freed; pings beside it.
        actor = ray.remote(concurrency_groups={_PINGS: 1})(KMeansWorker)  # type: ignore[call-overload]  # not declared
        extra |= {"num_cpus": plan.cpus, "num_gpus": plan.gpus}
        for bundle in range(size):
            strategy = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=bundle)
            self.workers.append(actor.options(scheduling_strategy=strategy, **extra).remote(plan.threads))
        self._all("check", environment_versions(), engine)

    def _run(self, dealt: list[list[Piece]], options: FitOptions, state: str | None) -> Fit:
        import ray

        what = (self.column, self.dimension, options)
        calls = [w.load.remote(share, *what) for w, share in zip(self.workers, dealt, strict=True)]
        held = self._gather(calls)
        # A worker whose rows were all left out has no part in the fit: cuML seeds on rank 0's rows.
        idle = [w for w, (rows, _) in zip(self.workers, held, strict=True) if not rows]
        self.workers = [w for w in self.workers if w not in idle] or [idle.pop()]
        for worker in idle:
            ray.kill(worker)
        size = len(self.workers)
        log.info(
            "kmeans: %s vectors in %d workers (%s each at most), %s left out",
            f"{sum(n for n, _ in held):,}",
            size,
            f"{max(n for n, _ in held):,}",
            f"{sum(r for _, r in held):,}",
        )
        [meeting] = self._gather([self.workers[0].rendezvous.remote()])
        self._gather(
            [
                w.join.remote(meeting, rank, size, options.device, self.plan.timeout_s)
                for rank, w in enumerate(self.workers)
            ]
        )
        fitted: Fit = self._all("fit", self.dimension, options, state)[0]
        return fitted

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._gather([getattr(worker, method).remote(*args) for worker in self.workers])

    def _gather(self, calls: list[Any]) -> list[Any]:
        """All results; of several failures the one that is the cause.

        Raises:
            RayActorError or GetTimeoutError: a worker was lost, even if another's failed collective was heard of first.
            CollectiveError: a collective failed, and all workers answer.
        """
        import ray

        from raycurate.ray_runtime.cluster import raise_user_error

        waiting = list(calls)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            try:
                ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise_user_error(error)
                self.process_ids()  # raises for one lost
                raise
        return ray.get(calls)


_LOST = "Look at the worker's log; if its node ran out of memory, use more workers or fewer CPUs"


def _brief(error: Exception) -> str:
    """The last line of what Ray says of a failure, and which process it was where that is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    process = [line for line in lines[:-1] if line.startswith(("pid:", "ip:"))]
    return ", ".join([*process, lines[-1][:200]])
