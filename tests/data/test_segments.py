"""Cutting and packing: every byte in exactly one segment, keys that cannot collide."""

from __future__ import annotations

import numpy as np
import pytest

from raycurate.core.errors import InputError
from raycurate.core.storage import FileEntry
from raycurate.data.documents.rows import DoneRows, ReadPlan
from raycurate.data.documents.segments import Kind, choose_position_bits, cut, extension_of, kind_of, pack


def entry(path: str, size: int) -> FileEntry:
    return FileEntry(path, size, 0)


@pytest.mark.parametrize(
    ("path", "extension", "kind", "compression"),
    [
        ("/a/b.JSONL", ".jsonl", Kind.JSONL, None),
        ("/a/b.jsonl.gz", ".jsonl.gz", Kind.JSONL, "gzip"),
        ("s3://b/c.jsonl.zst?region=x", ".jsonl.zst", Kind.JSONL, "zstd"),
        ("/a.d/README", "", Kind.TEXT, None),
        ("/a/notes.txt.gz", ".txt.gz", Kind.TEXT, "gzip"),
        ("/a/x.parquet", ".parquet", Kind.PARQUET, None),
        ("/a/x.html", ".html", Kind.HTML, None),
        ("/a/x.py", ".py", Kind.TEXT, None),
    ],
)
def test_kind_follows_from_the_extension(path, extension, kind, compression):
    assert extension_of(path) == extension
    assert kind_of(path) == (kind, compression)


def test_segments_cover_each_divisible_file_once_and_leave_others_whole():
    files = [
        entry("a.jsonl", 1000),
        entry("b.jsonl.gz", 5000),
        entry("c.parquet", 256),
        entry("d.txt", 900),
        entry("e.jsonl", 0),
    ]
    found = cut(files, 256)
    for index, file in enumerate(files):
        own = [s for s in found if s.file_index == index]
        assert own[0].start == 0
        assert own[-1].end is None  # the last goes to the end of the file, whatever that is
        assert [s.end for s in own[:-1]] == [s.start for s in own[1:]]
        assert all(s.path == file.path for s in own)
    assert [sum(s.file_index == i for s in found) for i in range(5)] == [4, 1, 1, 1, 1]


def test_packing_balances_bytes_and_keeps_the_order():
    found = cut([entry(f"{i:03d}.jsonl", 1 << 20) for i in range(64)])
    groups = pack(found, 8)
    assert [s for g in groups for s in g] == found
    assert [len(g) for g in groups] == [8] * 8
    uneven = cut([entry("a.txt", 50_000_000), *(entry(f"b{i}.txt", 1000) for i in range(100))])
    sizes = [len(g) for g in pack(uneven, 10)]
    assert sizes[0] == 1  # the large file has a task to itself
    assert sum(sizes) == 101


def test_files_per_task_is_a_limit_on_files_not_on_segments():
    found = cut([entry(f"{i}.jsonl", 1000) for i in range(10)], 100)
    groups = pack(found, 1, files_per_task=3)
    assert [len({s.file_index for s in g}) for g in groups] == [3, 3, 3, 1]


def test_position_bits_hold_the_largest_position_and_refuse_what_does_not_fit():
    assert choose_position_bits([entry("a.txt", 10**9)]) == 1
    assert 1 << choose_position_bits([entry("a.jsonl", 10**6)]) > 10**6
    assert 1 << choose_position_bits([entry("a.jsonl.gz", 10**6)]) > 1032 * 10**6
    assert 1 << choose_position_bits([entry("a.parquet", 10)]) > 2**40 + 10
    with pytest.raises(InputError, match="64 bits"):
        choose_position_bits([entry(f"{i}.jsonl.zst", 1 << 50) for i in range(2)])


def test_done_rows_are_those_of_their_own_file_only():
    plan = ReadPlan(position_bits=8)
    done = np.array([3, (1 << 8) + 0, (1 << 8) + 7, (1 << 8) + 255, (2 << 8) + 7], np.uint64)
    rows = DoneRows(plan, 1, done)
    assert [p for p in range(256) if p in rows] == [0, 7, 255]
    assert DoneRows(plan, 1, done).between(0, 8).tolist() == [0, 7]
    assert DoneRows(plan, 1, done).mask(np.arange(5, 9, dtype=np.uint64)).tolist() == [False, False, True, False]
    assert 0 not in DoneRows(plan, 3, done)


def test_the_last_key_of_64_bits_is_found():
    plan = ReadPlan(position_bits=1)
    last_file = (1 << 63) - 1
    assert 1 in DoneRows(plan, last_file, np.array([2**64 - 1], np.uint64))
