"""What is taken from Ray that Ray does not promise to keep: each name is still there, and stands in one module."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import raycurate
from raycurate.ray_runtime import private

PACKAGE = Path(raycurate.__file__).parent
PRIVATE = PACKAGE / "ray_runtime" / "private.py"
ACCESS = PACKAGE / "core" / "access.py"  # stands below ray_runtime
_HIDDEN = re.compile(r"ray\b.*\._|ray\.experimental\.internal_kv")
_ATTRIBUTES = ("_logical_plan", "_checkpoint_config", "_actor_pool", "_ray_remote_args", "_base_exc")
_POOL = "ray.data._internal.execution.operators.actor_pool_map_operator"


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import of a private name of Ray in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            names = [(alias.name, "") for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (pair for pair in names if _HIDDEN.match(".".join(pair)))


def uses(path: Path) -> set[str]:
    """All private names of Ray in a file: those that it imports, and those that it reaches through a dot."""
    dotted = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    said = {ast.unparse(node) for node in dotted if node.attr in _ATTRIBUTES and ast.unparse(node.value) != "self"}
    said |= {text for text in map(ast.unparse, dotted) if re.match(r"ray\.(.*\.)?_", text)}
    return said | {".".join(pair) for pair in imports(path)}


def gone(name: str) -> str:
    return (
        f"Ray {ray.__version__} no longer has {name}, which raycurate needs: see ray_runtime/private.py, core/access.py"
    )


def test_they_stand_in_one_module() -> None:
    files = [path for folder in (PACKAGE, PACKAGE.parent / "jobs") for path in folder.rglob("*.py")]
    elsewhere = {path.name: uses(path) for path in files if path not in (PRIVATE, ACCESS) and uses(path)}
    assert elsewhere == {}, "take it from raycurate/ray_runtime/private.py, or put it there"
    assert len(uses(PRIVATE)) > 10 and all(".internal_kv." in name for name in uses(ACCESS))


@pytest.mark.parametrize("module,name", sorted({*imports(PRIVATE), *imports(ACCESS)}))
def test_what_is_imported_is_there(module: str, name: str) -> None:
    try:
        assert hasattr(importlib.import_module(module), name), gone(f"{module}.{name}")
    except ImportError:
        pytest.fail(gone(module))


@pytest.mark.parametrize(
    "module,path",
    [
        ("ray._private.worker", "global_worker.node"),
        ("ray._private.node", "Node.is_head"),
        ("ray._private.node", "Node.address_info"),
        ("ray._private.node", "Node.get_session_dir_path"),
        ("ray._private.state", "state.get_cluster_config"),
        ("ray._private.state", "state.get_max_resources_from_cluster_config"),
        ("ray._private.services", "get_node"),
        ("ray._private.ray_constants", "ENABLE_RAY_CLUSTER"),
        ("ray.job_config", "JobConfig._runtime_env_has_working_dir"),
        (_POOL, "ActorPoolMapOperator.min_scheduling_resources"),
    ],
)
def test_what_is_reached_through_it_is_there(module: str, path: str) -> None:
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, gone) if part == "node" else inspect.getattr_static(found, part, gone)
        assert found is not gone, gone(f"{module}.{path}")


def test_the_private_argument_of_init_is_there() -> None:
    source = inspect.getsource(inspect.unwrap(ray.init))  # it takes them from **kwargs
    assert '"_node_ip_address"' in source, gone("the argument _node_ip_address of ray.init")


class Same:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def test_what_a_data_set_and_its_plan_hold_is_there(local_ray: None) -> None:
    dataset = ray.data.range(4).map_batches(Same, concurrency=(2, 3), resources={"disk": 0.5})
    held: list[tuple[str, Callable[[], Any]]] = [
        ("Dataset._logical_plan.dag", lambda: private.logical_plan(dataset).dag.input_dependencies),
        ("LogicalPlan._context._checkpoint_config", lambda: private.planned(dataset)),
        ("ActorPoolMapOperator._actor_pool", lambda: [private.demand_of(each) for each in private.planned(dataset)[0]]),
    ]
    for name, take in held:
        try:
            found = take()
        except AttributeError as error:
            pytest.fail(f"{gone(name)} ({error})")
    _, options, actors = found[-1]
    assert options.get("resources") == {"disk": 0.5}, gone("MapOperator._ray_remote_args")
    assert actors == 2


def test_a_workers_error_holds_its_own() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    error = ValueError("x")
    assert private.wrapped_error(UserExceptionWithTraceback(error, "")) is error, gone("its attribute _base_exc")
    assert private.wrapped_error(error) is None
