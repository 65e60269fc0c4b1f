"""Sending a stage to a real head through Ray's job API, and what is refused before anything is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycurate.core.config import Recipe
from raycurate.core.errors import ConfigError, RaycurateError
from raycurate.pipeline import options_of
from raycurate.ray_runtime import jobs
from tests.clusters import HeadNode, head_node
from tests.processes import PATIENCE_S

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = "tests.core.stand_in_stage"
SECRET = "hf_value_only_the_cluster_knows"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadNode]:
    """A head that wants the token and knows a secret; jobs find this checkout on their PYTHONPATH."""
    env = {"PYTHONPATH": str(ROOT), "RC_TEST_SECRET": SECRET}
    with head_node(tmp_path_factory.mktemp("head"), num_cpus=2, auth="token", extra_env=env) as running:
        yield running


def submit_from_a_process(head: HeadNode, recipe: dict[str, Any], **changes: Any) -> tuple[str, dict[str, Any]]:
    """Output and result of `submit` in a process of its own, since Ray reads its authentication once a process."""
    env = {**head.env, "PYTHONPATH": str(ROOT), **changes.pop("env", {})}
    code = (
        "import dataclasses, json, sys\n"
        "from raycurate.core.config import Recipe\nfrom raycurate.core.errors import RaycurateError\n"
        "from raycurate.ray_runtime.jobs import submit\n"
        "given = json.loads(sys.argv[1])\n"
        "try:\n"
        "    result = submit('embed', Recipe(given['recipe'], 'r.yaml'), **given['options'])\n"
        "    found = {**dataclasses.asdict(result), 'exit_code': result.exit_code, 'summary': result.summary()}\n"
        "except RaycurateError as error:\n"
        "    found = {'error': str(error)}\n"
        "print('\\n' + json.dumps(found))\n"
    )
    options = {"address": head.dashboard, "module": STAND_IN, **changes}
    argument = json.dumps({"recipe": recipe, "options": options})
    done = subprocess.run(
        [sys.executable, "-c", code, argument], env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    log, _, found = done.stdout.rstrip().rpartition("\n")
    return log, json.loads(found)


def test_a_job_runs_its_log_is_followed_and_it_succeeds(head: HeadNode) -> None:
    recipe = {"workdir": "/tmp/some/where", "embed": {"batch_size": 4, "hf_token": "${env:RC_TEST_SECRET}"}}
    log, found = submit_from_a_process(head, recipe)
    assert (found["status"], found["exit_code"]) == ("SUCCEEDED", 0), (log, found)
    said = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert said == {"in_job": True, "owned": False, "task": 42, "python": sys.executable}
    assert f"token length {len(SECRET)}" in log
    assert found["job_id"].startswith("raycurate-embed-")
    # The secret came from the cluster's own environment: nothing that describes the job holds it.
    assert SECRET not in log and SECRET not in json.dumps(found) and SECRET not in job_details(head, found["job_id"])


def job_details(head: HeadNode, job: str) -> str:
    """What the dashboard tells of a job."""
    import requests

    answer = requests.get(
        f"{head.dashboard}/api/jobs/{job}", headers={"Authorization": f"Bearer {head.token}"}, timeout=200
    )
    answer.raise_for_status()
    return answer.text


def test_a_bad_config_fails_with_the_error_in_the_jobs_message(head: HeadNode) -> None:
    log, found = submit_from_a_process(head, {"embed": {"batch_sise": 4}})
    assert (found["status"], found["exit_code"]) == ("FAILED", 1)
    error = "raycurate: error: recipe.yaml: embed: unknown key 'batch_sise'; did you mean 'batch_size'?"
    assert error in found["message"] and error in found["summary"] and error in log
    assert error in json.loads(job_details(head, found["job_id"]))["message"]


def test_no_wait_returns_before_the_job_has_ended(head: HeadNode) -> None:
    log, found = submit_from_a_process(head, {"embed": {}}, wait=False)
    assert found["status"] in ("PENDING", "RUNNING") and found["exit_code"] == 0 and log.strip() == ""


def test_the_address_that_is_given_counts_more_than_the_environment(head: HeadNode) -> None:
    env = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1", "RAY_ADDRESS": "127.0.0.1:1"}
    assert submit_from_a_process(head, {"embed": {}}, wait=False, env=env)[1]["address"] == head.dashboard


def test_the_address_may_come_from_the_environment(head: HeadNode) -> None:
    env = {"RAY_ADDRESS": head.gcs_address}
    assert submit_from_a_process(head, {"embed": {}}, wait=False, env=env, address=None)[1]["address"] == head.dashboard


@pytest.mark.parametrize("change", [{"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_refused_token_says_what_to_set(head: HeadNode, change: dict[str, str]) -> None:
    error = submit_from_a_process(head, {"embed": {}}, env=change)[1]["error"]
    for part in (head.dashboard, "token is missing or wrong", "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN"):
        assert part in error


def test_nobody_answers() -> None:
    with pytest.raises(RaycurateError, match=r"127.0.0.1:1: it cannot be reached .*ray start --head"):
        jobs.submit("embed", Recipe(), address="http://127.0.0.1:1")


def test_the_interpreter_can_be_named(head: HeadNode) -> None:
    _, found = submit_from_a_process(head, {"embed": {}}, python="/no/such/python")
    assert found["status"] == "FAILED" and "/no/such/python" in found["message"]


# ------------------------------------------------------------------------ refused before there is any connection


@pytest.mark.parametrize(
    "values,named",
    [
        ({"embed": {"hf_token": "hf_abc"}}, ["embed.hf_token"]),
        ({"embed": {"url": "https://me:pw@host/v1"}, "dedup": {"api_key": "sk-1"}}, ["embed.url", "dedup.api_key"]),
        ({"corpus": ["s3://k:s@bucket/x"]}, ["corpus"]),
    ],
)
def test_secrets_as_plain_text_are_refused(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"write \$\{env:NAME\}") as caught:
        jobs.submit("embed", Recipe(values, "r.yaml"), address="http://127.0.0.1:1")
    assert all(key in str(caught.value) for key in named)
    assert not any(secret in str(caught.value) for secret in ("hf_abc", "pw@", "sk-1"))


@pytest.mark.parametrize(
    "runtime_env,message",
    [({"env_vars": {"HF_TOKEN": "x"}}, "pass secrets by reference"), ({"working_dir": "."}, "working_dir is taken")],
)
def test_runtime_env_is_checked(runtime_env: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        jobs.submit("embed", Recipe(), address="http://127.0.0.1:1", runtime_env=runtime_env)


def refused_paths(values: dict[str, Any], shared: list[str] | None = None, stage: str = "embed") -> str:
    try:
        jobs._refuse_local_paths(stage, Recipe(values), shared or [], "http://far:8265", options_of)
    except ConfigError as error:
        return str(error)
    return ""


def test_paths_of_this_machine_are_refused_all_in_one_message(tmp_path: Path) -> None:
    values = {
        "workdir": "/home/me/work",
        "corpus": "docs",
        "model": "./models/mine",
        "embed": {
            "input": ["s3://b/x", "~/more"],
            "output": "${workdir}/out",
            "adapter": str(tmp_path),
            "route": "/v1/e",
        },
        "dedup": {"output": "/not/of/this/stage"},
    }
    message = refused_paths(values)
    for part in (
        "workdir=/home/me/work",
        "corpus=docs",
        "model=./models/mine",
        "embed.input=~/more",
        f"adapter={tmp_path}",
    ):
        assert part in message
    for part in ("s3://b/x", "/v1/e", "embed.output", "/not/of/this/stage"):
        assert part not in message
    assert "http://far:8265" in message and "--shared-path" in message
    assert "/not/of/this/stage" in refused_paths(values, stage="run")


def test_remote_paths_hub_names_and_shared_mounts_are_fine() -> None:
    values = {
        "workdir": "/mnt/shared/run1",
        "corpus": "hf://org/data",
        "model": "org/name",
        "seed": 3,
        "embed": {"input": "gs://b/x", "output": "/mnt/shared/out", "keep_text": True, "template": "a/b"},
    }
    assert refused_paths(values, ["/mnt/shared"]) == ""
    assert refused_paths(values, ["/mnt/share"]) != ""  # a prefix of folders, not of letters
    assert refused_paths(values, ["/mnt/shared/"]) == ""


def test_this_machine_is_told_from_others() -> None:
    import socket

    assert jobs._is_this_machine("127.0.0.1") and jobs._is_this_machine("localhost")
    assert jobs._is_this_machine(socket.gethostname())
    assert not jobs._is_this_machine("8.8.8.8") and not jobs._is_this_machine("no-such-host.invalid")


@pytest.mark.parametrize("stage", ["embed", "kmeans", "dedup", "mine", "prep", "finetune", "eval"])
def test_the_thin_driver_is_the_stages_command_line(stage: str) -> None:
    done = subprocess.run(
        [sys.executable, f"jobs/{stage}.py", "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"raycurate {stage}" in done.stdout and "output" in done.stdout, done.stderr
    assert len((ROOT / "jobs" / f"{stage}.py").read_text().splitlines()) < 40
