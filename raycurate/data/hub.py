"""Data sets of the Hugging Face hub, as local folders.

What is fetched lies in the hub's own cache (HF_HOME), so a download that was cut off goes on where it stopped, and the
token is the one that the hub's tools use (HF_TOKEN, or what `hf auth login` stored).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from raycurate.core.errors import InputError, require


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
    root = snapshot(repository, [f"{folder}/**"] if folder else None, revision=revision)
    found = os.path.join(root, path) if path else root
    if not os.path.exists(found):
        raise InputError(f"the data set {repository} has no '{path}'", where=uri)
    return found


def snapshot(
    repository: str, patterns: Sequence[str] | None, *, revision: str | None = None, local_dir: str | None = None
) -> str:
    """The local folder of a data set's files that match `patterns` (all, when None).

    Args:
        repository: `org/name`.
        patterns: as `huggingface_hub.snapshot_download` takes them.
        revision: branch, tag or commit.
        local_dir: download there instead of the hub's cache.

    Raises:
        InputError: there is no such data set or revision, it is gated, or the hub cannot be reached.
    """
    hub = require("huggingface_hub", "hub", purpose=f"Downloading the data set '{repository}'")
    errors = importlib.import_module("huggingface_hub.errors")
    allowed = None if patterns is None else list(patterns)
    try:
        return hub.snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=allowed, local_dir=local_dir
        )
    except errors.GatedRepoError:
        fix = f"Accept its terms at https://huggingface.co/datasets/{repository}, then set HF_TOKEN"
        raise InputError("this data set is gated and the token has no access", where=repository, fix=fix) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"this data set has no revision '{revision}'", where=repository) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        fix = "Check the name; a private data set needs HF_TOKEN; a local folder must exist on this machine"
        raise InputError("there is no such data set on the hub", where=repository, fix=fix) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        fix = "Turn the network on (HF_HUB_OFFLINE unset), or download it elsewhere and name the folder"
        raise InputError(
            f"this data set is not in the cache and the hub was not reached ({error})", where=repository, fix=fix
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:
        fix = "Try again: what has arrived is kept"
        raise InputError(f"the hub did not give it ({error})", where=repository, fix=fix) from error
