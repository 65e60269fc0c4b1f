"""Files called .json, of which only the content says what they are.

Three forms are common: JSON Lines, one array of objects, and objects one after the other (a single one most of all),
indented as people do. The first is read line by line like any .jsonl; the others here, one value in memory at a time.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

SNIFFED_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_SPACE = " \t\r\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one that says a key twice means two things, and nobody knows which."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' stands twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


class JsonValue(NamedTuple):
    """A value, the byte it starts at, and its beginning as it is written."""

    offset: int
    value: Any
    text: str


class JsonValuesError(Exception):
    """Text that is no JSON, from byte `offset` on; nothing behind it can be told apart."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def holds_lines(start: bytes) -> bool:
    """Whether a file that starts so is JSON Lines: its first line is a value, or its second starts one."""
    lines = [line.strip() for line in start.split(b"\n")]
    first, *others = [line for line in lines if line] or [b""]
    if first.startswith(b"["):
        return False
    try:
        json.loads(first)
        return True
    except (ValueError, RecursionError):
        return not first.startswith(b"{") or bool(others and others[0].startswith(b"{"))


def json_values(stream: BinaryIO, limit: int) -> Iterator[JsonValue]:
    """The members of the array that a stream holds, or its values one after the other.

    Raises:
        JsonValuesError: no JSON, or a value longer than `limit` bytes.
    """
    text = _Text(stream, limit)
    if text.peek() == "[":
        text.skip()
        if text.peek() == "]":
            text.skip()
        else:
            yield text.value()
            while text.peek() == ",":
                text.skip()
                yield text.value()
            if text.peek() != "]":
                text.fail("',' or ']' is missing")
            text.skip()
        if text.peek():
            text.fail("there is more behind the array")
        return
    while text.peek():
        yield text.value()


class _Text:
    """A stream as text, read as far as the value that is asked for needs."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False
        self._offset = 0  # of `_at`, in bytes

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            start = self._at
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            self._offset += self._at - start
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more(_CHUNK_BYTES)

    def skip(self) -> None:
        self._at += 1
        self._offset += 1

    def value(self) -> JsonValue:
        if not self.peek():
            self.fail("a value is missing")
        wanted = _CHUNK_BYTES
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else it may be the start of a longer number
                    break
            except json.JSONDecodeError as error:
                if self._ended:
                    self.fail(f"{error.msg} {error.pos - self._at} characters on")
            except (ValueError, RecursionError) as error:
                self.fail(str(error))
            if len(self._text) - self._at > self._limit:
                self.fail(f"a value of more than {self._limit:,} characters")
            self._more(wanted)
            wanted *= 2
        found = JsonValue(self._offset, value, self._text[self._at : min(end, self._at + 1000)])
        self._offset += len(self._text[self._at : end].encode("utf-8", "surrogatepass"))
        self._at = end
        return found

    def _more(self, size: int) -> None:
        data = self._stream.read(size)
        self._ended = not data
        try:
            decoded = self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            self.fail(f"it is not UTF-8 ({error.reason})")
        self._text, self._at = self._text[self._at :] + decoded, 0

    def fail(self, message: str) -> Any:
        raise JsonValuesError(message, self._offset)
