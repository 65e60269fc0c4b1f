"""HTML and reStructuredText reduced to text by the libraries that know them (extra `html`).

Both give (text, title). What a page shows is kept in reading order with a line for each block; scripts,
styles and navigation are not text. Nothing is fetched and nothing is included from other files.
"""

from __future__ import annotations

import re

from raycurate.core.errors import require

_NOT_TEXT = ("script", "style", "template", "noscript", "nav", "head", "svg")
_BLOCKS = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
]
_BLOCKS += [
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "ol",
    "p",
    "pre",
]
_BLOCKS += ["section", "summary", "table", "tr", "ul"]


class MarkupError(Exception):
    """A document that its library cannot parse."""


def html_document(text: str) -> tuple[str, str | None]:
    """The visible text of an HTML page, and its title if it has one.

    Raises:
        MissingDependencyError: beautifulsoup4 is not installed.
        MarkupError: the page cannot be parsed.
    """
    bs4 = require("bs4", "html", purpose="Reading .html files")
    try:
        page = bs4.BeautifulSoup(text, "html.parser")
        title = page.title.get_text(" ", strip=True) if page.title else ""
        for tag in page(_NOT_TEXT):
            tag.decompose()
        for tag in page.find_all("br"):
            tag.replace_with("\n")
        for tag in page.find_all(["td", "th"]):
            tag.insert_after("\t")
        for tag in page.find_all(_BLOCKS):
            tag.insert_before("\n")
            tag.insert_after("\n")
        return _tidy(page.get_text()), title or None
    except Exception as error:  # a parser's own errors are of many kinds; each means the same for one document
        raise MarkupError(f"HTML: {error}") from error


def rst_document(text: str) -> tuple[str, str | None]:
    """The text of a reStructuredText document, markup resolved, and its title if it has one.

    Directives and roles that only Sphinx knows keep their source text.

    Raises:
        MissingDependencyError: docutils is not installed.
        MarkupError: the document cannot be parsed.
    """
    core = require("docutils.core", "html", purpose="Reading .rst files")
    nodes = require("docutils.nodes", "html", purpose="Reading .rst files")
    settings = {
        "report_level": 5,
        "halt_level": 5,
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "_disable_config": True,
        "doctitle_xform": True,
    }
    try:
        tree = core.publish_doctree(text, settings_overrides=settings)
        for node in list(tree.findall(nodes.comment)):
            node.parent.remove(node)
        for message in list(tree.findall(nodes.system_message)):
            message.parent.replace(message, [n for n in message.children if isinstance(n, nodes.literal_block)])
        return _tidy(tree.astext()), tree.get("title") or None
    except Exception as error:  # as above
        raise MarkupError(f"reStructuredText: {error}") from error


def _tidy(text: str) -> str:
    """No trailing blanks, no more than one empty line in a row."""
    lines = "\n".join(line.rstrip() for line in text.replace("\xa0", " ").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()
