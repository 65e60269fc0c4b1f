"""Models and data sets of the Hugging Face hub as local folders, and its errors in a user's words.

What is fetched lies in the hub's own cache (HF_HOME), so a download that was cut off goes on where it stopped, and the
token is the one that the hub's tools use (HF_TOKEN, or what `hf auth login` stored) unless another is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raycurate.core.errors import InputError, require


@dataclass(frozen=True)
class Kind:
    """What a repository holds, as the hub and as a user's options name it.

    Args:
        name: in a sentence.
        repo_type: the hub's word. page: where its pages begin.
        token: where a token is given. online: what has to be so for the network to be used.
    """

    name: str
    repo_type: str
    page: str
    token: str
    online: str


MODEL = Kind(
    name="model",
    repo_type="model",
    page="https://huggingface.co",
    token="hf_token or HF_TOKEN",
    online="local_files_only=false, HF_HUB_OFFLINE unset",
)
DATASET = Kind(
    name="data set",
    repo_type="dataset",
    page="https://huggingface.co/datasets",
    token="HF_TOKEN",
    online="HF_HUB_OFFLINE unset",
)


def snapshot(
    repository: str, patterns: Sequence[str] | None, *, kind: Kind, revision: str | None = None, **more: Any
) -> str:
    """The local folder of a repository's files that match `patterns` (all, when None); downloaded if need be.

    Args:
        repository: `org/name`.
        patterns: as `huggingface_hub.snapshot_download` takes them.
        revision: branch, tag or commit.
        more: further arguments of `snapshot_download`.

    Raises:
        InputError: there is no such repository or revision, it is gated, or the hub cannot be reached.
    """
    hub = require("huggingface_hub", "hub", purpose=f"Downloading the {kind.name} '{repository}'")
    errors = importlib.import_module("huggingface_hub.errors")
    allowed = None if patterns is None else list(patterns)
    try:
        return str(
            hub.snapshot_download(
                repository, repo_type=kind.repo_type, revision=revision, allow_patterns=allowed, **more
            )
        )
    except errors.GatedRepoError:
        what = f"this {kind.name} is gated and the token has no access to it"
        fix = f"Accept its terms at {kind.page}/{repository}, then set {kind.token}"
        raise InputError(what, where=repository, fix=fix) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"this {kind.name} has no revision '{revision}'", where=repository) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        what = f"there is no such {kind.name} on the hub, nor such a folder here"
        fix = f"Check the name; a private {kind.name} needs {kind.token}; a local folder must exist on this machine"
        raise InputError(what, where=repository, fix=fix) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        what = f"this {kind.name} is not in the cache and the hub was not reached ({error})"
        fix = f"Download it once with the network on ({kind.online}), or name a folder"
        raise InputError(what, where=repository, fix=fix) from None
    except (errors.HfHubHTTPError, OSError) as error:
        fix = "Try again: what has arrived is kept"
        raise InputError(f"the hub did not give it ({error})", where=repository, fix=fix) from error
