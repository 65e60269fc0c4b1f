"""Storage options of one run: they reach the workers, and are written nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raycurate as rc
from raycurate.core import access, storage
from raycurate.core.errors import ConfigError
from raycurate.stages.kmeans.config import KMeansConfig
from tests.conftest import BUCKET
from tests.kmeans.test_fit import blobs
from tests.kmeans.test_stage import write

SECRET = "not-for-any-file"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An S3 server that the environment does not name: the options that reach it."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    running = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    url = f"http://{host}:{port}"
    names = {"aws_access_key_id": "me", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **names).create_bucket(Bucket=BUCKET)
    yield {"key": "me", "secret": SECRET, "client_kwargs": {"endpoint_url": url, "region_name": "us-east-1"}}
    access._here.clear()
    running.stop()


@pytest.mark.usefixtures("local_ray")
def test_vectors_and_clusters_on_a_server_that_only_the_options_name(server: dict[str, Any], tmp_path: Path) -> None:
    rows, _ = blobs(60, 4, 3, 1)
    write(tmp_path / "a.parquet", rows)
    bucket = f"s3://{BUCKET}"
    access.use([f"{bucket}/in"], server)
    storage.write_bytes(f"{bucket}/in/a.parquet", (tmp_path / "a.parquet").read_bytes())
    access._here.clear()
    options: dict[str, Any] = {"read_kwargs": {"storage_options": server}, "write_kwargs": {"storage_options": server}}
    result = rc.kmeans(f"{bucket}/in/*.parquet", f"{bucket}/out", n_clusters=3, **options)
    assert result.manifest.counts["rows"] == 60 and result.centroids().shape == (3, 4)
    assert rc.kmeans(f"{bucket}/in/*.parquet", f"{bucket}/out", n_clusters=3, storage_options=server).skipped
    files = storage.list_files(f"{bucket}/out")
    assert len(files) >= 4
    assert not any(SECRET.encode() in storage.read_bytes(file.path) for file in files)


def test_the_longest_path_says_how_it_is_reached() -> None:
    access.use(["s3://a/b/*.parquet"], {"key": "k", "secret": "s", "endpoint_url": "http://h:1"})
    access.use(["s3://a/b/c"], {"anon": True})
    try:
        assert access.options_for("s3://a/b/x.parquet") == {"key": "k", "secret": "s", "endpoint_url": "http://h:1"}
        assert access.options_for("s3://a/b/c/x") == {"anon": True}
        assert access.options_for("s3://a/bc") is None
        assert access.filesystem_with("s3://a/b", {"key": "k", "secret": "s"})[1] == "a/b"
    finally:
        access._here.clear()


def test_options_that_cannot_be_used_say_so_and_other_names_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'secrte' is no storage option of s3://.*Did you mean 'secret'"):
        access.use(["s3://a"], {"secrte": "x"})
    with pytest.raises(ConfigError, match="this is a local path"):
        access.use(["/data"], {"anon": True})
    both = KMeansConfig.parse({"input": "s3://a", "output": "s3://b", "storage_options": {"anon": True}}, where="x")
    own = KMeansConfig.parse({"input": "s3://a", "output": "/b", "read_storage_options": {"anon": True}}, where="x")
    assert both.read_kwargs == both.write_kwargs == own.read_kwargs and not own.write_kwargs.storage_options
    assert "anon" not in f"{both.result_keys()} {both.redacted()}"
    with pytest.raises(ConfigError, match="given twice"):
        KMeansConfig.parse(
            {"input": "a", "output": "b", "storage_options": {"a": 1}, "read_kwargs": {"storage_options": {"b": 1}}},
            where="x",
        )
    with pytest.raises(ConfigError, match=r"unknown key 'read_kwargs\.storage_option'"):
        KMeansConfig.parse({"input": "a", "output": "b", "read_kwargs": {"storage_option": {}}}, where="x")
