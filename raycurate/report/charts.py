"""The kinds of chart of the report. Each takes data and words, and returns a chart for a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raycurate.report.svg import HEIGHT, SERIES, Chart, Ink, drawing, inline
from raycurate.report.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 26  # pixels of a horizontal bar with its label
_LONGEST_LABEL = 22
_STEPS = 400  # of a chart of sorted values


@dataclass(frozen=True)
class Words:
    """What a chart is called and says. `name`: unique on the page; `says`: its caption and text alternative."""

    name: str
    title: str
    says: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Mark:
    """A vertical (or, in `lines`, horizontal) line at a value that matters, with its name."""

    at: float
    name: str


def histogram(
    words: Words, numbers: np.ndarray, *, log: bool = False, marks: Sequence[Mark] = (), bins: int = 32
) -> Chart:
    """How many values lie where. `log`: bins of equal ratio, for lengths; the values are then at least 1."""
    with drawing() as (figure, axes):
        low, high = float(np.min(numbers)), float(np.max(numbers))
        if log:
            edges = np.geomspace(max(1.0, low), max(high, low * 1.01, 2.0), bins + 1)
            axes.set_xscale("log")
            _plain_log_ticks(axes)
        else:
            edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        counts, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), edges)
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.94, align="edge", color=Ink.FIRST, linewidth=0)
        axes.set_ylim(0, max(1, counts.max()) * (1.18 if marks else 1.05))
        for mark in marks:
            _vertical(axes, mark)
        _finish(axes, words)
        return _chart(figure, words)


def _vertical(axes: Axes, mark: Mark) -> None:
    low, high = axes.get_xlim()
    scale = axes.transScale
    place = scale.transform([(mark.at, 1)])[0][0] - scale.transform([(low, 1)])[0][0]
    whole = scale.transform([(high, 1)])[0][0] - scale.transform([(low, 1)])[0][0]
    right = place > whole / 2
    axes.axvline(mark.at, color=Ink.SECOND, linewidth=1.6, linestyle=(0, (4, 2)))
    axes.annotate(
        mark.name,
        (mark.at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if right else 4, -2),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=Ink.SECOND,
    )


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """100, 1.2k, 3M, 7.5e-5: a number that fits beside a tick."""
    text = f"{value:.3g}"
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            text = f"{value / unit:.3g}{name}"
            break
    if 0 < abs(value) < 0.001:
        digits, _, power = f"{value:.2e}".partition("e")
        text = f"{float(digits):g}e{int(power)}"
    return text.replace("-", "\u2212")


def columns(words: Words, labels: Sequence[str], heights: Sequence[float], *, marked: int | None = None) -> Chart:
    """A column for each label; the marked one in another colour, with a pattern."""
    with drawing() as (figure, axes):
        bars = axes.bar(range(len(labels)), heights, 0.72, color=Ink.FIRST, linewidth=0)
        if marked is not None:
            bars[marked].set(facecolor=str(Ink.SECOND))
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylim(0, max([*heights, 1e-9]) * 1.08)
        _finish(axes, words)
        return _chart(figure, words)


def sizes(words: Words, numbers: np.ndarray) -> Chart:
    """Values from the largest to the smallest, as an area: the shape shows how uneven they are."""
    with drawing() as (figure, axes):
        ordered = np.sort(numbers)[::-1]
        axes.stairs(*_stairs(ordered), fill=True, color=Ink.FIRST, linewidth=0)
        axes.axhline(float(np.median(ordered)), color=Ink.SECOND, linewidth=1.6, linestyle=(0, (4, 2)))
        axes.annotate(
            f"median {np.median(ordered):,.0f}",
            (1, float(np.median(ordered))),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=Ink.SECOND,
        )
        axes.set_ylim(0)
        axes.set_xlim(0.5, len(ordered) + 0.5)
        _finish(axes, words)
        return _chart(figure, words)


def _stairs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights and edges of steps, a step a value from 1 on; of very many values evenly chosen ones."""
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), _STEPS)).round().astype(int)
    return ordered[places], np.linspace(0.5, len(ordered) + 0.5, len(places) + 1)


def bars(words: Words, labels: Sequence[str], lengths: Sequence[float], texts: Sequence[str]) -> Chart:
    """A horizontal bar for each label, the value written behind it."""
    with drawing(_height(len(labels))) as (figure, axes):
        places = range(len(labels))
        axes.barh(places, lengths, 0.66, color=Ink.FIRST, linewidth=0)
        for place, length, text in zip(places, lengths, texts, strict=True):
            axes.annotate(text, (length, place), xytext=(4, 0), textcoords="offset points", va="center", color=Ink.INK)
        axes.set_yticks(places, [_label(name) for name in labels])
        axes.set_xlim(0, max([*lengths, 1e-9]) * 1.32)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        _finish(axes, words, grid=False)
        return _chart(figure, words)


def intervals(
    words: Words, rows: Sequence[tuple[str, float, float | None, float | None]], *, zero: bool = False
) -> Chart:
    """A dot for each (label, value, low, high), with a whisker from low to high where they are known.

    `zero`: the rows are differences: a line at 0 is what they are to be compared with.
    """
    with drawing(_height(len(rows)) + 24) as (figure, axes):
        for place, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=Ink.FIRST, linewidth=3, alpha=0.6, solid_capstyle="round")
            axes.plot([value], [place], "o", color=Ink.FIRST, markersize=7, markeredgewidth=0)
            axes.annotate(
                f"{value:+.3f}".replace("-", "\u2212") if zero else f"{value:.3f}",
                (value, place),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                color=Ink.INK,
            )
        if zero:
            axes.axvline(0, color=Ink.INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [_label(row[0]) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.margins(x=0.14)
        _few_ticks(axes)
        _finish(axes, words, vertical=True)
        return _chart(figure, words)


@dataclass(frozen=True)
class Line:
    """A series of `lines`. `faint`: as a background of another; `dots`: its points are measurements, few enough."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    faint: bool = False
    dots: bool = False


def lines(
    words: Words, series: Sequence[Line], *, levels: Sequence[Mark] = (), star: tuple[float, float] | None = None
) -> Chart:
    """Curves over a common axis; `levels`: horizontal lines, such as the value before training; `star`: the best."""
    with drawing() as (figure, axes):
        strong = [line for line in series if not line.faint]
        dashes = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)))
        for line in series:
            if line.faint:
                axes.plot(line.x, line.y, color=Ink.SOFT, linewidth=1)
        for place, line in enumerate(strong):
            axes.plot(
                line.x,
                line.y,
                color=SERIES[place % 4],
                linewidth=2,
                linestyle=dashes[place % 4],
                marker="o" if line.dots else None,
                markersize=5,
                label=line.name,
            )
        for mark in levels:
            axes.axhline(mark.at, color=Ink.MUTED, linewidth=1.4, linestyle=(0, (4, 2)), label=mark.name)
        if star is not None:
            axes.plot([star[0]], [star[1]], "*", color=Ink.SECOND, markersize=14, markeredgewidth=0, label="best")
        axes.margins(y=0.12)
        if len(strong) + len(levels) + (star is not None) > 1:
            axes.legend(loc="best", handlelength=2.2, labelcolor=str(Ink.INK), borderpad=0.2, labelspacing=0.25)
        _few_ticks(axes)
        _finish(axes, words)
        return _chart(figure, words)


def differences(words: Words, numbers: np.ndarray) -> Chart:
    """Differences from the largest gain to the largest loss, gains and losses apart in colour and side."""
    with drawing() as (figure, axes):
        ordered = np.sort(numbers)[::-1]
        heights, edges = _stairs(ordered)
        for part, ink in ((np.maximum(heights, 0), Ink.THIRD), (np.minimum(heights, 0), Ink.SECOND)):
            axes.stairs(part, edges, fill=True, color=ink, linewidth=0)
        axes.axhline(0, color=Ink.INK, linewidth=1)
        axes.set_ylim(-1.05, 1.05)
        axes.set_xlim(0.5, len(ordered) + 0.5)
        _few_ticks(axes)
        _finish(axes, words)
        return _chart(figure, words)


def points(
    words: Words, at_N2: np.ndarray, special_N: np.ndarray, names: tuple[str, str], *, places: Mapping[str, np.ndarray]
) -> Chart:
    """A map: a dot for each point, a cross for each special one, and names at some places.

    Args:
        at_N2: float [n, 2]. special_N: bool [n]. names: of the dots and of the crosses, for the legend.
        places: name -> float [2].
    """
    with drawing(320) as (figure, axes):
        from matplotlib.lines import Line2D

        plain_N2, crosses_N2 = at_N2[~special_N], at_N2[special_N]
        # One path with strokes of no length, which round ends turn into dots: a tenth of the size of so many markers.
        twice = np.repeat(plain_N2, 3, axis=0)
        twice[2::3] = np.nan
        axes.plot(*twice.T, color=Ink.FIRST, alpha=0.7, linewidth=2.6, solid_capstyle="round")
        if len(crosses_N2):
            axes.plot(*crosses_N2.T, "x", color=Ink.SECOND, markersize=4, markeredgewidth=1.3)
        for name, place in places.items():
            axes.annotate(
                name,
                (float(place[0]), float(place[1])),
                ha="center",
                va="center",
                fontweight="bold",
                color=Ink.INK,
                bbox={"boxstyle": "circle,pad=0.25", "facecolor": str(Ink.SURFACE), "edgecolor": str(Ink.INK), "lw": 1},
            )
        handles = [
            Line2D([], [], color=Ink.FIRST, marker="o", markersize=4, linestyle="", markeredgewidth=0, label=names[0]),
            Line2D([], [], color=Ink.SECOND, marker="x", markersize=5, linestyle="", label=names[1]),
        ]
        figure.legend(
            handles=handles if len(crosses_N2) else handles[:1],
            loc="outside lower center",
            ncols=2,
            labelcolor=str(Ink.INK),
            handletextpad=0.2,
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)
        axes.set_aspect("equal", adjustable="datalim")
        return _chart(figure, words)


def _chart(figure: Figure, words: Words) -> Chart:
    return Chart(inline(figure, words.name, words.title, words.says), words.says)


def _height(rows: int) -> int:
    return max(110, 40 + _ROW * rows) if rows < 40 else HEIGHT * 4


def _label(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def _few_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _finish(axes: Axes, words: Words, *, grid: bool = True, vertical: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(words.x)
    if not vertical and grid:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_title(words.y, loc="left", fontsize=12, color=str(Ink.MUTED), pad=6)
    if grid:
        axes.grid(True, axis="x" if vertical else "y")
    axes.tick_params(length=0 if grid else 3)
