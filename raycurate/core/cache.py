"""Where this project keeps what it can make again: copies of corpora and models, tokens, test sets, logs."""

from __future__ import annotations

import os
from pathlib import Path

from raycurate.core.errors import ConfigError

CACHE = "RAYCURATE_CACHE"
"""Environment variable: the cache folder."""


def cache_folder(cache_dir: str | None = None, *, shared: bool = False) -> Path:
    """The cache: `cache_dir`, else $RAYCURATE_CACHE, else `raycurate` in $XDG_CACHE_HOME or ~/.cache.

    Args:
        shared: `cache_dir` holds the caches of other programs too, so this project's is `raycurate` in it.

    Raises:
        ConfigError: it lies in a home folder and nobody's home is known.
    """
    chosen = Path(cache_dir, "raycurate") if cache_dir and shared else cache_dir or os.environ.get(CACHE)
    try:
        base = chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "raycurate")
        return Path(base).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(
            f"there is no home folder for the cache ({error})", where=str(chosen or "~/.cache"), fix=f"Set {CACHE}"
        ) from None
