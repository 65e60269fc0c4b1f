"""Pieces of a page. Text becomes HTML in one place, `escape`; what is HTML already has the type `Html`.

Whatever comes from documents, questions or names is a plain `str` and is escaped by the piece that takes it, so
that a document may hold `<script>` and is shown as it is.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from typing import Self

SHOWN_CHARS = 300
"""Of a text that is quoted."""

_MINUS = "\u2212"
# Control characters have no place in HTML, and those that turn the writing direction would garble what follows.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()

    @classmethod
    def join_all(cls, parts: Iterable[str]) -> Self:
        """The parts one after another, plain ones escaped."""
        return cls("".join(escape(part) for part in parts))


def escape(text: object) -> Html:
    """Text as HTML that shows it; `Html` stays as it is."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(printable(str(text)), quote=True))


def printable(text: str) -> str:
    """Text without the characters that neither HTML nor XML may hold."""
    return _UNPRINTABLE.sub("\ufffd", text)


def cut(text: str, chars: int = SHOWN_CHARS) -> str:
    """The beginning of a text on one line, with an ellipsis where something is left out."""
    line = " ".join(text[: 4 * chars].split())
    return line if len(line) <= chars and len(text) <= 4 * chars else line[:chars].rstrip() + " …"


def element(name: str, *parts: str, **attributes: str) -> Html:
    """<name attributes>parts</name>; `class_` is written class, and `_` in a name as `-`."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{Html.join_all(parts)}</{name}>")


def paragraph(*parts: str) -> Html:
    return element("p", *parts)


def number(value: float, digits: int = 0) -> str:
    """A number with thousands separated and a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", _MINUS)


def percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def counted(count: int, noun: str) -> str:
    """A number of things: "1 step", "96 steps", "3 queries"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun.removesuffix('y')}ies" if noun.endswith("ry") else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def file_size(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text_columns: Sequence[int] = (0,),
    stacked: bool = False,
) -> Html:
    """A table that scrolls sideways by itself where it is wider than the screen.

    Args:
        caption: what it shows; read out, and shown above it.
        text_columns: columns that are set to the left; the others are numbers, to the right.
        stacked: on a phone each row becomes a block of lines instead, "head: value": for tables with words in them.
    """

    def cell(name: str, text: str, column: int, role: str, **more: str) -> Html:
        kind = {} if column in text_columns else {"class_": "number"}
        label = {"data_label": str(head[column])} if stacked and name == "td" else {}
        return element(name, text, role=role, **kind, **label, **more)

    top = [cell("th", name, i, "columnheader", scope="col") for i, name in enumerate(head)]
    body = [
        element(
            "tr",
            cell("th", row[0], 0, "rowheader", scope="row"),
            *(cell("td", text, i, "cell") for i, text in enumerate(row[1:], 1)),
            role="row",
        )
        for row in rows
    ]
    # The roles are those that the elements have by nature; some browsers forget them where the style stacks the rows.
    parts = [
        element("thead", element("tr", *top, role="row"), role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
    ]
    whole = element("table", *parts, role="table", aria_label=caption, class_="stacked" if stacked else "plain")
    scroll = element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)
    return Html.join_all([element("p", caption, class_="caption"), scroll])


def details(summary: str, *parts: str) -> Html:
    """What is shown on request."""
    return element("details", element("summary", summary), *parts)


@dataclass(frozen=True)
class Card:
    """A box of the grid; a wide one takes a whole row."""

    html: Html
    wide: bool = False


def card(title: str, *parts: str, wide: bool = False) -> Card:
    """A box with a heading."""
    return Card(element("article", element("h3", title), *parts, class_="card"), wide)


def tile(value: str, label: str, note: str = "") -> Html:
    """A number that is meant to be seen first."""
    shown = [element("span", value, class_="value"), element("span", label, class_="label")]
    return element("li", *shown, *([element("span", note, class_="note")] if note else []), class_="tile")


def badge(text: str, kind: str) -> Html:
    """A word that stands out; `kind` is good, bad or neutral, and is shown by a sign too, not by colour alone."""
    sign = {"good": "✓", "bad": "✗", "neutral": "•"}[kind]
    return element("span", element("span", sign, aria_hidden="true"), " ", text, class_=f"badge {kind}")


def quote(head: str, text: str) -> Html:
    """A document: its name and the beginning of its text."""
    return element("div", element("p", head, class_="name"), element("p", text, class_="text"), class_="quote")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: its anchor.
        lead: what it shows and how to read it, a sentence or two.
        body: cards and tables.
    """

    key: str
    title: str
    lead: Html
    body: Html


def grid(*cards: Card) -> Html:
    """Cards side by side as far as the screen allows; wide ones between them take a row each."""
    rows = groupby(cards, key=lambda one: one.wide)
    grids = [element("div", *(c.html for c in run), class_="wide" if wide else "grid") for wide, run in rows]
    return Html.join_all(grids)


# Nothing is fetched and no script runs, whatever a document may hold: the browser is told so too.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    style = resources.files("raycurate.report").joinpath("style.css").read_text(encoding="utf-8")
    links = [element("li", element("a", s.title, href=f"#{s.key}")) for s in sections]
    bodies = [
        element(
            "section",
            element("h2", s.title, id=f"{s.key}-title"),
            element("div", s.lead, class_="lead"),
            s.body,
            id=s.key,
            aria_labelledby=f"{s.key}-title",
        )
        for s in sections
    ]
    head = Html(
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style>"
    )
    top = element("header", element("h1", title), element("p", subtitle, class_="subtitle"))
    navigation = element("nav", element("ul", *links), aria_label="Sections")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{top}\n{navigation}\n<main>' + (
        "\n".join(bodies) + "</main></body></html>\n"
    )
