"""matplotlib figures as SVG that belongs to the page: its colours, its font, its ids.

A figure is drawn with sentinel colours, one for each role (`Ink`), which are then replaced by the page's CSS variables:
so the same drawing is right in light and in dark, and no colour is chosen here. Text stays text. Nothing depends on the
time or on chance, so the same data give the same bytes.

Figures are `WIDTH` pixels wide in their own coordinates and are shown at about that size: on a phone as one column
at nearly 1:1, so a label of 12 keeps more than 11 pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from raycurate.core.errors import require
from raycurate.report.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 340  # pixels, of which matplotlib thinks as points
HEIGHT = 230
LABEL = 12  # font size

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"


class Ink(StrEnum):
    """Sentinel colours by role; `_VARIABLES` names what each becomes."""

    INK = "#a10001"
    MUTED = "#a10002"
    LINE = "#a10003"
    SURFACE = "#a10004"
    SOFT = "#a10005"
    FIRST = "#a10006"
    SECOND = "#a10007"
    THIRD = "#a10008"
    FOURTH = "#a10009"


_VARIABLES = {
    Ink.INK: "ink",
    Ink.MUTED: "muted",
    Ink.LINE: "line",
    Ink.SURFACE: "surface",
    Ink.SOFT: "soft",
    Ink.FIRST: "series-1",
    Ink.SECOND: "series-2",
    Ink.THIRD: "series-3",
    Ink.FOURTH: "series-4",
}
SERIES = (Ink.FIRST, Ink.SECOND, Ink.THIRD, Ink.FOURTH)

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raycurate",
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": LABEL,
    "figure.facecolor": "none",
    "figure.dpi": 72,
    "axes.facecolor": "none",
    "axes.edgecolor": str(Ink.LINE),
    "axes.labelcolor": str(Ink.MUTED),
    "axes.labelsize": LABEL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": str(Ink.INK),
    "xtick.color": str(Ink.LINE),
    "ytick.color": str(Ink.LINE),
    "xtick.labelcolor": str(Ink.MUTED),
    "ytick.labelcolor": str(Ink.MUTED),
    "xtick.labelsize": LABEL,
    "ytick.labelsize": LABEL,
    "grid.color": str(Ink.LINE),
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": LABEL,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Chart:
    """A figure of the page. `says`: what it shows, in words and numbers: its caption."""

    svg: Markup
    says: str


@contextmanager
def drawing(height: int = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, in the page's style, to draw into within the block.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "report", purpose="drawing the report's figures")
    figures = require("matplotlib.figure", "report", purpose="drawing the report's figures")
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = figures.Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        figure.get_layout_engine().set(w_pad=4 / 72, h_pad=4 / 72)
        yield figure, figure.add_subplot()


def inline(figure: Figure, name: str, title: str, says: str) -> Markup:
    """The figure as an <svg> element of an HTML page; call it within `drawing`.

    Args:
        name: unique on the page; the beginning of every id.
        title, says: the text alternative, for those who do not see it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(stream.getvalue())
    _drop_metadata(root)
    for node in root.iter():
        _own_ids(node, name)
        if "style" in node.attrib:
            node.set("style", _page_style(node.get("style", "")))
        for attribute in ("d", "transform", "x", "y"):
            if attribute in node.attrib:
                node.set(attribute, _short_numbers(node.get(attribute, "")))
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    described = [ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"}) for tag in ("title", "desc")]
    described[0].text, described[1].text = printable(title), printable(says)
    root[:0] = described
    ElementTree.register_namespace("", _SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _drop_metadata(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            style = child.tag == f"{{{_SVG}}}defs" and child.find(f"{{{_SVG}}}style") is not None
            if child.tag == f"{{{_SVG}}}metadata" or style:
                parent.remove(child)


def _own_ids(node: ElementTree.Element, name: str) -> None:
    """Ids that are referred to get the figure's name in front, the others go: several figures share a page."""
    if "id" in node.attrib:
        if node.tag == f"{{{_SVG}}}g":
            del node.attrib["id"]
        else:
            node.set("id", f"{name}-{node.attrib['id']}")
    target = node.attrib.pop(_XLINK, None)
    if target is not None:
        node.set("href", f"#{name}-{target.removeprefix('#')}")
    clip = node.attrib.get("clip-path")
    if clip:
        node.set("clip-path", clip.replace("url(#", f"url(#{name}-"))


def _page_style(style: str) -> str:
    for ink, variable in _VARIABLES.items():
        style = style.replace(str(ink), f"var(--{variable})")
    # The font is the page's; matplotlib's list of families would win over it.
    style = re.sub(r"font: (\d[\d.]*)px [^;]*", r"font-size: \1px", style)
    style = re.sub(r"font: (\w+) (\d[\d.]*)px [^;]*", r"font-weight: \1; font-size: \2px", style)
    return re.sub(r"font-family: [^;]*;\s*", "", style)


def _short_numbers(text: str) -> str:
    """Coordinates with two decimals: a hundredth of a pixel."""
    return re.sub(r"-?\d+\.\d{3,}(?:e-?\d+)?", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), text)
