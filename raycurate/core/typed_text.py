"""What was typed on the command line, read as the option's declared type says.

YAML's guesses are wrong for text: `input=2024` is a folder and no number, `prefix=query: ` no mapping, `input=notes #2`
has no comment. So the type comes first: an option of type text takes what was typed, letter by letter. Brackets and
braces make lists and mappings where the option may be one (and no file of that very name is there), their parts are
read by the parts' types. Two marks are left to text: `null` where the option may be left out, and quotes around the
whole, which are taken off, so that '"null"' is the word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr

from raycurate.core import yaml_text
from raycurate.core.yaml_text import YamlError

_TRUE, _FALSE, _NULL = ("true", "yes", "on"), ("false", "no", "off"), ("null", "~", "")
_WHOLE = re.compile(r"[+-]?[0-9][0-9_]{0,30}")
_REFERENCE = re.compile(r"\$\{[^${}]+\}")


def members(declared: Any) -> list[Any]:
    """The alternatives of a declared type, unions and Annotated taken apart: `int | None` -> [int, NoneType]."""
    origin = get_origin(declared)
    if origin is Annotated:
        return members(get_args(declared)[0])
    if origin in (Union, UnionType):
        return [one for part in get_args(declared) for one in members(part)]
    return [declared]


def models_in(declared: Any) -> list[type[BaseModel]]:
    """The models that a type allows, also as elements: `LoraOptions | None`, `list[Part]`, ..."""
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        return [declared]
    return [model for part in get_args(declared) for model in models_in(part)]


def type_at(declared: Any, parts: list[str]) -> Any:
    """The declared type of what `parts` lead to from a model, a mapping or a list; Any where nothing is declared."""
    for part in parts:
        declared = next(_inside(declared, part), Any)
    return declared


def _inside(declared: Any, part: str) -> Iterator[Any]:
    for one in members(declared):
        if isinstance(one, type) and issubclass(one, BaseModel):
            if part in one.model_fields:
                yield one.model_fields[part].annotation
        elif get_origin(one) is dict:
            yield get_args(one)[1]
        elif get_origin(one) is list and part.isdigit():
            yield get_args(one)[0]


def read_typed(text: str, declared: Any) -> Any:
    """The value of a typed text for an option of the declared type; text that fits no type is left to validation.

    Raises:
        YamlError: brackets or braces that do not close, where nothing but a list or a mapping can be meant.
    """
    allowed = members(declared)
    if Any in allowed:
        return _guessed(text)
    if _REFERENCE.fullmatch(text):
        return text  # filled in later
    is_text = str in allowed or SecretStr in allowed
    if text.lstrip()[:1] in ("[", "{") and _takes_parts(allowed) and not (is_text and os.path.lexists(text)):
        try:
            return _from_node(yaml_text.compose(text), declared)
        except YamlError:
            if not is_text:
                raise
            return text
    if NoneType in allowed and (text == "null" if is_text else text in _NULL):
        return None
    return _unquoted(text) if is_text or text in _words(allowed) else _scalar(text, allowed)


def _takes_parts(allowed: list[Any]) -> bool:
    return any(get_origin(one) in (list, dict, tuple) or models_in(one) or one in (list, dict) for one in allowed)


def _words(allowed: list[Any]) -> set[str]:
    return {word for one in allowed if get_origin(one) is Literal for word in get_args(one)}


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] not in "\"'" or text[0] != text[-1] or os.path.lexists(text):
        return text
    try:
        inner = yaml_text.load(text)
    except YamlError:
        return text
    return inner if isinstance(inner, str) else text


def _scalar(text: str, allowed: list[Any]) -> Any:
    if bool in allowed and text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if (int in allowed or float in allowed) and _WHOLE.fullmatch(text):
        return int(text)
    if float in allowed:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _guessed(text: str) -> Any:
    """By YAML's own rules, where no type is declared."""
    if not text:
        return ""
    try:
        return yaml_text.load(text)
    except YamlError:
        return text


def _from_node(node: yaml.Node | None, declared: Any) -> Any:
    if node is None:
        return None
    if isinstance(node, yaml.SequenceNode):
        inner = next((get_args(one)[0] for one in members(declared) if get_origin(one) is list), Any)
        return [_from_node(child, inner) for child in node.value]
    if isinstance(node, yaml.MappingNode):
        return {_key(k, declared): _from_node(v, type_at(declared, [str(k.value)])) for k, v in node.value}
    quoted = isinstance(node, yaml.ScalarNode) and node.style is not None
    if Any in members(declared) or (quoted and str in members(declared)):
        return yaml_text.construct(node)
    return read_typed(str(node.value), declared)


def _key(node: yaml.Node, declared: Any) -> Any:
    numbers = any(get_origin(one) is dict and get_args(one)[0] is int for one in members(declared))
    return yaml_text.construct(node) if numbers or not isinstance(node, yaml.ScalarNode) else str(node.value)


def phrase(declared: Any) -> str:
    """A declared type in words: "a whole number, auto or a list of whole numbers"."""
    said = list(dict.fromkeys(_one_phrase(one) for one in members(declared)))
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def _one_phrase(one: Any) -> str:
    plain: Mapping[Any, str] = {
        str: "text", SecretStr: "text", int: "a whole number", float: "a number", bool: "true or false",
        NoneType: "null", Any: "any value", dict: "a mapping", list: "a list",
    }  # fmt: skip
    if get_origin(one) is Literal:
        words = [str(word) for word in get_args(one)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(one) is list:
        return f"a list [{phrase(get_args(one)[0])}, ...]"
    if get_origin(one) is dict or (isinstance(one, type) and issubclass(one, BaseModel)):
        return "a mapping {key: value}"
    return plain.get(one, getattr(one, "__name__", str(one)))
