"""Reading text and JSON Lines segments, without Ray."""

from __future__ import annotations

import gzip
import hashlib
import json
import random

import numpy as np
import pyarrow as pa
import pytest

from raycurate.core import storage
from raycurate.data.documents.reading import Lines, read_segments
from raycurate.data.documents.rows import BASE_NAMES, REJECT_REASONS, ReadPlan
from raycurate.data.documents.segments import choose_position_bits, cut

UNICODE = [
    "ascii only",
    "größe naïve",
    "日本語のテキスト",
    "emoji 😀👩‍👩‍👧",
    "a\u2028b\u0085c\x0cd",
    "tab\tand \\n escaped\n",
]


def read(path, *, segment_bytes=1 << 24, done=None, shuffle=None, **plan) -> list[dict]:
    """All rows at `path`, sorted by key."""
    files = storage.list_files(str(path))
    options = {"position_bits": choose_position_bits(files), **plan}
    segments = cut(files, segment_bytes)
    if shuffle is not None:
        random.Random(shuffle).shuffle(segments)
    rows = [r for s in segments for t in read_segments([s], ReadPlan(**options), done) for r in t.to_pylist()]
    return sorted(rows, key=lambda r: r["_row_key"])


def one(tmp_path, line: bytes, **plan) -> dict:
    path = tmp_path / "one.jsonl"
    path.write_bytes(line)
    [row] = read(path, **plan)
    return row


def random_jsonl(seed: int) -> bytes:
    """Lines of many lengths, with LF and CRLF ends, blank lines, bad lines, and often no end of the last one."""
    rng = random.Random(seed)
    data = b"\xef\xbb\xbf" if seed % 3 == 0 else b""
    for i in range(rng.randrange(1, 60)):
        kind = rng.random()
        if kind < 0.1:
            line = b" " * rng.randrange(3)
        elif kind < 0.2:
            line = rng.choice([b"{bad", b"[1, 2]", b'{"text": "\xff"}', b'{"text": null}', b"{}"])
        else:
            text = " ".join(rng.choice(UNICODE) for _ in range(rng.randrange(1, 12)))
            line = json.dumps({"id": f"d{i}", "text": text, "n": i}, ensure_ascii=rng.random() < 0.5).encode()
        data += line + rng.choice([b"\n", b"\r\n"])
    return data.rstrip(b"\r\n") if seed % 2 else data


def by_hand(data: bytes) -> list[tuple[int, bytes]]:
    """(offset, line) of the lines with content, the plain way."""
    found, offset = [], 0
    for line in data.split(b"\n"):
        content = line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
        if content.strip():
            found.append((offset, content))
        offset += len(line) + 1
    return found


@pytest.mark.parametrize("seed", range(12))
def test_byte_ranges_of_any_size_give_the_same_rows_as_the_whole_file(tmp_path, seed):
    data = random_jsonl(seed)
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    whole = read(path, columns=(("n", pa.string()),))
    assert [r["_row_key"] for r in whole] == [offset for offset, _ in by_hand(data)]
    good = [json.loads(line)["text"] for _, line in by_hand(data) if line.startswith(b'{"id"')]
    assert [r["text"] for r in whole if r["reject_reason"] is None] == good
    for size in (1, 3, 64, 255, 4096):
        assert read(path, segment_bytes=size, shuffle=seed, columns=(("n", pa.string()),)) == whole


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_lines_do_not_depend_on_the_size_of_reads(tmp_path, chunk):
    data = random_jsonl(3)
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    for segment in cut(storage.list_files(str(path)), 97):
        assert list(Lines(segment, 1 << 20, chunk)) == list(Lines(segment, 1 << 20))


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_give_the_rows_of_the_plain_one(tmp_path, suffix):
    data = random_jsonl(8)
    plain, packed = tmp_path / "x.jsonl", tmp_path / f"x.jsonl.{suffix}"
    plain.write_bytes(data)
    half = len(data) // 2  # two members, as appending to a compressed file makes them
    pack = gzip.compress if suffix == "gz" else lambda d: pa.Codec("zstd").compress(d, asbytes=True)
    packed.write_bytes(pack(data[:half]) + pack(data[half:]))
    expected = read(plain, position_bits=40)
    got = read(packed, position_bits=40)
    ours = [(r["_row_key"], r["text"], r["reject_reason"]) for r in got]
    assert ours == [(r["_row_key"], r["text"], r["reject_reason"]) for r in expected]


def test_a_truncated_gzip_file_gives_its_lines_and_one_reject(tmp_path):
    rng = random.Random(0)
    data = b"".join(json.dumps({"id": str(i), "text": rng.randbytes(40).hex()}).encode() + b"\n" for i in range(2000))
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(data)[:50_000])
    rows = read(path)
    assert [r["id"] for r in rows[:-1]] == [str(i) for i in range(len(rows) - 1)]
    assert len(rows) > 100
    assert rows[-1]["reject_reason"] == "unreadable_file"
    assert "runcated" in rows[-1]["reject_detail"]
    assert read(path, done=np.array([r["_row_key"] for r in rows], np.uint64)) == []


JSON_REJECTS = [
    ("null_text", b'{"text": null}'),
    ("empty_text", b'{"text": " \\n\\t\\u00a0"}'),
    ("empty_text", b'{"text": ""}'),
    ("missing_text", b'{"body": "x"}'),
    ("wrong_type", b'{"text": 5}'),
    ("wrong_type", b'{"text": ["x"]}'),
    ("too_long", b'{"text": "' + b"x" * 101 + b'"}'),
    ("undecodable", b'{"text": "\xff\xfe"}'),
    ("undecodable", b'{"text": "\\ud800"}'),
    ("invalid_json", b'{"text": "x"'),
    ("invalid_json", b'{"text": ' + b"9" * 5000 + b"}"),
    ("invalid_json", b"[" * 100_000),
    ("invalid_json", b'{"text": "x", "n": 1, "n": 2}'),
    ("not_an_object", b'"just a string"'),
    ("not_an_object", b"null"),
]


@pytest.mark.parametrize(("reason", "line"), JSON_REJECTS)
def test_bad_lines_become_rejects_that_say_where(tmp_path, reason, line):
    good = b'{"id": "first", "text": "fine"}\n'
    path = tmp_path / "x.jsonl"
    path.write_bytes(good + line + b"\n" + good)
    before, bad, after = read(path, max_chars=100, over_long="reject")
    assert before["reject_reason"] is None and after["reject_reason"] is None
    assert bad["reject_reason"] == reason
    assert reason in REJECT_REASONS
    assert f"line at byte {len(good)}:" in bad["reject_detail"]
    assert len(bad["reject_detail"]) < 400
    assert bad["source"] == str(path)
    assert bad["id"] == hashlib.sha256(f"{path}\0{len(good)}".encode()).hexdigest()[:20]


def test_longer_texts_are_cut_or_rejected(tmp_path):
    line = json.dumps({"text": "😀" * 100}).encode()
    whole = one(tmp_path, line, max_chars=100)
    assert (whole["text"], whole["text_cut"]) == ("😀" * 100, False)
    cut = one(tmp_path, line, max_chars=99)
    assert (cut["text"], cut["text_cut"], cut["reject_reason"]) == ("😀" * 99, True, None)
    rejected = one(tmp_path, line, max_chars=99, over_long="reject")
    assert (rejected["reject_reason"], rejected["text"], rejected["text_cut"]) == ("too_long", None, False)


def test_ids_come_from_the_users_field_or_from_the_position(tmp_path):
    assert one(tmp_path, b'{"id": 7, "_id": "b", "text": "x"}')["id"] == "7"
    assert one(tmp_path, b'{"_id": "b", "text": "x"}')["id"] == "b"
    made = one(tmp_path, b'{"id": null, "text": "x"}')["id"]
    assert made == hashlib.sha256(f"{tmp_path}/one.jsonl\x000".encode()).hexdigest()[:20]
    assert one(tmp_path, b'{"key": "k", "id": "i", "text": "x"}', id_field="key")["id"] == "k"
    for line in (b'{"id": "i", "text": "x"}', b'{"key": null, "text": "x"}', b'{"key": [1], "text": "x"}'):
        row = one(tmp_path, line, id_field="key")
        assert (row["reject_reason"], row["text"], row["id"]) == ("missing_id", "x", made)


def test_metadata_are_strings_and_only_those_asked_for(tmp_path):
    line = json.dumps(
        {"body": "x", "head": "T", "source": "web", "n": 1.5, "tags": ["ü"], "s": "s", "z": None}
    ).encode()
    fields = {"text_field": "body", "title_field": "head"}
    row = one(tmp_path, line, columns=(("tags", pa.string()), ("n", pa.string()), ("absent", pa.string())), **fields)
    assert list(row) == [*BASE_NAMES, "tags", "n", "absent"]
    assert (row["text"], row["title"], row["source"]) == ("x", "T", "web")
    assert (row["tags"], row["n"], row["absent"]) == ('["ü"]', "1.5", None)
    everything = one(tmp_path, line, columns=None, **fields)
    assert set(everything) == {*BASE_NAMES, "n", "tags", "s", "z"}


def test_a_line_of_five_megabytes_is_read_and_one_without_end_is_not_held(tmp_path):
    text = "wörd " * 1_000_000
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps({"id": "a", "text": text}, ensure_ascii=False).encode() + b'\n{"id":"b","text":"t"}')
    rows = read(path, max_chars=10_000_000, segment_bytes=1 << 20)
    assert [r["text"] for r in rows] == [text, "t"]
    [segment] = cut(storage.list_files(str(path)))
    (_, held, length), (_, second, _) = list(Lines(segment, 1000, 100))
    assert (len(held), length) == (1024, path.stat().st_size - len(second) - 1)


@pytest.mark.parametrize("over_long", ["truncate", "reject"])
def test_text_files(tmp_path, over_long):
    long = {"e.txt": b"x" * 1001, "f.txt": ("é" * 400 + "x" * 601).encode(), "h.txt": "x😀".encode() * 4000}
    contents = {
        "a.txt": b"\xef\xbb\xbfline one\r\nline two",
        "b.md": "# Größe\n".encode(),
        "c": b"",
        "d.txt": b"ab\xff",
        "g.txt": b" \n ",
        **long,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rows = {r["source"].rpartition("/")[2]: r for r in read(tmp_path, max_chars=1000, over_long=over_long)}
    assert rows["a.txt"]["text"] == "line one\nline two"
    assert rows["b.md"]["text"] == "# Größe\n"
    reasons = {name: row["reject_reason"] for name, row in rows.items()}
    good = {"a.txt": None, "b.md": None, "c": "empty_text", "d.txt": "undecodable", "g.txt": "empty_text"}
    assert reasons == good | dict.fromkeys(long, None if over_long == "truncate" else "too_long")
    for name, content in long.items():
        expected = content.decode()[:1000] if over_long == "truncate" else None
        assert (rows[name]["text"], rows[name]["text_cut"]) == (expected, over_long == "truncate")
    assert len({r["id"] for r in rows.values()}) == 8


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["lines", "array", "indented array", "objects", "one object"])
def test_json_is_what_its_content_says(tmp_path, form, packed):
    rows = [{"id": i, "text": f"größe {i} " + "x" * (1 << (3 * i)), "n": {"a": [i]}} for i in range(8)]
    if form == "one object":
        rows = rows[:1]
    text = {
        "lines": "\n".join(map(json.dumps, rows)) + "\n",
        "array": "\ufeff" + json.dumps(rows, ensure_ascii=False),
        "indented array": json.dumps(rows, indent=2),
        "objects": "\n".join(json.dumps(row, indent=1, ensure_ascii=False) for row in rows),
        "one object": json.dumps(rows[0], indent=4),
    }[form].encode()
    path = tmp_path / ("x.json.gz" if packed else "x.json")
    path.write_bytes(gzip.compress(text) if packed else text)
    found = read(path, max_chars=10_000_000, columns=(("n", pa.string()),))
    assert [(r["id"], r["text"], r["reject_reason"]) for r in found] == [(str(r["id"]), r["text"], None) for r in rows]
    assert [json.loads(r["n"]) for r in found] == [r["n"] for r in rows]
    done = np.array([r["_row_key"] for r in found[::2]], np.uint64)
    assert read(path, max_chars=10_000_000, columns=(("n", pa.string()),), done=done) == found[1::2]


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (b"[]", []),
        (b" \n", []),
        (b'[{"text": "a"}, 5, {"text": "b"}]', [None, "not_an_object", None]),
        (b'[{"text": "a"} {"text": "b"}]', [None, "invalid_json"]),
        (b'[{"text": "a"}, {"text": "b"', [None, "invalid_json"]),
        (b'[{"text": "a"}, {"text": "\xff"}]', ["invalid_json"]),
        (b'{"text": "a"}\nnonsense\n{"text": "b"}\n', [None, "invalid_json", None]),
        (b'{"text": "a"\n{"text": "b"}\n', ["invalid_json", None]),
        (b"just text", ["invalid_json"]),
    ],
)
def test_what_is_wrong_in_json_is_a_reject(tmp_path, text, reasons):
    (tmp_path / "x.json").write_bytes(text)
    rows = read(tmp_path / "x.json")
    assert [r["reject_reason"] for r in rows] == reasons
    assert len({r["_row_key"] for r in rows}) == len(rows)


@pytest.mark.parametrize(("kind", "fits"), [(pa.int64(), 2), (pa.uint64(), 3)])
def test_ids_that_must_be_integers(tmp_path, kind, fits):
    ids = ["7", 8, 2**63, "x", "007", None, 1.5]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"id": i, "text": "t"}) for i in ids))
    rows = read(tmp_path, id_type=kind)
    assert [r["id"] for r in rows] == [7, 8, 2**63][:fits] + [None] * (7 - fits)
    assert [r["reject_reason"] for r in rows][3:] == ["wrong_type", "wrong_type", "missing_id", "wrong_type"]


def test_a_file_that_went_away_or_changed_after_the_listing_is_a_reject(tmp_path):
    for name in ("a.txt", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    segments = cut(storage.list_files(str(tmp_path)))
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "c.jsonl").write_text("{}")
    [table] = read_segments(segments, ReadPlan(position_bits=40))
    assert table["reject_reason"].to_pylist() == ["unreadable_file"] * 3
    assert "when it was listed" in table["reject_detail"][2].as_py()
    assert len(set(table["_row_key"].to_pylist())) == 3


def test_done_rows_are_left_out_and_the_rest_is_the_exact_remainder(tmp_path):
    rng = random.Random(5)
    for i in range(6):
        (tmp_path / f"{i}.jsonl").write_bytes(random_jsonl(i))
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    whole = read(tmp_path)
    keys = [r["_row_key"] for r in whole]
    assert len(set(keys)) == len(keys)
    for share in (0.0, 0.3, 0.9, 1.0):
        done = np.array(sorted(k for k in keys if rng.random() < share), np.uint64)
        rest = [r for r in whole if r["_row_key"] not in set(done.tolist())]
        assert read(tmp_path, segment_bytes=300, done=done) == rest


def test_blocks_are_bounded_and_have_one_schema(tmp_path):
    lines = [json.dumps({"text": "x" * 1000, "n": i} if i % 2 else {"text": None}) for i in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("text")
    plan = ReadPlan(columns=(("n", pa.string()),), block_bytes=100_000, position_bits=40)
    tables = list(read_segments(cut(storage.list_files(str(tmp_path))), plan))
    assert sum(t.num_rows for t in tables) == 3001
    assert max(t.nbytes for t in tables) < 250_000
    assert all(t.schema.equals(plan.schema) for t in tables)
