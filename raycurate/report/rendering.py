"""Sections and the page, from the Jinja2 templates in `templates/`.

A section computes values; the template of its key says how they look. Whatever comes from documents, questions or
names is a plain `str`, which the templates escape, so that a document may hold `<script>` and is shown as it is.
Only the charts and what a template has made are `Markup`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raycurate.report import text
from raycurate.retrieval.results import usual_name

_FILTERS = (
    text.counted,
    text.cut,
    text.duration,
    text.named,
    text.number,
    text.percent,
    text.plain,
    text.score,
    text.signed,
    usual_name,
)


@dataclass(frozen=True)
class Section:
    """A part of the page. `key`: its anchor; `html`: the whole of it, with its heading."""

    key: str
    title: str
    html: Markup


def make_section(key: str, title: str, **values: Any) -> Section:
    """The section whose template is `templates/KEY.html`; it has to be given every value that the template names."""
    return Section(key, title, render(f"{key}.html", key=key, title=title, **values))


def render(template: str, **values: Any) -> Markup:
    """A template filled in, without the characters that HTML may not hold."""
    return Markup(text.printable(environment().get_template(template).render(values)))


@cache
def environment() -> Environment:
    """The templates, with the filters that write numbers and quoted texts."""
    made = Environment(
        loader=PackageLoader("raycurate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {function.__name__: function for function in _FILTERS}
    made.globals |= {"words": words, "numbers": numbers}
    return made


def words(*heads: str) -> list[tuple[str, bool]]:
    """Columns of a table that hold words, set to the left: (head, whether it holds numbers)."""
    return [(head, False) for head in heads]


def numbers(*heads: str) -> list[tuple[str, bool]]:
    """Columns of a table that hold numbers, set to the right."""
    return [(head, True) for head in heads]
