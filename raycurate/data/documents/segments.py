"""How a listing of files is cut into pieces that can be read by themselves, and how rows are numbered.

A *segment* is a byte range of one file. Every row belongs to exactly one segment, by where it starts, so
segments can be read in any order, anywhere, and together give each row once. What a row is called
(`_row_key`, and the id made from its position) depends on the file and the row's position in it, never on
how the file was cut, so the same corpus gives the same keys whatever the size of the cluster.

    _row_key = file_index << position_bits | position

`file_index` is the file's place in the path-sorted listing. `position` is the byte offset of the line's
start (JSON; of the decompressed text when compressed), the row number (Parquet) or 0 (text).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from raycurate.core import storage
from raycurate.core.errors import InputError
from raycurate.core.storage import FileEntry

SEGMENT_BYTES = 16 << 20
MIN_SEGMENT_BYTES = 256 << 10
FILE_COST_BYTES = 16 << 10
"""What opening a file costs, as bytes of reading: keeps a task from getting a million empty files."""

PARQUET_ROW_BITS = 40
"""A Parquet file may have up to 2**40 rows; positions from there on name byte ranges that cannot be read."""


class Kind(StrEnum):
    """How a file is read."""

    TEXT = "text"
    HTML = "html"
    RST = "rst"
    JSON = "json"
    """JSON Lines, an array of objects or objects one after the other: seen by content."""
    JSONL = "jsonl"
    PARQUET = "parquet"


COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_JSON_LINES = tuple(base + packed for base in (".jsonl", ".ndjson") for packed in ("", *COMPRESSIONS))
DEFAULT_EXTENSIONS = (".txt", ".md", "", *_JSON_LINES, ".parquet")
_KINDS = {".jsonl": Kind.JSONL, ".ndjson": Kind.JSONL, ".parquet": Kind.PARQUET, ".html": Kind.HTML}
_KINDS |= {".htm": Kind.HTML, ".rst": Kind.RST, ".json": Kind.JSON}

# Bits by which decompressed text may be longer than the file: deflate reaches 1032:1, a zstd block of
# one repeated byte turns 4 bytes into 128 KiB.
_EXPANSION_BITS = {"gzip": 11, "zstd": 15}


PartitionValues = tuple[tuple[str, str | None], ...]
"""What the folders of a file say of it: (column, value) of each that is called key=value (listing.py)."""


@dataclass(frozen=True, slots=True)
class DocumentFile(FileEntry):
    """A file of a listing. name: its path relative to the input's root, from which ids are made."""

    name: str = ""
    values: PartitionValues = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one file that start in [start, end); `end` None means to the end of the file.

    name, values: as of `DocumentFile`; a file that was not listed as one is named by its path.
    """

    file_index: int
    path: str
    size: int
    kind: Kind
    compression: str | None = None
    start: int = 0
    end: int | None = None
    name: str = ""
    values: PartitionValues = ()

    @property
    def cost(self) -> int:
        return (self.size if self.end is None else self.end) - self.start + FILE_COST_BYTES


def extension_of(path: str) -> str:
    """The lower-case extension, with a compression's own behind it: `.jsonl.gz`; "" when there is none."""
    stem, last = posixpath.splitext(posixpath.basename(storage.without_options(path)))
    if last.lower() in COMPRESSIONS:
        return posixpath.splitext(stem)[1].lower() + last.lower()
    return last.lower()


def is_known(extension: str) -> bool:
    """Whether files with this extension have a format of their own, or are read as text without being asked."""
    return extension in DEFAULT_EXTENSIONS or kind_of(extension and f"x{extension}")[0] is not Kind.TEXT


def kind_of(path: str) -> tuple[Kind, str | None]:
    """How `path` is read, by its extension, and its compression; whatever has no format of its own is text."""
    base, dot, last = extension_of(path).rpartition(".")
    compression = COMPRESSIONS.get(dot + last)
    return _KINDS.get(base if compression else dot + last, Kind.TEXT), compression


def choose_position_bits(files: Sequence[FileEntry]) -> int:
    """The bits that the largest possible position needs, so that no two rows can share a key.

    Raises:
        InputError: file index and position together do not fit in 64 bits.
    """
    needed = max((_bits_of_positions(f) for f in files), default=1)
    index_bits = max(len(files) - 1, 0).bit_length()
    if needed + index_bits > 64:
        raise InputError(
            f"{len(files)} files with up to {needed} bits of positions each cannot be numbered with 64 bits",
            fix="Read the corpus in several parts, or cut its largest compressed file",
        )
    return needed


def _bits_of_positions(file: FileEntry) -> int:
    kind, compression = kind_of(file.path)
    if kind is Kind.PARQUET:
        return max(PARQUET_ROW_BITS, file.size.bit_length()) + 1
    if kind in (Kind.JSON, Kind.JSONL):
        return file.size.bit_length() + _EXPANSION_BITS.get(compression or "", 1)
    return 1


def cut(files: Iterable[FileEntry], segment_bytes: int = SEGMENT_BYTES) -> list[Segment]:
    """All segments, in the order of the listing. Compressed files and text files stay whole."""
    segments = []
    for index, file in enumerate(files):
        kind, compression = kind_of(file.path)
        divisible = kind is Kind.PARQUET or (kind is Kind.JSONL and compression is None)
        starts = range(0, max(file.size, 1), segment_bytes) if divisible else range(1)
        for start in starts:
            end = start + segment_bytes if divisible and start + segment_bytes < file.size else None
            segments.append(Segment(index, file.path, file.size, kind, compression, start, end, *_listed(file)))
    return segments


def _listed(file: FileEntry) -> tuple[str, PartitionValues]:
    return (file.name, file.values) if isinstance(file, DocumentFile) else (file.path, ())


def pack(segments: Sequence[Segment], tasks: int, files_per_task: int = 0) -> list[list[Segment]]:
    """Segments put together in about `tasks` groups of about equal bytes, each a run of the listing.

    Args:
        segments: in the order of the listing.
        tasks: how many groups are wanted; single large segments may make them fewer.
        files_per_task: the most files in a group; 0 for no limit.
    """
    target = sum(s.cost for s in segments) / max(tasks, 1)
    groups: list[list[Segment]] = []
    group: list[Segment] = []
    files: set[int] = set()
    boundary, packed = 1, 0
    for segment in segments:
        crowded = files_per_task > 0 and segment.file_index not in files and len(files) >= files_per_task
        # Groups end where the running total is nearest to a multiple of the target, so errors do not add up.
        if group and (crowded or packed + segment.cost / 2 > boundary * target):
            groups.append(group)
            group, files = [], set()
            boundary = round(packed / target) + 1
        group.append(segment)
        files.add(segment.file_index)
        packed += segment.cost
    return [*groups, group] if group else groups
