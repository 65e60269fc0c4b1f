"""Reaching Ray with and without its token, what a plan needs, and what cannot run being refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from raycurate.core.errors import CapacityError, ConfigError, MissingDependencyError, RaycurateError
from raycurate.ray_runtime import cluster, connect
from raycurate.ray_runtime.capacity import UNLIMITED, matches, placeable
from raycurate.ray_runtime.cluster import ActorGroupOptions, Capacity, NodeShape, OperatorDemand, check_plan
from tests.clusters import HeadNode, head_node
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]


def node(cpu: float, gpu: float = 0, memory: float = 64 << 30, **labels: str) -> NodeShape:
    return NodeShape({"CPU": cpu, "GPU": gpu, "memory": memory}, labels)


def actors(name: str, count: int, cpu: float, gpu: float = 0, **more: object) -> OperatorDemand:
    return OperatorDemand(name, count, cpu, gpu, **more)  # type: ignore[arg-type]


READ = OperatorDemand("ListFiles", 1, 1.0, kind="tasks")


def test_two_fractional_actors_and_a_reader_do_not_fit_two_cpus() -> None:
    """The deadlock of Ray Data on two CPUs: 2 x 0.75 leaves half a CPU, and the reader wants a whole one."""
    with pytest.raises(CapacityError) as caught:
        check_plan([READ, actors("Encode", 2, 0.75)], Capacity((node(2),)))
    message = str(caught.value)
    for part in (
        "2.5 CPU must be held at once, 2 CPU can be had",
        "Encode",
        "0.75 CPU",
        "ListFiles",
        "largest allowed",
    ):
        assert part in message
    assert check_plan([READ, actors("Encode", 2, 0.5)], Capacity((node(2),))).fits_now
    assert check_plan([READ, actors("Encode", 2, 0.75)], Capacity((node(3),))).needed == {"CPU": 2.5}


def test_tasks_take_turns_but_actors_stay() -> None:
    write = OperatorDemand("Write", 1, 1.0, kind="tasks")
    assert check_plan([READ, write, actors("Encode", 1, 1)], Capacity((node(2),))).fits_now
    with pytest.raises(CapacityError):
        check_plan([READ, actors("A", 1, 1), actors("B", 1, 1)], Capacity((node(2),)))


def test_a_resumed_plan_counts_its_filter_actors() -> None:
    plan = [READ, actors("Encode", 1, 1)]
    assert check_plan(plan, Capacity((node(2),))).fits_now
    with pytest.raises(CapacityError, match="CheckpointFilter"):
        check_plan([*plan, cluster.resume_demand()], Capacity((node(2),)))
    assert cluster.resume_demand().memory == 1 << 30
    assert cluster.resume_demand(4 << 30).memory == 6 << 30


def test_one_worker_must_fit_one_node() -> None:
    two_nodes = Capacity((node(4, 1), node(4, 1)))
    with pytest.raises(CapacityError, match="one worker of Big needs 1 CPU, 2 GPU on one node"):
        check_plan([actors("Big", 1, 1, 2)], two_nodes)
    assert check_plan([actors("Small", 2, 1, 1)], two_nodes).fits_now
    # 3 x 3 CPU: 9 of 12 in all, but each node of 4 has room for one only; two nodes are too few.
    with pytest.raises(CapacityError, match="cannot be laid out on 2 nodes"):
        check_plan([actors("A", 1, 3), actors("B", 1, 3), actors("C", 1, 2)], two_nodes)


def test_memory_counts() -> None:
    with pytest.raises(CapacityError, match=r"48.0 GiB memory must be held at once, 32.0 GiB memory can be had"):
        check_plan([actors("E", 2, 1, memory=24 << 30)], Capacity((node(8, memory=32 << 30),)))


def test_a_layout_that_first_fit_misses_is_found() -> None:
    """First fit, largest first, puts 4+3 and 4+3 on nodes of 8 and leaves no room for 2; 4+4 and 3+3+2 fits."""
    sizes = [4, 4, 3, 3, 2]
    workers = [actors(f"w{i}", 1, s) for i, s in enumerate(sizes)]
    assert placeable(workers, [node(8), node(8)]) is True
    assert placeable([*workers, actors("more", 1, 1)], [node(8), node(8)]) is False


def test_large_plans_are_fast_and_never_refused_without_proof() -> None:
    many = [OperatorDemand("E", 1, 1)] * 2000
    assert placeable(many, [node(8) for _ in range(250)]) is True
    assert placeable(many, [node(8) for _ in range(249)]) is False


def test_labels_and_kinds_of_accelerators() -> None:
    capacity = Capacity((node(8, 1, region="a"), NodeShape({"CPU": 8, "GPU": 1, "accelerator_type:H100": 1})))
    picky = actors("E", 1, 1, 1, resources={"accelerator_type:H100": 0.001})
    assert check_plan([picky], capacity).fits_now
    with pytest.raises(CapacityError, match="accelerator_type:L4"):
        check_plan([actors("E", 1, 1, 1, resources={"accelerator_type:L4": 0.001})], capacity)
    labelled = (node(8, region="a"), node(8, region="b"))
    assert placeable([actors("E", 2, 4, label_selector={"region": "a"})] * 2, labelled) is True
    assert placeable([actors("E", 1, 5, label_selector={"region": "a"})] * 2, labelled) is False


def test_label_selectors_mean_what_ray_says() -> None:
    labels = {"region": "a", "size": "xl"}
    yes = [{"region": "a"}, {"region": "!b"}, {"region": "in(a, b)"}, {"size": "!in(s,m)"}, {"none": "!x"}, {}]
    no = [{"region": "b"}, {"region": "!a"}, {"region": "in(c,d)"}, {"size": "!in(xl)"}, {"none": "x"}]
    assert all(matches(labels, s) for s in yes) and not any(matches(labels, s) for s in no)


def test_a_plan_that_waits_for_nodes_says_so() -> None:
    group = NodeShape({"CPU": 8.0, "GPU": 1.0, "memory": 64 << 30}, count=2, name="gpu")
    capacity = Capacity((node(2),), (group,), {"CPU": 16, "GPU": 2, "memory": 128 << 30}, autoscaler=True)
    report = check_plan([READ, actors("Encode", 2, 1, 1)], capacity)
    assert not report.fits_now and report.waits_for_nodes and "2 GPU" in report.waits_for_nodes
    assert capacity.largest.gpu == 2 and capacity.live.gpu == 0 and capacity.largest_node.gpu == 1
    with pytest.raises(CapacityError, match="3 GPU must be held at once, 2 GPU can be had"):
        check_plan([actors("Encode", 3, 1, 1)], capacity)
    with pytest.raises(CapacityError, match="one worker of Encode needs 1 CPU, 4 GPU on one node"):
        check_plan([actors("Encode", 1, 1, 4)], capacity)


def test_unlimited_groups_and_unknown_maxima_are_not_refused() -> None:
    group = NodeShape({"CPU": 8.0, "GPU": 1.0}, count=UNLIMITED, name="gpu")
    unlimited = Capacity((node(2),), (group,), {"CPU": sys.maxsize, "GPU": sys.maxsize}, autoscaler=True)
    assert check_plan([actors("Encode", 100, 1, 1)], unlimited).waits_for_nodes
    unknown = check_plan([actors("Encode", 100, 1, 1)], Capacity((node(2),), autoscaler=True))
    assert unknown.waits_for_nodes and "unknown" in unknown.waits_for_nodes


def test_actor_group_options() -> None:
    options = ActorGroupOptions(
        num_gpus=0.5, accelerator_type="H100", label_selector={"a": "b"}, resources={"x": 1}, runtime_env={"uv": ["p"]}
    )
    assert options.ray_remote_args() == {
        "num_gpus": 0.5,
        "accelerator_type": "H100",
        "label_selector": {"a": "b"},
        "resources": {"x": 1.0},
        "runtime_env": {"uv": ["p"]},
    }
    assert ActorGroupOptions().ray_remote_args() == {}


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"runtime_env": {"conda": "x"}}, "unknown keys conda; allowed: uv, pip"),
        ({"runtime_env": {"env_vars": {"HF_TOKEN": "hf_secret"}}}, "pass secrets by reference"),
        ({"runtime_env": {"env_vars": {"URL": "https://me:pw@host"}}}, "pass secrets by reference"),
        ({"resources": {"GPU": 1}}, "write num_gpus"),
        ({"num_gpu": 1}, "Extra inputs"),
        ({"num_cpus": -1}, "greater than or equal"),
    ],
)
def test_actor_group_options_that_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        ActorGroupOptions.model_validate(bad)
    assert "pass secrets" not in message or "pw@host" not in str(caught.value.errors()[0]["msg"])


def test_versions_that_differ_are_named() -> None:
    versions = cluster.environment_versions()
    assert set(versions) == {"python", "ray", "pyarrow", "raycurate"}
    assert versions["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    cluster.check_environment(versions, "encoder actor")
    with pytest.raises(
        RaycurateError, match=r"encoder actor on .*: versions differ.*the driver has 0.0.1.*runtime_env"
    ):
        cluster.check_environment({**versions, "pyarrow": "0.0.1"}, "encoder actor")


# ------------------------------------------------------------------------------------- with a Ray in this process


@pytest.mark.usefixtures("local_ray")
def test_connect_uses_what_is_connected_and_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.77:1")
    info = connect.connect()
    assert not info.owned and info.address == ray.get_runtime_context().gcs_address
    connect.disconnect(info)
    assert ray.is_initialized()


@pytest.mark.usefixtures("local_ray")
def test_capacity_of_a_local_ray() -> None:
    """Also once the read-only monitor has written its report, some seconds after the start."""
    import time

    from ray.experimental.internal_kv import _internal_kv_get

    deadline = time.monotonic() + PATIENCE_S
    while b'"autoscaler_report"' not in (_internal_kv_get("__autoscaling_status") or b""):
        assert time.monotonic() < deadline, "the monitor has written no report"
        time.sleep(0.2)
    capacity = cluster.capacity()
    assert capacity.owned and not capacity.autoscaler and capacity.maximum is None
    assert capacity.live.cpu == capacity.largest.cpu == capacity.largest_node.cpu == 4
    assert capacity.live.memory > 1 << 28


@pytest.mark.usefixtures("local_ray")
def test_capacity_reads_the_maximum_that_a_cluster_reports() -> None:
    """The configuration is put where Ray's own autoscaler interface keeps it."""
    from ray._private.state import state
    from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
    from ray.core.generated.autoscaler_pb2 import ClusterConfig
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    config = ClusterConfig()
    group = config.node_group_configs.add(name="gpu", max_count=3)
    group.resources.update({"CPU": 16, "GPU": 2})
    where = {"namespace": GCS_AUTOSCALER_STATE_NAMESPACE.encode()}
    _internal_kv_put(GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), config.SerializeToString(), **where)
    try:
        assert state.get_cluster_config() == config
        capacity = cluster.capacity()
        assert capacity.autoscaler and capacity.maximum == {"CPU": 48, "GPU": 6}
        assert (capacity.live.gpu, capacity.largest.gpu, capacity.largest_node.gpu) == (0, 6, 2)
        assert check_plan([actors("Encode", 6, 1, 1)], capacity).waits_for_nodes
        with pytest.raises(CapacityError, match="7 GPU must be held at once, 6 GPU can be had"):
            check_plan([actors("Encode", 7, 1, 1)], capacity)
    finally:
        _internal_kv_del(GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), **where)


@pytest.mark.usefixtures("local_ray")
def test_run_on_each_node_runs_once_on_each() -> None:
    import ray

    def where(word: str) -> tuple[str, str]:
        import ray

        return word, ray.get_runtime_context().get_node_id()

    alive = sorted(n["NodeID"] for n in ray.nodes() if n["Alive"])
    assert sorted(cluster.run_on_each_node(where, "here")) == [("here", n) for n in alive]
    assert cluster.run_on_each_node(where, "here", gpu_only=True) == []
    assert cluster.nodes_with(resources={"CPU": 4}) == alive and cluster.nodes_with(resources={"CPU": 5}) == []
    assert cluster.nodes_with({"ray.io/node-id": alive[0]}) == [alive[0]] and cluster.nodes_with({"zone": "x"}) == []


class Encode:
    """Stands for an encoder actor."""

    def __call__(self, batch: object) -> object:
        return batch


@pytest.mark.usefixtures("local_ray")
def test_demands_of_a_data_set_come_from_ray_datas_own_plan(tmp_path: Path) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    ds = ray.data.range(10).map_batches(
        Encode, num_cpus=0.75, memory=1 << 20, compute=ray.data.ActorPoolStrategy(min_size=2, max_size=3)
    )
    (pool,) = [d for d in cluster.dataset_demands(ds) if d.kind == "actors"]
    assert (pool.name, pool.workers_min, pool.num_cpus, pool.memory) == ("MapBatches(Encode)", 2, 0.75, 1 << 20)
    assert [d.num_cpus for d in cluster.dataset_demands(ds) if d.kind == "tasks"] == [1]
    ds.context.checkpoint_config = CheckpointConfig(id_column="id", checkpoint_path=str(tmp_path))
    assert "CheckpointFilter" in [d.name for d in cluster.dataset_demands(ds)]
    assert ds.context.checkpoint_config is not None


@pytest.mark.usefixtures("local_ray")
def test_data_context_touches_one_data_set_only() -> None:
    import ray
    from ray.data import DataContext

    before = DataContext.get_current().copy()
    one, other = ray.data.range(3), ray.data.range(3)
    cluster.data_context(one, block_bytes=12345)
    assert one.context.target_max_block_size == 12345 and one.context.raise_original_map_exception
    copied = cluster.data_context(None, block_bytes=999)
    for untouched in (other.context, DataContext.get_current()):
        assert untouched.target_max_block_size == before.target_max_block_size
        assert untouched.retried_io_errors == before.retried_io_errors
    assert copied.target_max_block_size == 999 and copied is not DataContext.get_current()


def _refuse(row: dict[str, int]) -> dict[str, int]:
    raise ConfigError("that cannot be", where="row 1", fix="Change it")


@pytest.mark.usefixtures("local_ray")
def test_a_users_error_in_a_worker_comes_back_as_itself() -> None:
    import ray

    ds = ray.data.range(2).map(_refuse)
    cluster.data_context(ds)
    with pytest.raises(Exception) as caught:
        ds.materialize()
    found = cluster.user_error(caught.value)
    assert type(found) is ConfigError and str(found) == "row 1: that cannot be. Change it"
    assert cluster.user_error(ValueError("x")) is None
    with pytest.raises(ConfigError) as raised:
        cluster.raise_user_error(caught.value)
    assert raised.value.__cause__ is caught.value
    cluster.raise_user_error(ValueError("x"))
    cluster.raise_user_error(raised.value)  # it is the user's already, and would be its own cause


# ---------------------------------------------------------------------------- with heads in processes of their own

CLIENT = """
import json, sys
from raycurate.ray_runtime.cluster import capacity
from raycurate.ray_runtime.connect import connect, disconnect
from raycurate.core.errors import RaycurateError
try:
    info = connect(sys.argv[1] if len(sys.argv) > 1 else None)
    again = connect()
    print(json.dumps({"owned": info.owned, "again": again.owned, "in_job": info.in_job, "cpus": capacity().live.cpu}))
    disconnect(info)
except RaycurateError as error:
    print(json.dumps({"error": str(error)}))
"""


def client(env: dict[str, str], *arguments: str) -> dict[str, object]:
    """What a process with this environment gets from `connect`."""
    env = {**env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def token_head(tmp_path_factory: pytest.TempPathFactory) -> HeadNode:  # type: ignore[misc]
    with head_node(tmp_path_factory.mktemp("head"), num_cpus=3, auth="token") as head:
        yield head


def test_connect_attaches_with_the_token(token_head: HeadNode) -> None:
    attached = {"owned": False, "again": False, "in_job": False, "cpus": 3.0}
    assert client({**token_head.env, "RAY_ADDRESS": token_head.gcs_address}) == attached
    assert client(token_head.env, token_head.gcs_address) == attached


@pytest.mark.parametrize("how", ["wrong", "off"])
def test_connect_says_what_to_set_when_the_token_is_wrong_or_off(token_head: HeadNode, how: str) -> None:
    change = {"RAY_AUTH_TOKEN": "wrong"} if how == "wrong" else {"RAY_AUTH_MODE": "disabled"}
    error = client({**token_head.env, **change}, token_head.gcs_address)["error"]
    for part in (token_head.gcs_address, "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        assert part in str(error)


def test_connect_without_token_authentication(tmp_path: Path) -> None:
    with head_node(tmp_path, num_cpus=2, auth="disabled") as head:
        found = client({**head.env, "RAY_ADDRESS": head.gcs_address})
    assert found == {"owned": False, "again": False, "in_job": False, "cpus": 2.0}


@pytest.mark.parametrize("auth", ["token", "disabled"])
def test_connect_starts_a_local_ray_of_its_own(token_head: HeadNode, auth: str, tmp_path: Path) -> None:
    env = {k: v for k, v in token_head.env.items() if not k.startswith("RAY_AUTH")}
    found = client({**env, "RAY_AUTH_MODE": auth, "HOME": str(tmp_path)})
    assert found["owned"] is True and found["again"] is False


def test_nobody_answers(token_head: HeadNode) -> None:
    error = str(client(token_head.env, "127.0.0.1:1")["error"])
    assert "127.0.0.1:1" in error and "cannot be reached" in error and "RAY_ADDRESS" in error


def test_a_job_never_starts_a_second_cluster(token_head: HeadNode) -> None:
    error = str(client({**token_head.env, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})["error"])
    assert "does not start another" in error


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_addresses_of_another_kind_say_what_they_are_for(token_head: HeadNode, address: str) -> None:
    assert "raycurate submit" in str(client(token_head.env, address)["error"])


def test_num_cpus_is_for_a_ray_that_is_started_here() -> None:
    code = "from raycurate.ray_runtime.connect import connect; connect('127.0.0.1:1', num_cpus=2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "ConfigError" in done.stderr and "num_cpus=2" in done.stderr


@pytest.mark.usefixtures("local_ray")
def test_an_error_in_an_actors_constructor_is_the_users_to_read() -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Engine:
        def __init__(self) -> None:
            raise MissingDependencyError("engine x needs the package 'x'", where="here", fix="Install it")

        def run(self) -> None:
            return None

    with pytest.raises(ray.exceptions.RayActorError) as raised:
        ray.get(Engine.remote().run.remote())
    assert str(cluster.user_error(raised.value)) == "here: engine x needs the package 'x'. Install it"
    assert cluster.user_error(RuntimeError("something else")) is None
