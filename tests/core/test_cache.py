"""Where the cache lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycurate.core.cache import cache_folder
from raycurate.core.errors import ConfigError


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYCURATE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "raycurate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == cache_folder(shared=True) == tmp_path / "xdg" / "raycurate"
    monkeypatch.setenv("RAYCURATE_CACHE", "~/env")
    assert cache_folder() == cache_folder(shared=True) == tmp_path / "home" / "env"
    assert cache_folder(str(tmp_path / "given")) == tmp_path / "given"
    assert cache_folder(str(tmp_path / "given"), shared=True) == tmp_path / "given" / "raycurate"


@pytest.mark.skipif(os.path.expanduser("~nobody-of-this-name") != "~nobody-of-this-name", reason="there is such a user")
def test_a_home_that_nobody_knows_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"~nobody-of-this-name/x: there is no home folder .*Set RAYCURATE_CACHE"):
        cache_folder("~nobody-of-this-name/x")
