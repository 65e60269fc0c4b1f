"""JSON read strictly and as a stream: lines of objects, and one large object of which an array is streamed.

Both give the line that each value starts on, so that a problem can be looked up in an editor, and both hold one value
at a time, whatever the size of the file. NaN and Infinity, which Python reads and JSON does not know, are refused.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from raycurate.core import storage
from raycurate.core.storage import FileEntry
from raycurate.data.documents.reading import Lines
from raycurate.data.documents.segments import Kind, Segment, kind_of
from raycurate.data.training.training_report import Problems

LINE_LIMIT_BYTES = 256 << 20
"""A line, or an element of the streamed array, that is longer is an error: its end quote or bracket is missing."""

_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def json_lines(entry: FileEntry, problems: Problems) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each line of a JSON Lines file (.gz and .zst too); bad lines are noted."""
    compression = kind_of(entry.path)[1]
    lines = Lines(Segment(0, entry.path, 0, Kind.JSONL, compression), LINE_LIMIT_BYTES)
    number = 0
    try:
        for number, (_, data, length) in enumerate(lines, start=1):
            where = f"{entry.path}:{number}"
            content = data.removeprefix(_BOM) if number == 1 else data
            if length > len(data):
                problems.add_row("bad lines", where, f"the line is longer than {LINE_LIMIT_BYTES >> 20} MiB")
            elif content and not content.isspace():
                try:
                    value = _DECODER.decode(content.decode("utf-8"))
                except (ValueError, RecursionError) as error:
                    text = content.decode("utf-8", "replace")
                    problems.add_row("bad lines", where, f"it is not JSON: {_said(error)}", row=text)
                    continue
                yield number, value
    except (OSError, pa.ArrowException) as error:
        problems.add("unreadable files", f"{entry.path}:{number + 1}", f"it cannot be read from here on ({error})")


def json_elements(entry: FileEntry, problems: Problems) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of each element of a file that holds one JSON array; where it is none is noted."""
    try:
        for member in JsonArrayReader(entry.path):
            yield member.line, member.value
    except JsonStreamError as error:
        problems.add("bad JSON", f"{entry.path}:{error.line}", str(error))
    except (OSError, pa.ArrowException) as error:
        problems.add("unreadable files", entry.path, f"it cannot be read ({error})")


def holds_array(path: str) -> bool:
    """Whether the first thing in a file is the start of a JSON array."""
    found, inner = storage.filesystem(path)
    with found.open_input_stream(inner, compression=None) as stream:
        return bool(stream.read(_CHUNK_BYTES).removeprefix(_BOM).lstrip()[:1] == b"[")


class Member(NamedTuple):
    """A member of the top-level object, or (element >= 0) one element of its streamed array."""

    name: str
    element: int
    line: int
    value: Any


class JsonStreamError(ValueError):
    """The text is not JSON; `line` is where the value that cannot be read starts."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class JsonObjectReader:
    """The members of one large JSON object, the array `streamed` element by element.

    Raises (while iterating):
        JsonStreamError: at the first thing that is not JSON.
        OSError, pa.ArrowException: the file cannot be read.
    """

    def __init__(self, path: str, streamed: str) -> None:
        self._path, self._streamed = path, streamed
        self._text, self._at, self._line = "", 0, 1
        self._ended = False
        self.names: list[str] = []
        """The names of the members so far."""

    def __iter__(self) -> Iterator[Member]:
        found, inner = storage.filesystem(self._path)
        with found.open_input_stream(inner, compression=None) as stream:
            self._stream = stream
            self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
            yield from self._whole()
            if self._peek():
                self._fail("there is more after its end")

    def _whole(self) -> Iterator[Member]:
        self._expect("{", "the file must hold one JSON object")
        if self._peek() != "}":
            yield from self._members()
        self._expect("}", "a comma or the end of the object is missing")

    def _members(self) -> Iterator[Member]:
        while True:
            name_line = self._line
            name = self._value()
            if not isinstance(name, str):
                raise JsonStreamError("the name of a member must be a string", name_line)
            self._expect(":", "a colon is missing")
            self.names.append(name)
            if name == self._streamed and self._peek() == "[":
                yield from self._elements(name)
            else:
                self._peek()
                line = self._line
                yield Member(name, -1, line, self._value())
            if self._peek() != ",":
                return
            self._skip()

    def _elements(self, name: str) -> Iterator[Member]:
        self._skip()
        index = 0
        if self._peek() != "]":
            while True:
                self._peek()
                line = self._line
                yield Member(name, index, line, self._value())
                index += 1
                if self._peek() != ",":
                    break
                self._skip()
        self._expect("]", "a comma or the end of the array is missing")

    def _value(self) -> Any:
        """The value that starts here; more is read until it is whole."""
        self._peek()
        wanted = _CHUNK_BYTES
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # Whether a value is wrong or only not whole yet is known once more has been read.
                if self._ended or len(self._text) - self._at > LINE_LIMIT_BYTES:
                    self._fail_at(error)
            else:
                if self._ended or not self._may_go_on(end):
                    self._line += self._text.count("\n", self._at, end)
                    self._at = end
                    return value
            self._more(wanted)
            wanted *= 2

    def _may_go_on(self, end: int) -> bool:
        """Whether what ends at `end` may be the start of a number of which more is to come: 1, 1e or 1e+ of 1e+5."""
        rest = self._text[end : end + 3]
        return not rest or (len(rest) < 3 and rest[0] in ".eE")

    def _more(self, characters: int) -> None:
        self._text = self._text[self._at :]
        self._at = 0
        try:
            data = self._stream.read(characters)
            self._ended = not data
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            self._fail(f"it is not UTF-8 ({error.reason})")

    def _peek(self) -> str:
        """The next character that is no space, not taken; "" at the end."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in _SPACE:
                    return character
                self._line += character == "\n"
                self._at += 1
            if self._ended:
                return ""
            self._more(_CHUNK_BYTES)

    def _skip(self) -> None:
        self._at += 1

    def _expect(self, character: str, otherwise: str) -> None:
        if self._peek() != character:
            self._fail(otherwise)
        self._skip()

    def _fail_at(self, error: Exception) -> None:
        if isinstance(error, json.JSONDecodeError):
            raise JsonStreamError(error.msg, self._line + self._text.count("\n", self._at, error.pos)) from None
        raise JsonStreamError(str(error), self._line) from None

    def _fail(self, message: str) -> None:
        raise JsonStreamError(message, self._line)


class JsonArrayReader(JsonObjectReader):
    """The elements of one large JSON array, each a Member; raises as the reader of an object."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "")

    def _whole(self) -> Iterator[Member]:
        if self._peek() != "[":
            self._fail("the file must hold one JSON array")
        yield from self._elements("")


def _said(error: Exception) -> str:
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
