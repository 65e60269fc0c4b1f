"""HTML and reStructuredText to text."""

from __future__ import annotations

import pytest

from raycurate.data.documents.markup import html_document, rst_document
from raycurate.data.documents.reading import read_segments
from raycurate.data.documents.rows import ReadPlan
from raycurate.data.documents.segments import Kind, Segment

HTML = """<!DOCTYPE html><html><head><title>The  title</title><style>p {color: red}</style></head>
<body><nav>Home | About</nav><script>alert(1)</script>
<h1>Heading</h1><p>One <b>bold</b>ly set paragraph,<br>two lines &amp; an entity.</p><!-- a comment -->
<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table><ul><li>first<li>second</ul></body></html>"""

RST = """
===========
A *title*
===========

.. a comment

Some *emphasis*, ``code`` and a `link <https://example.org>`_.

.. note:: Take care.

.. autoclass:: Thing
   :members:

See :class:`Thing`.
"""


def test_html_is_what_the_page_shows():
    pytest.importorskip("bs4", reason="beautifulsoup4 (extra 'html') is not installed")
    text, title = html_document(HTML)
    assert title == "The  title"
    assert "One boldly set paragraph,\ntwo lines & an entity." in text
    assert [line for line in text.split("\n") if line][-4:] == ["a\tb", "c\td", "first", "second"]
    for hidden in ("alert", "color", "Home", "comment", "The  title"):
        assert hidden not in text


def test_rst_is_resolved_and_unknown_markup_keeps_its_text():
    pytest.importorskip("docutils", reason="docutils (extra 'html') is not installed")
    text, title = rst_document(RST)
    assert title == "A title"
    assert "Some emphasis, code and a link." in text
    assert "Take care." in text
    assert "autoclass:: Thing" in text
    assert ":class:`Thing`" in text
    assert "a comment" not in text
    assert "Unknown" not in text  # what the parser says is not the document's text


def test_rst_cannot_include_files(tmp_path):
    pytest.importorskip("docutils", reason="docutils (extra 'html') is not installed")
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    text, _ = rst_document(f"before\n\n.. include:: {secret}\n\n.. raw:: html\n   :file: {secret}\n\nafter")
    assert "s3cret" not in text
    assert text.startswith("before") and text.endswith("after")


def test_a_page_is_a_document_with_its_title(tmp_path):
    pytest.importorskip("bs4", reason="beautifulsoup4 (extra 'html') is not installed")
    path = tmp_path / "page.html"
    path.write_text(HTML)
    [table] = read_segments([Segment(0, str(path), path.stat().st_size, Kind.HTML)], ReadPlan())
    assert table["title"].to_pylist() == ["The  title"]
    assert table["text"][0].as_py().startswith("Heading\n")
