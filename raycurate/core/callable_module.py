"""Stage packages that are also functions: `rc.embed(ds, ...)` beside `raycurate.embed.stage`.

A stage's folder and its function have the same name. Python binds a sub-package to its parent's attribute
when it is imported, which would hide a function of that name; so the package itself is made callable.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, target: str) -> None:
    """Let `package(...)` call the function at `target` ("module:name"), which is imported when first called."""
    module_name, _, name = target.partition(":")

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module_name), name)(*args, **kwargs)

    sys.modules[package].__class__ = CallableModule
