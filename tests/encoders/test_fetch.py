"""Models that lie on an object store: what its keys say is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.models.fetch import fetch_model
from raycurate.models.options import EncoderOptions


def options(model: str, cache: Path) -> EncoderOptions:
    return EncoderOptions.parse({"model": model, "cache_dir": str(cache)}, where="test")


def test_a_model_on_a_store_is_copied_whole_and_once(tmp_path: Path) -> None:
    for name in ("config.json", "1_Pooling/config.json"):
        storage.write_text(f"memory://models/good/{name}", name)
    folder = Path(fetch_model(options("memory://models/good", tmp_path)))
    assert (folder / "1_Pooling/config.json").read_text() == "1_Pooling/config.json"
    assert fetch_model(options("memory://models/good/", tmp_path)) == str(folder)


@pytest.mark.parametrize("key", ["../../../../escaped.json", "a/../../../../escaped.json", "..", "a/../b.json"])
def test_a_key_that_leads_out_of_the_model_is_refused(tmp_path: Path, s3: str, key: str) -> None:
    import boto3

    bucket = s3.removeprefix("s3://")
    name = f"hostile-{abs(hash(key))}"
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.put_object(Bucket=bucket, Key=f"{name}/config.json", Body=b"{}")
    client.put_object(Bucket=bucket, Key=f"{name}/{key}", Body=b"evil")
    with pytest.raises(InputError, match="which is not inside it"):
        fetch_model(options(f"{s3}/{name}", tmp_path / "cache"))
    assert not list(tmp_path.rglob("escaped.json")) and not list(tmp_path.rglob("*.json"))


def test_a_private_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = storage.private_folder("secret")
    assert place.stat().st_mode & 0o777 == 0o700 and storage.private_folder("secret") == place
    place.chmod(0o755)
    with pytest.raises(Exception, match="not a folder of this user alone"):
        storage.private_folder("secret")
    (tmp_path / "raycurate-link").symlink_to(place)
    with pytest.raises(Exception, match="not a folder of this user alone"):
        storage.private_folder("link")
