"""Bad training data: everything that is wrong is said at once, with file and line, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.data.training.training import read_training_data, write_corpus, write_corpus_id_json, write_inline_jsonl


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    ids = [f"d{i}" for i in range(6)]
    write_corpus(str(tmp_path / "corpus"), "c", pa.table({"id": ids, "text": [f"text {i}" for i in ids]}))
    return tmp_path / "corpus"


def row(**changes: Any) -> dict[str, Any]:
    found = {"question_id": "q", "question": "w?", "corpus_id": "c", "pos_doc": ["d0"], "neg_doc": ["d1"], **changes}
    return {k: v for k, v in found.items() if v is not ...}


def said_of(sources: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_training_data(sources, **options)
    return str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"query": "a", "pos_doc": "x"}', "there is no 'neg_doc'; keys: query, pos_doc"),
        ('{"query": "a", "neg_doc": "x"}', "there is no 'pos_doc'"),
        ('{"pos_doc": "x", "neg_doc": "y"}', "there is no 'query' or 'question'"),
        ('{"query": " ", "pos_doc": "x", "neg_doc": "y"}', "'query' is empty"),
        ('{"query": null, "pos_doc": "x", "neg_doc": "y"}', "'query' must be a string, this is null"),
        ('{"query": 3, "pos_doc": "x", "neg_doc": "y"}', "'query' must be a string, this is a number"),
        ('{"query": "a", "pos_doc": [], "neg_doc": "y"}', "'pos_doc' is empty"),
        ('{"query": "a", "pos_doc": null, "neg_doc": "y"}', "'pos_doc' is empty"),
        ('{"query": "a", "pos_doc": [""], "neg_doc": "y"}', "'pos_doc': a document's text is empty"),
        (
            '{"query": "a", "pos_doc": [null], "neg_doc": "y"}',
            "'pos_doc': a document's text must be a string, this is null",
        ),
        ('{"query": "a", "pos_doc": "x", "neg_doc": [{"text": ["y"]}]}', "text must be a string, this is a list"),
        ('{"query": "a", "pos_doc": {"id": "d0"}, "neg_doc": "y"}', "ids need a corpus-ID JSON file"),
        ('{"query": "a", "pos_doc": {"txt": "d0"}, "neg_doc": "y"}', "a document has no 'text'; keys: txt"),
        ('{"query": "a", "pos_doc": "x", "neg_doc": ["y", "x"]}', "the document 'x' is both a positive and a negative"),
        ('{"query": "a", "pos_doc": "x", "neg_doc": "y", "question_id": true}', "'question_id' must be a string"),
        ('{"query": "a", "pos_doc": "\\ud83d", "neg_doc": "y"}', "half a surrogate pair"),
        ('["query", "pos_doc"]', "a row must be an object, this is a list"),
        ('{"query": "a", ', "it is not JSON"),
        ('{"query": "a", "pos_doc": "x", "neg_doc": NaN}', "NaN is not JSON"),
        ('{"query": "a", "pos_doc": "x", "neg_doc": "\x01"}', "it is not JSON: Invalid control character"),
    ],
)
def test_inline_lines(tmp_path, line, said):
    good = '{"query": "good", "pos_doc": "x", "neg_doc": "y"}\n'
    path = write(tmp_path / "t.jsonl", good + "\n" + line + "\n" + good)
    found = said_of(path)
    assert said in found and f"{path}:3:" in found


def test_undecodable_and_truncated_files(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"query": "\xff", "pos_doc": "x", "neg_doc": "y"}\n')
    assert "a.jsonl:1: it is not JSON: 'utf-8' codec" in said_of(str(tmp_path / "a.jsonl"))
    write_inline_jsonl(
        str(tmp_path / "b.jsonl.gz"), [{"query": f"{i}", "pos_doc": "x", "neg_doc": "y"} for i in range(99)]
    )
    cut = (tmp_path / "b.jsonl.gz").read_bytes()[:-20]
    (tmp_path / "b.jsonl.gz").write_bytes(cut)
    assert "cannot be read from here on" in said_of(str(tmp_path / "b.jsonl.gz"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus_id": ...}, "'corpus_id' must be a string, this is null"),
        ({"corpus_id": "other"}, "the corpus_id 'other' is none of this file's corpora ('c')"),
        ({"question": ""}, "'question' is empty"),
        ({"question": ..., "query": "w?"}, "there is no 'question'"),
        ({"pos_doc": []}, "'pos_doc' is empty"),
        ({"neg_doc": ...}, "there is no 'neg_doc'"),
        ({"pos_doc": [{"text": "x"}]}, "texts belong in an inline JSONL file"),
        ({"pos_doc": [True]}, "a document's id must be a string, this is a boolean"),
        ({"pos_doc": [1.5]}, "corpus 'c' has no document '1.5' (line 5)"),
        ({"pos_doc": [{"id": "d0", "score": "high"}]}, "a score must be a number, this is a string"),
        ({"pos_doc": ["d0", "d3"], "neg_doc": ["d2", "d3"]}, "'d3' is both a positive and a negative"),
        ({"neg_doc": ["d1", "gone"]}, "corpus 'c' has no document 'gone' (line 5)"),
    ],
)
def test_rows_of_corpus_id_json(corpus, tmp_path, changes, said):
    path = tmp_path / "t.json"
    write_corpus_id_json(
        str(path), {"path": "./corpus"}, [row(question_id="q0"), row(**changes), row(question_id="q2")]
    )
    found = said_of(str(path))
    assert said in found and str(path) in found
    if "corpus" not in said:
        assert f"{path}:5" in found


def test_all_files_are_reported_together_and_counted(corpus, tmp_path):
    rows = [row(question_id=f"q{i}", pos_doc=[f"gone{i}"], neg_doc=["d1", f"no{i % 3}"]) for i in range(30)]
    write_corpus_id_json(str(tmp_path / "a.json"), {"path": "./corpus"}, [*rows, row(question_id="q7")])
    bad = write(tmp_path / "b.jsonl", "{\n" * 40)
    found = said_of([str(tmp_path / "a.json"), bad, str(tmp_path / "missing.jsonl"), str(tmp_path / "c.txt")])
    assert (
        "has 76 problems: 40 bad lines, 33 unknown document ids, 2 unusable sources, 1 duplicate question ids" in found
    )
    assert f"{tmp_path}/a.json:34: the question_id 'q7' stands at line 11 too" in found
    assert "corpus 'c' has no document 'gone0' (line 4), 'gone1' (line 5)" in found and "and 28 more" in found
    assert found.count("b.jsonl:") == 18  # twenty are shown
    assert "and 24 more" in found


def test_a_missing_source_is_reported_with_the_others(tmp_path):
    bad = write(tmp_path / "b.jsonl", "{")
    found = said_of([str(tmp_path / "gone.json"), bad])
    assert "gone.json: there is no such file or folder" in found and "b.jsonl:1: it is not JSON" in found


def test_one_corpus_id_with_two_paths(corpus, tmp_path):
    write_corpus(str(tmp_path / "other"), "c", pa.table({"id": ["d0", "d1"], "text": ["x", "y"]}))
    write_corpus_id_json(str(tmp_path / "a.json"), {"path": "./corpus"}, [row()])
    write_corpus_id_json(str(tmp_path / "b.json"), {"path": "./other"}, [row()])
    found = said_of([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert f"{tmp_path}/other: the corpus_id 'c' is also that of {tmp_path}/corpus" in found
    write_corpus_id_json(str(tmp_path / "b.json"), {"path": f"{tmp_path}/x/../corpus"}, [row()])
    assert len(read_training_data([str(tmp_path / "a.json"), str(tmp_path / "b.json")]).corpora) == 1


def test_a_corpus_named_twice_hides_no_unknown_one(corpus, tmp_path):
    path = str(tmp_path / "a.json")
    write_corpus_id_json(path, [{"path": "./corpus"}, {"path": "corpus"}], [row(), row(question_id="b", corpus_id="x")])
    assert "the corpus_id 'x' is none of this file's corpora ('c')" in said_of(path)


def test_corpora_that_cannot_be_used(corpus, tmp_path):
    parquet = corpus / "train.parquet"
    whole = parquet.read_bytes()
    write_corpus_id_json(str(tmp_path / "a.json"), [{"path": "./corpus"}, {"path": "nowhere"}], [row()])
    assert "nowhere: there is no such corpus folder" in said_of(str(tmp_path / "a.json"))
    parquet.write_bytes(whole[: len(whole) // 2])
    found = said_of(str(tmp_path / "a.json"))
    assert "2 problems" in found and "train.parquet: it cannot be read" in found
    (corpus / "merlin_metadata.json").unlink()
    found = said_of(str(tmp_path / "a.json"))
    assert "the corpus folder has no merlin_metadata.json" in found and "none of this file's corpora" not in found


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "the file must hold one JSON object"),
        ("[1]", 1, "a row must be an object, this is a number"),
        ('\n[{"query": "a", "pos_doc": "x", "neg_doc": "y"},\n{"query": "b"}]', 3, "there is no 'pos_doc'"),
        ('[{"query": "a", "pos_doc": "x", "neg_doc": "y"}', 1, "a comma or the end of the array is missing"),
        ("[] []", 1, "there is more after its end"),
        ("[]", None, "it holds no questions"),
        ('{"corpus": {"path": "corpus"}}', None, "there is no 'data'"),
        ('{"data": []}', None, "there is no 'corpus'"),
        ('{"corpus": "corpus", "data": []}', 1, "'corpus' must be"),
        ('{"corpus": {"path": "corpus"}, "data": {}}', 1, "'data' must be a list"),
        ('{"corpus": {"path": "corpus"}, "data": []}', None, "it holds no questions"),
        ('{"corpus": {"path": "corpus"},\n"data": [\n{"question": "a",,}]}', 3, "Expecting property name"),
        ('{"corpus": {"path": "corpus"},\n"data": [\n{"question": "a"}\n{"question": "b"}]}', 4, "a comma or the end"),
        ('{"corpus": {"path": "corpus"}, "data": []}\n{}', 2, "there is more after its end"),
        ('{"corpus": {"path": "corpus"}, "data": [', 1, "Expecting value"),
        ('{"query": "a", "pos_doc": "x", "neg_doc": "y"}\n{"query": "b"}', 2, "belong in a file named .jsonl"),
    ],
)
def test_json_that_is_no_training_file(corpus, tmp_path, text, line, said):
    path = write(tmp_path / "t.json", text)
    found = said_of(path)
    assert said in found
    assert any(f"{path}{place}" in found for place in ([f":{line}:", f":{line} (row "] if line else [":"]))


def test_negatives_when_they_are_needed(corpus, tmp_path):
    path = str(tmp_path / "a.json")
    write_corpus_id_json(path, {"path": "./corpus"}, [row(question_id="a"), row(question_id="b", neg_doc=[])])
    assert len(read_training_data(path)) == 2
    said = said_of(path, require_negatives=True)
    assert said.startswith(f"{path}:5: 'neg_doc' is empty, negatives are needed. Mine them")
    write_corpus_id_json(path, {"path": "./corpus"}, [row(question_id=name, neg_doc=[]) for name in "abc"])
    said = said_of(path, require_negatives=True)
    assert "has 3 problems" in said and said.count("Mine them") == 1  # what to do stands once, at the end
    with pytest.raises(InputError, match=r"no such file or folder\. Did you mean .*/a\.json\?"):
        read_training_data(str(tmp_path / "aa.json"))


def test_what_json_cannot_carry_is_not_written(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(InputError, match=r"data\[1\]: it cannot be written as JSON"):
        write_corpus_id_json(str(path), {"path": "c"}, [row(), row(pos_doc=[{"id": "d0", "score": float("nan")}])])
    with pytest.raises(InputError, match="row 1"):
        write_inline_jsonl(str(tmp_path / "t.jsonl"), [{"query": "\ud83d"}])
    with pytest.raises(ConfigError, match="cannot be called data"):
        write_corpus_id_json(str(path), {"path": "c"}, [row()], extra={"data": 1})
    assert list(tmp_path.iterdir()) == []
    write_corpus_id_json(str(path), {"path": "c"}, [])
    assert json.loads(path.read_text()) == {"corpus": {"path": "c"}, "data": []}


def dropped(sources: Any, **options: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """The questions that are left, and (origin, reason) of those that are not."""
    data = read_training_data(sources, on_bad_rows="drop", **options)
    return data.table["question"].to_pylist(), [(r.origin, r.reason) for r in data.rejected]


def test_rows_that_cannot_be_used_are_left_out_where_that_is_asked_for(tmp_path):
    lines = [
        '{"query": "one", "pos_doc": "x", "neg_doc": "y"}',
        "{no JSON",
        '{"query": 3, "pos_doc": []}',
        '{"query": "both", "pos_doc": "x", "neg_doc": ["y", "x"]}',
        '{"query": "none", "pos_doc": "x", "neg_doc": []}',
        '{"query": "two", "pos_doc": "z", "neg_doc": "y"}',
    ]
    path = write(tmp_path / "t.jsonl", "\n".join(lines))
    left, gone = dropped(path, require_negatives=True)
    assert left == ["one", "two"]
    assert [origin for origin, _ in gone] == [f"{path}:{n}" for n in (2, 3, 4, 5)]
    assert "not JSON" in gone[0][1] and "must be a string" in gone[1][1] and "'pos_doc' is empty" in gone[1][1]
    assert "both a positive and a negative" in gone[2][1] and "negatives are needed" in gone[3][1]
    kept = [r.row for r in read_training_data(path, require_negatives=True, on_bad_rows="drop").rejected]
    assert kept[:2] == ["{no JSON", {"query": 3, "pos_doc": []}]
    assert [row["question"] for row in kept[2:]] == ["both", "none"]
    assert dropped(path, require_negatives=True) == (left, gone)  # from the cache too
    assert "problems" in said_of(path, require_negatives=True)  # and by default all of it is an error


@pytest.mark.parametrize("lines", [True, False], ids=["a row a line", "all in one line"])
def test_of_rows_in_one_line_only_the_bad_ones_are_left_out(corpus, tmp_path, lines):
    rows = [
        row(question_id="a", question="good"),
        row(question_id="b", question="unknown", pos_doc=["d9"]),
        row(question_id="c", question="stranger", corpus_id="other"),
        row(question_id="d", question=" "),
        row(question_id="a", question="twice"),
        row(question_id="e", question="good too", neg_doc=["d2", "d3"]),
    ]
    text = json.dumps({"corpus": {"path": "corpus"}, "data": rows}, indent=1 if lines else None)
    left, gone = dropped(write(tmp_path / "t.json", text))
    assert left == ["good", "good too"] and len(gone) == 4
    told = " ".join(reason for _, reason in gone)
    assert all(said in told for said in ("no document 'd9'", "'other' is none", "is empty", "stands at line"))


def test_what_is_wrong_with_a_whole_file_is_an_error_all_the_same(corpus, tmp_path):
    path = write(tmp_path / "t.jsonl", '{"query": 3}\n')
    assert "none of its rows can be used" in said_of(path, on_bad_rows="drop")
    path = write(tmp_path / "t.json", json.dumps({"corpus": {"path": "gone"}, "data": [row()]}))
    assert "there is no such corpus folder" in said_of(path, on_bad_rows="drop")
    path = write(tmp_path / "u.json", '{"corpus": {"path": "corpus"}, "data": [{"question"')
    assert "Expecting" in said_of(path, on_bad_rows="drop")
