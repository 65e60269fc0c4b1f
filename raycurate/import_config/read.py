"""Files of other tools -> plain mappings: YAML, JSON, or the keyword arguments of a call in a Python file.

Nothing of a file is run. OmegaConf's references are turned into a recipe's: `${oc.env:NAME,default}` into
`${env:NAME,default}`, `${artifact_root}` into `${workdir}`, and the value itself for any other key of the file.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from raycurate.core.errors import ConfigError, InputError
from raycurate.import_config.curator import CALLS

_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
_SHARED = {"artifact_root": "workdir", "base_model": "model"}


def read_file(path: str) -> dict[str, Any]:
    """The mapping a file holds, references turned.

    Raises:
        InputError: it is not there, or cannot be read.
        ConfigError: it holds no mapping, or a Python file no call of Curator's.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"it cannot be read ({error})", where=path) from None
    values = _call_arguments(text, path) if path.endswith(".py") else _mapping(text, path)
    return _turned(values, values, ())


def _mapping(text: str, path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"it is neither YAML nor JSON ({str(error).splitlines()[0]})", where=path) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"a mapping of options is expected, this is a {type(values).__name__}", where=path)
    return values


def _call_arguments(text: str, path: str) -> dict[str, Any]:
    """The keyword arguments of Curator's calls in a program, those that are literals; of others their text."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"it is not Python ({error})", where=path) from None
    values: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in CALLS:
            values |= {word.arg: _literal(word.value) for word in node.keywords if word.arg is not None}
    if not values:
        raise ConfigError("it calls none of " + ", ".join(CALLS), where=path)
    return values


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)  # a name or an expression: shown as it stands, for the reader to replace


def _turned(value: Any, root: dict[str, Any], opened: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _turned(one, root, opened) for key, one in value.items()}
    if isinstance(value, list):
        return [_turned(one, root, opened) for one in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return _named(whole.group(1), root, opened)
    return _REFERENCE.sub(lambda match: str(_named(match.group(1), root, opened)), value)


def _named(name: str, root: dict[str, Any], opened: tuple[str, ...]) -> Any:
    if name.startswith("oc.env:"):
        return "${env:" + name.removeprefix("oc.env:") + "}"
    if name in _SHARED:
        return "${" + _SHARED[name] + "}"
    if name in opened or isinstance(root.get(name, {}), dict):
        return "${" + name + "}"  # a circle, or a place within: for the reader to see
    return _turned(root[name], root, (*opened, name))
