"""Numbers, durations and quoted texts as the page writes them: filters of its templates, and words of its charts."""

from __future__ import annotations

import re

SHOWN_CHARS = 300
"""Of a text that is quoted."""

_MINUS = "\u2212"
# Control characters have no place in HTML, and those that turn the writing direction would garble what follows.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text without the characters that neither HTML nor XML may hold."""
    return _UNPRINTABLE.sub("\ufffd", text)


def cut(text: str, chars: int = SHOWN_CHARS) -> str:
    """The beginning of a text on one line, with an ellipsis where something is left out."""
    line = " ".join(text[: 4 * chars].split())
    return line if len(line) <= chars and len(text) <= 4 * chars else line[:chars].rstrip() + " …"


def number(value: float, digits: int = 0) -> str:
    """A number with thousands separated and a true minus sign."""
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", _MINUS)


def percent(share: float, digits: int = 1) -> str:
    return f"{share:.{digits}%}"


def plain(value: float) -> str:
    """A setting, with the digits it has: 0.05, 7."""
    return f"{value:g}"


def score(value: float | None) -> str:
    """A metric between 0 and 1; nothing where it is not known."""
    return "" if value is None else f"{value:.4f}"


def named(key: str) -> str:
    """A count's or a reason's key as words: "short_passage" is "short passage"."""
    return key.replace("_", " ")


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
