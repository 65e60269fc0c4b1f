"""YAML as recipes and options use it: one document of plain values, nothing that surprises.

A key given twice is refused, since the first value would be lost without a word; so are a mapping that contains
itself, aliases that unfold into millions of values, and numbers that no machine word holds. Dates and times of day
(2024-01-01, 12:30) are text: no option is a date, and folders have such names.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_MOST_VALUES = 100_000  # with aliases unfolded
_DEEPEST = 40
_WIDEST_NUMBER = 2**64
_TOO_DEEP = f"it is nested more than {_DEEPEST} deep"


class YamlError(ValueError):
    """Text that is not such YAML: one sentence, with the line."""


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"it cannot be read ({error})", node.start_mark
            ) from None
        if isinstance(value, bytes | set | tuple):
            raise yaml.constructor.ConstructorError(None, None, "only plain values are read", node.start_mark)
        if isinstance(value, int) and abs(value) >= _WIDEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "this number is too large", node.start_mark)
        return value


_WHOLE = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_DECIMAL = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_FORMS = {"tag:yaml.org,2002:int": _WHOLE, "tag:yaml.org,2002:float": _DECIMAL}
_Loader.yaml_implicit_resolvers = {
    mark: [(tag, _FORMS.get(tag, form)) for tag, form in resolvers if not tag.endswith(":timestamp")]
    for mark, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def compose(text: str) -> yaml.Node | None:
    """The tree of one YAML document, checked; None for an empty one.

    Raises:
        YamlError: bad syntax, a key twice, a structure that contains itself, is too deep or too large.
    """
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise YamlError(_sentence(error)) from None
    if node is not None:
        _weigh(node, {}, set())
    return node


def construct(node: yaml.Node | None) -> Any:
    """The plain value of a tree that `compose` gave.

    Raises:
        YamlError: a scalar that is none (a number too large, an unknown tag).
    """
    if node is None:
        return None
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise YamlError(_sentence(error)) from None


def load(text: str) -> Any:
    """The plain value of a YAML text. Raises YamlError."""
    return construct(compose(text))


def _sentence(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = getattr(error, "problem", None) or getattr(error, "context", None) or getattr(error, "reason", None)
    context = getattr(error, "context", None)
    text = f"{context}, {said}" if context and said != context else str(said or error).splitlines()[0]
    return f"{text}, line {mark.line + 1}" if mark else text


def _weigh(node: yaml.Node, known: dict[int, int], opened: set[int]) -> int:
    """How many values `node` unfolds into; a node that several aliases name is looked at once."""
    if id(node) in known:
        return known[id(node)]
    line = node.start_mark.line + 1
    if id(node) in opened:
        raise YamlError(f"the anchor in line {line} names a value that contains itself")
    if len(opened) >= _DEEPEST:
        raise YamlError(f"{_TOO_DEEP}, line {line}")
    opened.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twins(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    weight = 1 + sum(_weigh(child, known, opened) for child in children)
    opened.remove(id(node))
    if weight > _MOST_VALUES:
        raise YamlError(f"it unfolds into more than {_MOST_VALUES:,} values, line {line}")
    known[id(node)] = weight
    return weight


def _refuse_twins(node: yaml.MappingNode) -> None:
    seen: dict[Hashable, int] = {}
    for key, _ in node.value:
        name, line = (key.tag, str(key.value)), key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and name in seen:
            raise YamlError(f"the key '{key.value}' stands twice, in lines {seen[name]} and {line}")
        seen[name] = line
