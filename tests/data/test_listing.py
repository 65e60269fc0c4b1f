"""What an input names: whatever marks are in its path, what its folders say, and ids that survive a move."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import InputError
from raycurate.data.documents.documents import DocumentsOptions, list_documents, make_plan
from raycurate.data.documents.reading import read_segments
from raycurate.data.documents.segments import cut


def read(path: str | list[str], columns: list[str] | None = None, **options: Any) -> pa.Table:
    """All rows in the order of their keys, as a read task gives them."""
    checked = DocumentsOptions.parse({"input": path, **options}, where="test")
    listing = list_documents(checked)
    tables = read_segments(cut(listing.files), make_plan(checked, columns or [], listing))
    return pa.concat_tables(list(tables), promote_options="permissive").sort_by("_row_key")


HOSTILE = [
    "FAQ - what is new?", "notes #2", "100%", "50%20off", "[draft]", "a*b", "x=1", "a:b", "me@home", "-leading dash",
    " spaces ", "größe 日本", "q?s=1#frag", "a&b;c", "it's \"quoted\"", "{curly}", "$HOME", "~tilde", "tab\there", "**",
    "[a-", "new\nline", "back\\slash", "a+b", "ends.", "emoji 😀", "e\u0301 decomposed", "lang=en [x]?*#%",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_of_a_folder_or_file(tmp_path, monkeypatch, name):
    folder = tmp_path / name / name
    folder.mkdir(parents=True)
    (folder / f"{name}.jsonl").write_text(json.dumps({"id": "j", "text": "line"}))
    pq.write_table(pa.table({"id": ["p"], "text": ["row"]}), folder / f"{name}.parquet")
    (folder / f"{name}.txt").write_text("text")
    expected = {"line", "row", "text"}
    assert set(read(str(tmp_path / name))["text"].to_pylist()) == expected
    assert set(read(str(tmp_path))["text"].to_pylist()) == expected
    assert read(str(folder / f"{name}.txt"))["text"].to_pylist() == ["text"]
    assert set(read([str(folder / f"{name}.jsonl"), str(folder / f"{name}.parquet")])["text"].to_pylist()) == {
        "line",
        "row",
    }
    assert set(read(f"file://{tmp_path}/{name}")["text"].to_pylist()) == expected
    monkeypatch.chdir(tmp_path)
    if not name.startswith("~"):  # which means somebody's home
        assert set(read(name)["text"].to_pylist()) == expected


def test_a_pattern_still_is_one(tmp_path):
    for name in ("a1.txt", "a2.txt", "b1.txt", "sub?/a3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(str(tmp_path / "a?.txt"))["text"].to_pylist() == ["a1.txt", "a2.txt"]
    assert read(str(tmp_path / "**" / "a[13].txt"))["text"].to_pylist() == ["a1.txt", "sub?/a3.txt"]


def make_corpus(root: Path) -> None:
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("one")
    (root / "sub" / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}')
    pq.write_table(pa.table({"text": ["four"]}), root / "sub" / "c.parquet")


def test_made_up_ids_survive_a_move_and_do_not_depend_on_how_the_files_are_named(tmp_path, monkeypatch):
    make_corpus(tmp_path / "here" / "docs")
    before = read(str(tmp_path / "here" / "docs"))["id"].to_pylist()
    assert len(set(before)) == 4
    shutil.copytree(tmp_path / "here" / "docs", tmp_path / "mounted elsewhere")
    assert read(str(tmp_path / "mounted elsewhere"))["id"].to_pylist() == before
    monkeypatch.chdir(tmp_path / "here")
    for named in ("docs", "docs/", "./docs", ["docs"], ["docs/a.txt", "docs/sub"], "docs/**/*.*", ["docs", "docs/sub"]):
        assert read(named)["id"].to_pylist() == before, named
    # Of several roots, the deepest folder that holds them all counts: no two files are called alike.
    make_corpus(tmp_path / "here" / "more")
    both = read(["docs", "more"])["id"].to_pylist()
    assert len(set(both)) == 8
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert read(["more", "docs"])["id"].to_pylist() == both


# --- folders that are columns ---------------------------------------------------------------------


def test_partition_columns_are_those_of_pyarrow(tmp_path):
    table = pa.table(
        {
            "text": [f"text {i}" for i in range(12)],
            "lang": ["en", "fr", "é/ü =?", None] * 3,
            "year": [2023, 2024, 2025] * 4,
        }
    )
    pads.write_dataset(
        table, tmp_path / "in", format="parquet", partitioning=["lang", "year"], partitioning_flavor="hive"
    )
    expected = pads.dataset(tmp_path / "in", partitioning="hive").to_table().select(["text", "lang", "year"])
    found = read(str(tmp_path / "in"), ["lang", "year"])
    assert found.schema.field("year").type == pa.int64()
    key = lambda row: row["text"]  # noqa: E731
    rows = [{name: row[name] for name in ("text", "lang", "year")} for row in found.to_pylist()]
    assert sorted(rows, key=key) == sorted(expected.to_pylist(), key=key)
    # A partition that is named by itself, and a pattern of them.
    assert set(read(str(tmp_path / "in" / "lang=en"), ["lang"])["lang"].to_pylist()) == {"en"}
    assert set(read(str(tmp_path / "in" / "lang=[ef]*" / "**"), ["lang"])["lang"].to_pylist()) == {"en", "fr"}


def test_folders_are_columns_whatever_the_files_are(tmp_path):
    for lang in ("en", "fr"):
        folder = tmp_path / "in" / f"lang={lang}" / "zip=01234"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("text")
        (folder / "b.jsonl").write_text('{"text": "line"}\n{"text": "own", "lang": "de"}\n{broken')
        (folder / "c.json").write_text('[{"text": "value"}]')
        pq.write_table(pa.table({"text": ["row"]}), folder / "d.parquet")
    options = {"file_extensions": ["txt", "jsonl", "json", "parquet"]}
    rows = read(str(tmp_path / "in"), ["lang", "zip"], **options).to_pylist()
    assert {row["zip"] for row in rows} == {"01234"}  # not the number 1234
    texts = ["text", "line", None, "value", "row"]
    assert [row["lang"] for row in rows if row["text"] in texts] == ["en"] * 5 + ["fr"] * 5
    assert [row["lang"] for row in rows if row["text"] == "own"] == ["de", "de"]
    # Paths alone pass every column through; what lies above the root says nothing.
    root = tmp_path / "user=me"
    shutil.copytree(tmp_path / "in", root / "docs")
    checked = DocumentsOptions(input=str(root / "docs"))
    plan = make_plan(checked, None, list_documents(checked))
    tables = list(read_segments(cut(list_documents(checked).files), plan))
    assert {"lang", "zip"} <= set(tables[0].column_names)
    assert "user" not in tables[0].column_names


# --- extensions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ['{"text": "a"}\n{"text": "b"}\n', '[{"text": "a"}, {"text": "b"}]'])
@pytest.mark.parametrize("name", ["docs.json", "docs.JSON", "docs.ndjson"])
def test_json_by_itself_by_pattern_and_by_the_advice_of_the_error(tmp_path, name, content):
    if name.endswith("ndjson") and content.startswith("["):
        pytest.skip("JSON Lines by its name")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(content)
    assert read(str(tmp_path / "in" / name))["text"].to_pylist() == ["a", "b"]
    assert read(str(tmp_path / "in" / f"*.{name.partition('.')[2]}"))["text"].to_pylist() == ["a", "b"]
    if name.endswith("ndjson"):
        assert read(str(tmp_path / "in"))["text"].to_pylist() == ["a", "b"]
        return
    with pytest.raises(InputError) as refused:
        read(str(tmp_path / "in"))
    assert "file_extensions=['.json'] reads them" in str(refused.value)
    assert read(str(tmp_path / "in"), file_extensions=[".json"])["text"].to_pylist() == ["a", "b"]


def test_advice_on_other_files_is_true(tmp_path):
    (tmp_path / "a.log").write_text("a line")
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"file_extensions=\['\.log'\] reads them, \.log as plain text"):
        read(str(tmp_path))
    assert read(str(tmp_path), file_extensions=[".log"])["text"].to_pylist() == ["a line"]
    (tmp_path / "a.log").unlink()
    with pytest.raises(InputError, match="Convert them to text"):
        read(str(tmp_path))


def test_the_case_files(shared_cases, monkeypatch):
    monkeypatch.chdir(shared_cases)
    assert len(read("question-mark/FAQ - what is new?")) == 4
    assert read("json-extension/docs.json")["id"].to_pylist() == ["j0", "j1"]
    assert read("hive/in", ["lang"])["lang"].to_pylist() == ["en", "fr"]
    uuid = "00000000-0000-0000-0000-000000000007"
    assert read("id-types/in")["id"].to_pylist() == ["doc-1", "doc-2", uuid, "42"]
    assert read("folder-2024/2024").num_rows
    for name, column in {"meta": "n", "text": "text"}.items():
        with pytest.raises(InputError, match=f"'{column}' stands 2 times"):
            read(f"twice-named/{name}.parquet")
    assert read("empty-part-first/in")["id"].to_pylist() == ["b1", "b2"]
    assert read("null-type-first/in", ["lang"])["lang"].to_pylist() == [None, "fr", "en"]
    assert read("null-list-first/in", ["tags"])["tags"].to_pylist() == [[], ["alps", "fr"], []]


def test_a_name_that_is_not_utf8_is_an_error_that_shows_it(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"), "wb") as file:
        file.write(b"coffee")
    with pytest.raises(InputError, match=r"not UTF-8 .*caf\\xe9"):
        read(str(tmp_path))
