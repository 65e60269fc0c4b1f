"""From options and what the cluster has to the layout of the fitting group and of the assignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raycurate.clustering.centroids import GivenCentroids
from raycurate.clustering.inputs import Embeddings
from raycurate.clustering.options import Array
from raycurate.core.errors import CapacityError
from raycurate.ray_runtime.capacity import Capacity, OperatorDemand, PlanReport, asked_gpus, check_plan
from raycurate.stages.kmeans.config import KMeansConfig

_MOST_A_NODE = 8  # members of the group on a CPU node; more cores become threads
_BYTES_A_WORKER = 8 * 1024 * 1024  # of vectors
_HOST_SHARE = 0.6  # of the nodes' memory that the vectors of a fit may take


@dataclass(frozen=True)
class KMeansPlan:
    """How a run is laid out.

    config: with clusters, engine, device and first centroids filled in. reason: why this engine. workers: of the group,
    `cpus`, `gpus` and `threads` each. task_cpus: of a task that reads and assigns on a CPU. assigners: actors that
    assign, one a GPU; 0 on CPUs. given: centroids that the user gave.
    """

    config: KMeansConfig
    reason: str
    workers: int
    cpus: float
    gpus: float
    threads: int
    task_cpus: float
    assigners: int
    given: GivenCentroids

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def operators(self) -> list[list[OperatorDemand]]:
        """What has to be placed at one moment: the group first, the stream when the group is gone."""
        actors = self.config.actors
        extra: dict[str, Any] = {"resources": actors.resources, "label_selector": actors.label_selector}
        group = OperatorDemand("KMeansWorker", self.workers, self.cpus, num_gpus=self.gpus, **extra)
        tasks = [
            OperatorDemand("Vectors", 1, self.task_cpus, kind="tasks"),
            OperatorDemand("Write", 1, self.task_cpus, kind="tasks"),
        ]
        if self.assigners:
            tasks.append(OperatorDemand("Assign", 1, self.task_cpus, num_gpus=self.gpus, **extra))
        return [tasks] if self.config.centroids else [[group], tasks]

    def check(self, capacity: Capacity) -> list[PlanReport]:
        """Raises CapacityError when no allowed size of the cluster can run this."""
        return [check_plan(operators, capacity) for operators in self.operators()]

    def describe(self) -> str:
        share = f"{self.gpus:g} GPU" if self.gpus else f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        if self.config.centroids:
            return f"given centroids ({self.config.centroids})"
        workers = f"{self.workers} worker{'s' if self.workers != 1 else ''}"
        return f"{self.config.k:,} clusters; engine {self.config.engine} ({self.reason}); {workers}, {share} each"


def make_plan(
    config: KMeansConfig, inputs: Embeddings, k: int, given: GivenCentroids, capacity: Capacity
) -> KMeansPlan:
    """Lay out a run. Values given by the user are taken as they are.

    Raises:
        CapacityError: the vectors to fit to are more than the cluster's memory holds.
    """
    gpus_there = capacity.largest.gpu > 0
    asked = asked_gpus(capacity, config.device, {"actors.num_gpus": config.actors.num_gpus}, where="kmeans")
    automatic = config.device == "cuda" or (config.device == "auto" and gpus_there)
    on_gpu = automatic if asked is None else asked > 0
    if on_gpu:
        gpus = 1.0 if asked is None else asked
        workers = max(1, int((capacity.live.gpu or capacity.largest.gpu) / max(gpus, 0.01)))
        cpus, threads = (config.actors.num_cpus if config.actors.num_cpus is not None else 1.0), 0
    else:
        gpus = 0.0
        workers, threads = _cpu_workers(capacity)
        cpus = config.actors.num_cpus if config.actors.num_cpus is not None else float(threads)
        threads = max(1, int(cpus)) if config.actors.num_cpus is not None else threads
    workers = config.num_workers if config.num_workers != "auto" else min(workers, _worth(inputs))
    if not config.centroids:
        _check_memory(config, inputs, capacity)
    task_cpus = 0.5 if capacity.largest_node.cpu <= 2 else 1.0
    assigners = workers if on_gpu else 0
    settled = _settled(config, k, given, on_gpu)
    reason = config.engine_on(cuda=on_gpu)[1]
    return KMeansPlan(settled, reason, workers, cpus, gpus, threads, task_cpus, assigners, given)


def _settled(config: KMeansConfig, k: int, given: GivenCentroids, on_gpu: bool) -> KMeansConfig:
    """The options with every `auto` of the fit, and the first centroids of a file, filled in."""
    first = {} if given.first is None else {"init": Array(given.first)}
    return config.model_copy(update={"n_clusters": k, **first}).settled(cuda=on_gpu)


def _cpu_workers(capacity: Capacity) -> tuple[int, int]:
    """Workers in all and threads each: one a core up to eight a node, then more threads."""
    cores = max(1, int(capacity.largest_node.cpu))
    threads = -(-cores // _MOST_A_NODE)
    return max(1, sum(int(node.resources.get("CPU", 0)) // threads for node in capacity.nodes)), threads


def _worth(inputs: Embeddings) -> int:
    """Workers that pay: a member with little to do costs more to start than it saves."""
    return max(1, inputs.vector_bytes // _BYTES_A_WORKER)


def _check_memory(config: KMeansConfig, inputs: Embeddings, capacity: Capacity) -> None:
    needed = inputs.vector_bytes * (config.fit_data_fraction or 1.0)
    room = capacity.largest.memory * _HOST_SHARE
    if room and not capacity.unknown_maximum and needed > room:
        raise CapacityError(
            f"fitting to these vectors takes {needed / 2**30:.1f} GiB as float32; {room / 2**30:.1f} GiB "
            f"({_HOST_SHARE:.0%} of the nodes' memory) can be had",
            where="kmeans",
            fix=f"Set fit_data_fraction={(config.fit_data_fraction or 1.0) * room / needed:.2g}, or use more nodes",
        )
