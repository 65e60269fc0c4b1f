"""Data sets of the Hugging Face hub by their URI: `hf://org/repo@revision/path`."""

from __future__ import annotations

import os

from raycurate.core.errors import InputError
from raycurate.core.hub import DATASET, snapshot


def parse_hub_uri(uri: str) -> tuple[str, str | None, str]:
    """(org/repo, revision or None, path inside) of `hf://[datasets/]org/repo[@revision][/path]`.

    Raises:
        InputError: it names no data set.
    """
    parts = uri.removeprefix("hf://").removeprefix("datasets/").strip("/").split("/")
    if len(parts) < 2 or not all(parts[:2]):
        raise InputError("a data set of the hub is named hf://org/repo or hf://org/repo/path", where=uri)
    name, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{name}", revision or None, "/".join(parts[2:])


def fetch_dataset(uri: str) -> str:
    """The local path of a data set, or of the folder or file in it that `uri` names; downloaded if need be.

    Raises:
        InputError: there is no such thing on the hub, it is gated, or the hub cannot be reached.
    """
    repository, revision, path = parse_hub_uri(uri)
    # A training file names its corpus relative to itself, so what lies beside it is fetched too.
    folder = path.rpartition("/")[0] if "." in path.rpartition("/")[2] else path
    root = snapshot(repository, [f"{folder}/**"] if folder else None, kind=DATASET, revision=revision)
    found = os.path.join(root, path) if path else root
    if not os.path.exists(found):
        raise InputError(f"the data set {repository} has no '{path}'", where=uri)
    return found
