"""All that this project takes from Ray and that Ray does not promise to keep, with the reason for each.

Ray's version is pinned; with another one tests/core/test_private_names.py says which of these names are gone. The
functions import them, since Ray is heavy. core/access.py, which stands below, takes `internal_kv` by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.data._internal.execution.interfaces import TaskContext  # noqa: F401 what Datasink.write is given


# ------------------------------------------------------------------------ the cluster


def own_node() -> Any:
    """The node that this process is connected to. It tells whether a head was started here, where its dashboard is, and
    in which folder its session lies: `ray.init` returns the last two to its caller only, and the first to nobody.
    """
    from ray._private.worker import global_worker

    return global_worker.node


def autoscaler_config() -> Any:
    """What an autoscaler said it may add, None where none did; `ray.cluster_resources` knows only what is there."""
    from ray._private.state import state

    return state.get_cluster_config()


def autoscaler_maximum() -> dict[str, Any] | None:
    """The resources of the largest cluster by the same configuration, None where there is none."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()


def autoscaler_status() -> bytes:
    """The report (JSON) that an autoscaler wrote, empty where none did; `ray status` prints it and no function does."""
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get("__autoscaling_status") or b""


# ------------------------------------------------------------------------ reaching and starting Ray


def ask_gcs(address: str) -> None:
    """Connect to a cluster's GCS once. It raises what is wrong (a token) at once; `ray.init` tries twenty times."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

    GcsClient(address=address)


def use_token_if_there() -> None:
    """Turn token authentication on when a token is on this machine, as `ray start` and `ray.init` do; a client of jobs
    does not by itself."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def own_path_job() -> Any:
    """A job's configuration with which Ray does not put the driver's folders in front of its workers' path; a
    working_dir, which has the same effect, would copy one."""
    from ray.job_config import JobConfig

    class OwnPathOnly(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:  # what Ray asks before it adds them
            return True

    return OwnPathOnly()


@contextmanager
def on_address(address: str) -> Iterator[dict[str, Any]]:
    """Options of `ray.init` for a Ray on this address of the machine; no public option says which.

    Inside the block Ray takes 127.0.0.1 for its address; it would replace it by the network's else.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # as on macOS and Windows: no other machine will join
    try:
        yield {"_node_ip_address": address}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def asking_for_node(wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Inside the block `ray.init` asks for its node by `wrapped(its own function)`: how long it asks is no option."""
    from ray._private import services

    ask = services.get_node
    services.get_node = wrapped(ask)
    try:
        yield
    finally:
        services.get_node = ask


# ------------------------------------------------------------------------ Ray Data


def logical_plan(dataset: Dataset) -> Any:
    """What a data set will do, as a graph whose last operator is `dag`; a data set shows only a text of it."""
    return dataset._logical_plan


def planned(dataset: Dataset) -> tuple[list[Any], bool]:
    """The operators that Ray Data's planner makes of a data set, from first to last, and whether it resumes from a
    checkpoint. What they will hold is public nowhere before the data set runs."""
    import copy

    from ray.data._internal.logical.optimizers import get_execution_plan

    plan = copy.copy(logical_plan(dataset))
    plan._context = plan.context.copy()
    resumes = plan._context._checkpoint_config is not None
    plan._context._checkpoint_config = None  # planning with it would already load the ids
    physical, _ = get_execution_plan(plan)
    return list(physical.dag.post_order_iter()), resumes


def demand_of(operator: Any) -> tuple[Any, dict[str, Any], int | None]:
    """What one worker of a plan's operator asks for (cpu, gpu, memory), its further options, and the least size of its
    actor pool (None for tasks)."""
    from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

    actors = operator._actor_pool.min_size() if isinstance(operator, ActorPoolMapOperator) else None
    return operator.min_scheduling_resources(), getattr(operator, "_ray_remote_args", {}), actors


def checkpoint_memory_factor() -> float:
    """Memory of a checkpoint's filter actor by the size of the stored ids; CheckpointConfig has all else of it."""
    from ray.data._internal.planner.checkpoint.plan_read_op import CHECKPOINT_MEMORY_SAFETY_FACTOR

    return CHECKPOINT_MEMORY_SAFETY_FACTOR


# ------------------------------------------------------------------------ Ray Train


def wrapped_error(error: BaseException) -> BaseException | None:
    """The error of a worker's own code inside what Ray Train makes of it (`UserExceptionWithTraceback`), else None."""
    return getattr(error, "_base_exc", None)
