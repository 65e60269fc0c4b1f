"""From options and what the cluster has to a plan: which engine, how many actors, what each may use.

Pools start at full size where the resources are live and grow to the maximum where the autoscaler may add
them. On a CPU the threads of an actor are its share of the cores; one CPU a node (half of one on two CPUs)
is left to the tasks that read, tokenise and write, so that no plan of ours can starve itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from raycurate.encoders.base import choose_engine
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.models.contract import EmbeddingContract
from raycurate.ray_runtime.capacity import Capacity, OperatorDemand, PlanReport, asked_gpus, check_plan

CPU_BLOCK_BYTES = 128 * 1024
GPU_BLOCK_BYTES = 2 * 1024 * 1024
_ACTOR_BYTES = 1 << 30  # an actor's memory beside its weights: interpreter, torch, a micro-batch
_ACTORS_SHARE = 0.5  # of a node's memory


@dataclass(frozen=True)
class EmbedPlan:
    """How one embed run is laid out.

    `cpus` and `gpus` are what an encoder actor reserves, `threads` what its engine may use (0: the engine's
    own choice, on a GPU). `task_cpus` is what a read-and-tokenise or a write task reserves.
    """

    config: EmbedConfig
    contract: EmbeddingContract
    engine: str
    reason: str
    min_actors: int
    max_actors: int
    cpus: float
    gpus: float
    threads: int
    task_cpus: float
    block_bytes: int

    @property
    def tasks_in_flight(self) -> int:
        """Blocks given to an actor at once: on a CPU the one it works on and the next, so that no actor sits
        on blocks that another could take; on a GPU, where a block is short, four."""
        return 4 if self.gpus else 2

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def operators(self) -> list[OperatorDemand]:
        """Everything that has to be placed. A resumed run has the same operators (streams/staging.py)."""
        return [
            OperatorDemand(
                "Encode",
                self.min_actors,
                self.cpus,
                num_gpus=self.gpus,
                resources=self.config.actors.resources,
                label_selector=self.config.actors.label_selector,
            ),
            OperatorDemand("Documents->Tokenise", 1, self.task_cpus, kind="tasks"),
            OperatorDemand("Write", 1, self.task_cpus, kind="tasks"),
        ]

    def check(self, capacity: Capacity) -> PlanReport:
        """Raises CapacityError when no allowed size of the cluster can run this."""
        return check_plan(self.operators(), capacity)

    def describe(self) -> str:
        actors = str(self.min_actors) if self.min_actors == self.max_actors else f"{self.min_actors}-{self.max_actors}"
        share = f"{self.gpus:g} GPU" if self.gpus else f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"engine {self.engine} ({self.reason}); {actors} actor{'s' if actors != '1' else ''}, {share} each"


def make_plan(
    config: EmbedConfig, contract: EmbeddingContract, capacity: Capacity, weights_bytes: int = 0
) -> EmbedPlan:
    """Lay out an embed run. Values given by the user are taken as they are.

    Args:
        weights_bytes: size of the model's weight files, of which every CPU actor holds a copy; 0 if unknown.
    """
    gpu_possible = capacity.largest.get("GPU", 0.0) > 0
    numbers = {"num_gpus": config.num_gpus, "actors.num_gpus": config.actors.num_gpus}
    asked = asked_gpus(capacity, config.device, numbers, where="embed")
    automatic = config.device == "cuda" or (config.device == "auto" and gpu_possible)
    wants_gpu = automatic if asked is None else asked > 0
    engine, reason = choose_engine(config, gpu=wants_gpu)
    if engine == "endpoint":
        return _endpoint_plan(config, contract, engine, reason, capacity)
    gpus = 0.0
    if wants_gpu:
        gpus = 1.0 if asked is None else asked
    if gpus:
        low = max(1, int(capacity.live.get("GPU", 0.0) / gpus))
        high = max(low, int(capacity.largest.get("GPU", 0.0) / gpus))
    else:
        low = _cpu_actors(capacity, weights_bytes)
        high = max(low, int(capacity.largest.get("CPU", 0.0) // max(1.0, capacity.live.get("CPU", 0.0) / low)))
    low, high = _asked(config, low, high)
    node_cpus = max(1.0, capacity.largest_node.get("CPU", 1.0))
    threads, cpus = _cpu_share(config, capacity, low, gpus)
    return EmbedPlan(
        config,
        contract,
        engine,
        reason,
        low,
        high,
        cpus,
        gpus,
        threads,
        task_cpus=0.5 if node_cpus <= 2 else 1.0,
        block_bytes=_block_bytes(config, GPU_BLOCK_BYTES if gpus else CPU_BLOCK_BYTES),
    )


def _asked(config: EmbedConfig, low: int, high: int) -> tuple[int, int]:
    if isinstance(config.concurrency, int):
        return config.concurrency, config.concurrency
    if isinstance(config.concurrency, list):
        return config.concurrency[0], config.concurrency[1]
    return low, high


def _cpu_actors(capacity: Capacity, weights_bytes: int) -> int:
    """One actor a core while their weights fit half of each node's memory; fewer, with more threads, else.

    Actors of one thread keep the cores busier than threads of one actor do: they do not wait for each other
    at every operator, and another process that takes a core stalls one of them only.
    """
    actors = 0
    for node in capacity.nodes:
        cores = int(node.resources.get("CPU", 0.0))
        room = node.resources.get("memory", 0.0) * _ACTORS_SHARE
        actors += min(cores, max(1, int(room // (_ACTOR_BYTES + 2 * weights_bytes)))) if cores else 0
    return max(1, actors)


def _cpu_share(config: EmbedConfig, capacity: Capacity, actors: int, gpus: float) -> tuple[int, float]:
    """Threads an actor runs and CPUs it reserves."""
    if config.actors.num_cpus is not None:
        return max(1, int(config.actors.num_cpus)), config.actors.num_cpus
    if gpus:
        return 0, 1.0
    nodes = max(1, len(capacity.nodes))
    per_node = max(1, -(-actors // nodes))
    cores = capacity.largest_node.get("CPU", 1.0)
    threads = max(1, int(cores // per_node))
    spare = 0.5 if cores <= 2 else 1.0
    return threads, max(0.25, int((cores - 2 * spare) / per_node * 4) / 4)


def _endpoint_plan(
    config: EmbedConfig, contract: EmbeddingContract, engine: str, reason: str, capacity: Capacity
) -> EmbedPlan:
    low, high = _asked(config, 1, 1)
    cpus = config.actors.num_cpus if config.actors.num_cpus is not None else 0.25
    task_cpus = 0.5 if capacity.largest_node.get("CPU", 1.0) <= 2 else 1.0
    return EmbedPlan(
        config, contract, engine, reason, low, high, cpus, 0.0, 1, task_cpus, _block_bytes(config, CPU_BLOCK_BYTES)
    )


def _block_bytes(config: EmbedConfig, automatic: int) -> int:
    return config.block_bytes if "block_bytes" in config.model_fields_set else automatic
