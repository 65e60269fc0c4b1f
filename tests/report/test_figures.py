"""Figures take their colours from the page, whose two themes are legible; numbers are said rightly, texts escaped."""

from __future__ import annotations

import re
from importlib import resources
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from raycurate.report import charts
from raycurate.report.rendering import environment, make_section, words
from raycurate.report.svg import _VARIABLES, LABEL, WIDTH, Chart
from raycurate.report.text import counted, cut, duration, file_size, number, printable, signed

STYLE = resources.files("raycurate.report").joinpath("style.css").read_text(encoding="utf-8")


def themes() -> list[dict[str, str]]:
    """The colour variables in light and in dark."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, flags=re.S)
    assert len(blocks) == 2
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def contrast(first: str, second: str) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_both_themes_are_legible(theme: dict[str, str]):
    for text in ("ink", "muted", "series-1", "series-2", "series-3", "series-4"):
        for ground in ("page", "surface"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for kind in ("good", "bad"):
        assert contrast(theme[kind], theme[f"{kind}-back"]) >= 4.5
    assert contrast(theme["ink"], theme["neutral-back"]) >= 4.5


def figures() -> dict[str, Chart]:
    random = np.random.default_rng(0)
    steps = list(range(30))
    places = random.normal(size=(50, 2))
    at = {"1": np.zeros(2)}
    say = "says"
    return {
        "histogram": charts.histogram(
            charts.Words("a", "t", say, "x", "y"), random.random(99), marks=[charts.Mark(0.5, "half")]
        ),
        "log": charts.histogram(charts.Words("b", "t", say), random.integers(1, 9999, 99), log=True),
        "one value": charts.histogram(charts.Words("c", "t", say), np.ones(3)),
        "columns": charts.columns(charts.Words("d", "t", say), ["u", "v"], [1, 2], marked=1),
        "sizes": charts.sizes(charts.Words("e", "t", say), np.arange(1, 900)),
        "bars": charts.bars(charts.Words("f", "t", say), ["$a_b$", "<c>"], [0, 2], ["0", "2"]),
        "intervals": charts.intervals(
            charts.Words("g", "t", say), [("a", 0.1, -0.1, 0.3), ("b", 0.2, None, None)], zero=True
        ),
        "lines": charts.lines(
            charts.Words("h", "t", say),
            [charts.Line("f", steps, steps, faint=True), charts.Line("g", steps, steps, dots=True)],
            levels=[charts.Mark(3, "before")],
            star=(4, 4),
        ),
        "differences": charts.differences(charts.Words("i", "t", say), random.normal(0, 0.3, 40).clip(-1, 1)),
        "points": charts.points(charts.Words("j", "t", say), places, places[:, 0] > 1, ("k", "r"), places=at),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Chart]:
    return figures()


def test_figures_have_no_colours_of_their_own(drawn: dict[str, Chart]):
    for name, chart in drawn.items():
        figure = chart.svg
        assert not re.search(r"#[0-9a-fA-F]{6}\b|rgb\(", figure), name
        assert set(re.findall(r"var\(--([\w-]+)\)", figure)) <= set(_VARIABLES.values()), name
        assert "font-family" not in figure and "<style" not in figure and "<?xml" not in figure
    assert set(_VARIABLES.values()) <= set(themes()[0]) and set(themes()[0]) == set(themes()[1])


def test_figures_are_well_formed_and_titled(drawn: dict[str, Chart]):
    for name, chart in drawn.items():
        svg = ElementTree.fromstring(chart.svg)
        assert svg.tag == "{http://www.w3.org/2000/svg}svg", name
        assert [child.tag.rpartition("}")[2] for child in svg[:2]] == ["title", "desc"]
        assert (svg[0].text, svg[1].text) == ("t", "says")
        width = float(svg.attrib["viewBox"].split()[2])
        assert width == WIDTH
        assert LABEL * 317 / WIDTH >= 11  # shown 317 pixels wide on a screen of 375


def test_names_are_drawn_as_they_are(drawn: dict[str, Chart]):
    assert ">$a_b$</text>" in drawn["bars"].svg and ">&lt;c&gt;</text>" in drawn["bars"].svg


def test_figures_are_the_same_each_time(drawn: dict[str, Chart]):
    assert figures() == drawn


def test_sorted_values_keep_their_ends_when_there_are_many():
    heights, edges = charts._stairs(np.arange(1000, 0, -1))
    assert (heights[0], heights[-1], len(heights)) == (1000, 1, 400)
    assert (edges[0], edges[-1]) == (0.5, 1000.5)
    heights, edges = charts._stairs(np.array([3.0, 1.0]))
    assert (heights.tolist(), edges.tolist()) == ([3, 1], [0.5, 1.5, 2.5])


def test_many_points_stay_small():
    random = np.random.default_rng(0)
    made = charts.points(
        charts.Words("m", "t", "s"), random.normal(size=(4000, 2)), np.zeros(4000, bool), ("k", "r"), places={}
    )
    assert len(made.svg) < 200_000


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (950, "950"), (1200, "1.2k"), (3e6, "3M"), (7.5e-5, "7.5e−5"), (1e-4, "1e−4"), (-0.25, "−0.25")],
)
def test_ticks(value: float, said: str):
    assert charts.short(value) == said


def test_numbers_in_words():
    assert (number(1234567), signed(-0.5, 2), signed(0.12345)) == ("1,234,567", "−0.50", "+0.1235")
    assert [duration(s) for s in (3.66, 59.99, 112.4, 7260)] == ["3.7 s", "60.0 s", "1 min 52 s", "2 h 1 min"]
    assert [counted(n, "query") for n in (1, 2)] == ["1 query", "2 queries"]
    assert [file_size(n) for n in (512, 1536, 90_864_216)] == ["512 B", "1.5 KB", "90.9 MB"]


def test_texts_are_cut_and_escaped():
    assert cut("a  b\n c") == "a b c"
    assert cut("x" * 400, 10) == "x" * 10 + " …"
    assert cut("word " * 100_000, 7) == "word wo …"
    assert printable("a\x01\u202e") == "a\ufffd\ufffd"
    made = make_section("not_made", '<a href="x">&\x01\u202e', error="<")
    assert "&lt;a href=&#34;x&#34;&gt;&amp;\ufffd\ufffd</h2>" in made.html and "made: &lt;</p>" in made.html
    template = """{% from "pieces.html" import row, table %}
        {% call table(caption, columns) %}{{ row(columns, cells) }}{% endcall %}"""
    values = {"caption": '"', "columns": words("<td>", "of"), "cells": ["<", Markup("<b>x</b>")]}
    html = environment().from_string(template).render(values)
    assert 'aria-label="&#34;"' in html and "&lt;td&gt;</th>" in html
    assert ">&lt;</th>" in html and "><b>x</b></td>" in html  # what is markup already stays as it is
