"""What the Ray that is connected holds, and what every stage needs from it; connect.py reaches or starts it."""

from __future__ import annotations

import json
import platform
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.core.redaction import REDACTED, redact
from raycurate.ray_runtime import private
from raycurate.ray_runtime.capacity import (
    UNLIMITED,
    Capacity,
    NodeShape,
    OperatorDemand,
    PlanReport,
    Resources,
    check_plan,
    matches,
)

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset

__all__ = ["Capacity", "NodeShape", "OperatorDemand", "PlanReport", "Resources", "capacity", "check_plan"]

_READ_ONLY_TYPE = re.compile("node_[0-9a-f]{56}")  # node type in the report of a plain head's monitor
_promised: list[Callable[[], object]] = []  # how this process comes by a Ray once there is work for it
_OWN_ERROR = re.compile(r"^raycurate\.core\.errors\.\w+: (.+)$", re.MULTILINE)  # as a traceback ends
_NODE_GROUP = "ray.io/node-group"  # Ray's label on nodes that a launcher or an operator made
_RUNTIME_ENV_KEYS = ("uv", "pip", "py_executable", "image_uri", "env_vars")
# What object stores answer now and then and answer differently a moment later, beyond Ray's own list.
_TRANSIENT_IO = (
    "AWS Error THROTTLING",
    "AWS Error REQUEST_TIMEOUT",
    "HTTP status 429",
    "HTTP status 500",
    "curlCode: 28",
)


def start_on_demand(start: Callable[[], object] | None) -> None:
    """Say how a Ray is come by once there is work for it; None takes that back."""
    _promised[:] = [] if start is None else [start]


def ensure_ray(where: str) -> None:
    """What a stage calls once it knows that it has work to do: the Ray that was promised starts.

    Raises:
        ConfigError: no Ray is connected, and none was promised.
    """
    import ray

    if _promised and not ray.is_initialized():
        _promised[0]()
    require_ray(where)


def require_ray(where: str) -> None:
    """Raise ConfigError when no Ray is connected; library functions never start one."""
    import ray

    if not ray.is_initialized():
        raise ConfigError("Ray is not running", where=where, fix="Call ray.init() first, as any Ray Data program does")


def user_error(error: BaseException) -> RaycurateError | None:
    """The RaycurateError inside what Ray or Ray Train made of it on its way from a worker; None where there is none."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or any(current is s for s in seen):
            continue
        if isinstance(current, RaycurateError) and not hasattr(current, "cause"):
            return current
        seen.append(current)
        queue += [getattr(current, name, None) for name in ("cause", "controller_failure")]
        queue += [private.wrapped_error(current)]
        queue += [*getattr(current, "worker_failures", {}).values(), current.__cause__, current.__context__]
    # Of an error in an actor's constructor Ray keeps the text only.
    said = [line for one in seen for line in _OWN_ERROR.findall(str(one))]
    return RaycurateError(said[-1]) if said else None


def raise_user_error(error: BaseException) -> None:
    """Raise the RaycurateError inside `error`; where there is none, or it is `error` itself, the caller goes on."""
    found = user_error(error)
    if found is not None and found is not error:
        raise found from error


def capacity() -> Capacity:
    """What the connected cluster holds, and what its autoscaler may add as far as Ray was told.

    Ray knows the maximum only where a cluster reported its configuration; where nodes carry a launcher's mark
    and no configuration is there, `autoscaler` is True and `maximum` None.
    """
    import ray

    nodes = tuple(NodeShape(n["Resources"], n.get("Labels") or {}, name=n["NodeID"]) for n in ray.nodes() if n["Alive"])
    config = private.autoscaler_config()
    configured = config.node_group_configs if config else []
    groups = tuple(
        NodeShape({k: float(v) for k, v in g.resources.items()}, count=g.max_count, name=g.name)
        for g in configured
        if g.resources and (g.max_count > 0 or g.max_count == UNLIMITED)
    )
    maximum = private.autoscaler_maximum()
    marked = any(_NODE_GROUP in n.labels for n in nodes) or _autoscaler_reports()
    here = private.own_node()
    owned = here is not None and here.is_head()
    return Capacity(nodes, groups, maximum, autoscaler=bool(groups) or (config is None and marked), owned=owned)


def _autoscaler_reports() -> bool:
    """Whether an autoscaler that can add nodes wrote its report.

    The read-only monitor of a plain head writes one too, after some seconds; it names each node as a type of its own,
    `node_<id>`, where a launcher's types have names.
    """
    report = json.loads(private.autoscaler_status() or b"{}").get("autoscaler_report") or {}
    types = [*(report.get("active_nodes") or {}), *(report.get("idle_nodes") or {})]
    return bool(report) and not all(_READ_ONLY_TYPE.fullmatch(name) for name in types)


class ActorGroupOptions(BaseModel):
    """What the workers of one actor group ask of their node, and the environment they run in."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    num_cpus: float | None = Field(default=None, ge=0, description="CPUs of one worker")
    num_gpus: float | None = Field(default=None, ge=0, description="GPUs of one worker")
    resources: dict[str, float] = Field(default_factory=dict, description="custom resources of one worker")
    accelerator_type: str | None = Field(
        default=None, description="kind of accelerator, as Ray names it (H100, L4, ...)"
    )
    label_selector: dict[str, str] = Field(default_factory=dict, description="labels the worker's node must have")
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description=f"Ray environment: {', '.join(_RUNTIME_ENV_KEYS)}"
    )

    @field_validator("resources")
    @classmethod
    def _custom_only(cls, value: dict[str, float]) -> dict[str, float]:
        named = {"CPU": "num_cpus", "GPU": "num_gpus"}
        for key in value:
            if key in named:
                raise ValueError(f"'{key}' is not a custom resource; write {named[key]}")
        return value

    @field_validator("runtime_env")
    @classmethod
    def _known_and_open(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [k for k in value if k not in _RUNTIME_ENV_KEYS]
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}; allowed: {', '.join(_RUNTIME_ENV_KEYS)}")
        refuse_secrets(value)
        return value

    def ray_remote_args(self) -> dict[str, Any]:
        """The options for `@ray.remote` and `map_batches`; what was not given is left to the caller."""
        given = {k: getattr(self, k) for k in type(self).model_fields}
        return {k: v for k, v in given.items() if v is not None and v != {}}


def refuse_secrets(runtime_env: Mapping[str, Any]) -> None:
    """Raise ValueError for secrets in `env_vars`: a runtime_env is shown in the dashboard and in logs."""
    variables = runtime_env.get("env_vars") or {}
    hidden = redact(dict(variables))
    found = sorted(k for k, v in variables.items() if REDACTED in str(hidden[k]) and REDACTED not in str(v))
    if found:
        raise ValueError(
            f"pass secrets by reference: set {', '.join(found)} in the environment of the nodes and write "
            f"${{env:{found[0]}}} where it is needed"
        )


def data_context(ds: Dataset | None, *, block_bytes: int | None = None, verbose: bool = False) -> DataContext:
    """Set what this project wants from Ray Data on ONE data set's context, and return it.

    With `ds` None a copy of the current context is returned, for `with DataContext.current(copy):` around a read.
    The global context is never changed.

    Args:
        block_bytes: target size of a block.
        verbose: whether statistics of every run are logged.
    """
    from ray.data import DataContext

    context = ds.context if ds is not None else DataContext.get_current().copy()
    if block_bytes is not None:
        context.target_max_block_size = block_bytes
    # Progress is shown by streams/watch.py: Ray Data's own bars know no total, rate or rejects.
    context.enable_progress_bars = verbose
    context.enable_rich_progress_bars = verbose
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = verbose
    context.enable_auto_log_stats = verbose
    context.verbose_stats_logs = False
    # Else a RaycurateError from a worker arrives as a UserCodeException without a cause.
    context.raise_original_map_exception = True
    context.retried_io_errors = list(dict.fromkeys([*context.retried_io_errors, *_TRANSIENT_IO]))
    return context


def resume_demand(checkpointed_bytes: int = 0) -> OperatorDemand:
    """The filter actors that Ray Data adds to a resumed plan (1 CPU, and 1 GiB or 1.5 times the stored ids)."""
    from ray.data.checkpoint import CheckpointConfig

    stored = int(checkpointed_bytes * private.checkpoint_memory_factor())
    memory = max(CheckpointConfig.CHECKPOINT_ACTOR_MEMORY_BYTES, stored)
    return OperatorDemand("CheckpointFilter", CheckpointConfig.CHECKPOINT_ACTOR_POOL_MIN_SIZE, 1.0, memory=memory)


def dataset_demands(ds: Dataset) -> list[OperatorDemand]:
    """What each operator of a data set's plan will hold, from Ray Data's own planner, after fusion.

    The write that is still to come is not in it. A plan that resumes from a checkpoint has its filter actors counted.
    """
    operators, resumes = private.planned(ds)
    demands = [resume_demand()] if resumes else []
    for operator in operators:
        each, arguments, actors = private.demand_of(operator)
        custom = dict(arguments.get("resources") or {})
        if arguments.get("accelerator_type"):
            custom[f"accelerator_type:{arguments['accelerator_type']}"] = 0.001
        if actors is None and not (each.cpu or each.gpu or each.memory or custom):
            continue
        workers = 1 if actors is None else actors
        labels = dict(arguments.get("label_selector") or {})
        kind: Any = "tasks" if actors is None else "actors"
        demands.append(OperatorDemand(operator.name, workers, each.cpu, each.gpu, each.memory, custom, kind, labels))
    return demands


def nodes_with(
    label_selector: Mapping[str, str] | None = None, resources: Mapping[str, float] | None = None
) -> list[str]:
    """Ids of the live nodes that have these labels and at least these resources in all."""
    return [
        n.name
        for n in capacity().nodes
        if matches(n.labels, label_selector or {})
        and all(n.resources.get(k, 0.0) >= v for k, v in (resources or {}).items())
    ]


def run_on_each_node(fn: Callable[..., Any], *args: Any, gpu_only: bool = False, num_gpus: float = 0.0) -> list[Any]:
    """Run `fn(*args)` once on every live node (or every one with a GPU); the results.

    Nothing of a node's is taken but `num_gpus`: Ray hides the GPUs from a task that asks for none.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, num_gpus=num_gpus)(fn)
    nodes = nodes_with(resources={"GPU": 1} if gpu_only else None)
    pinned = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    return ray.get([remote.options(scheduling_strategy=p).remote(*args) for p in pinned])


def remote_task(fn: Callable[..., Any], *, name: str, num_cpus: float, num_returns: int = 1) -> Any:
    """`fn` as a Ray task that carries a readable name in the dashboard; call it with `.remote(...)`."""
    import ray

    return ray.remote(fn).options(name=name, num_cpus=num_cpus, num_returns=num_returns)


def map_in_tasks(work: Callable[[Any], Any], parts: Sequence[Any], *, name: str) -> list[Any]:
    """What `work` gives for each part, in order, by half-CPU tasks of the cluster that is connected."""
    import ray

    task = remote_task(work, name=name, num_cpus=0.5)
    return list(ray.get([task.remote(part) for part in parts]))


def environment_versions() -> dict[str, str]:
    """The versions that a driver and its actors must share: what crosses between them is pickled or Arrow."""
    from importlib.metadata import version

    import raycurate

    own = getattr(raycurate, "__version__", None) or version("raycurate")
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "ray": version("ray"), "pyarrow": version("pyarrow"), "raycurate": own}


def check_environment(expected: Mapping[str, str], where: str) -> None:
    """Called by an actor at its start with the driver's `environment_versions()`.

    Raises:
        RaycurateError: some version here differs; the message lists each.
    """
    here = environment_versions()
    differing = [f"{k} {here.get(k)} (the driver has {v})" for k, v in expected.items() if here.get(k) != v]
    if differing:
        raise RaycurateError(
            f"versions differ from the driver's: {', '.join(differing)}",
            where=f"{where} on {socket.gethostname()} ({sys.executable})",
            fix="Install the same versions there: the node image (label_selector) or the actor group's runtime_env",
        )
