"""Preparing embed-nemotron-dataset-v1, on a small replica of its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import ConfigError, InputError, OutputExistsError
from raycurate.data.training.nemotron import prepare_nemotron
from raycurate.data.training.training import read_training_data

pytest.importorskip("datasets")

QUESTIONS = ["who wrote it?", "where is it?", "when was it?", "why is it?"]
PASSAGES = [f"passage number {i}" for i in range(8)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCURATE_CACHE", str(tmp_path / "cache"))


def ids(*names: str) -> list[dict[str, str]]:
    return [{"id": n} for n in names]


def row(number: int, question: str, pos: list[str], neg: list[str]) -> dict[str, Any]:
    return {
        "question_id": f"q{number}",
        "question": question,
        "corpus_id": "x",
        "pos_doc": ids(*pos),
        "neg_doc": ids(*neg),
    }


def subset_at(folder: Path, documents: dict[str, list[str]], rows: list[dict[str, Any]], **metadata: Any) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(documents), folder / "corpus.parquet")
    pq.write_table(pa.Table.from_pylist([r | {"corpus_id": folder.name} for r in rows]), folder / "queries.parquet")
    told = {
        "corpus_id": folder.name,
        "class": "TextQADataset",
        "ids_only": False,
        "query_instruction": "Find: ",
    } | metadata
    (folder / "dataset_metadata.json").write_text(json.dumps(told))
    return folder


def mteb_source(folder: Path) -> str:
    """A retrieval data set in the layout of MTEB: configs corpus and queries, each with a split of its name."""
    for name, texts in (("corpus", PASSAGES), ("queries", QUESTIONS)):
        (folder / name).mkdir(parents=True)
        table = pa.table({"_id": [f"{name}-{i}" for i in range(len(texts))], "text": texts})
        half = len(texts) // 2
        pq.write_table(table.slice(0, half), folder / name / "0000.parquet")
        pq.write_table(table.slice(half), folder / name / "0001.parquet")
    configs = "".join(
        f"- config_name: {n}\n  data_files:\n  - split: {n}\n    path: {n}/*.parquet\n" for n in ("corpus", "queries")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(folder)


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    root = tmp_path / "replica"
    own = {"id": [f"d_{i}" for i in range(8)], "text": PASSAGES}
    subset_at(root / "FEVER", own, [row(i, q, [f"d_{i}"], ["d_5", "d_6"]) for i, q in enumerate(QUESTIONS)])
    only = {"id": ["d_6", "d_0", "d_3"]}
    rows = [row(0, "q_2", ["d_3"], ["d_0"]), row(1, "q_0", ["d_6"], ["d_3", "d_0"])]
    restored = subset_at(root / "HotpotQA", only, rows, ids_only=True)
    told = {"source_repo": mteb_source(tmp_path / "mteb"), "loader_config": "mteb"}
    (restored / "source_config.json").write_text(json.dumps(told))
    return root


def prepare(replica: Path, **options: Any):
    return prepare_nemotron(str(replica), str(replica.parent / "out"), **options)


def spelled_out(source: str) -> list[tuple[str, list[str], list[str]]]:
    data = read_training_data(source)
    rows = [(r, data.corpora[r["corpus"]]) for r in data.table.to_pylist()]
    return [(r["question"], c.texts_of(r["pos"]), c.texts_of(r["neg"])) for r, c in rows]


def test_own_and_restored_texts(replica, tmp_path):
    result = prepare(replica)
    assert [(s.name, s.questions, s.documents, s.restored) for s in result.subsets] == [
        ("FEVER", 4, 8, False),
        ("HotpotQA", 2, 3, True),
    ]
    assert result.sources == [str(tmp_path / "out/FEVER/FEVER.json"), str(tmp_path / "out/HotpotQA/HotpotQA.json")]
    assert spelled_out(result.sources[0])[1] == (QUESTIONS[1], [PASSAGES[1]], [PASSAGES[5], PASSAGES[6]])
    assert spelled_out(result.sources[1]) == [
        (QUESTIONS[2], [PASSAGES[3]], [PASSAGES[0]]),
        (QUESTIONS[0], [PASSAGES[6]], [PASSAGES[3], PASSAGES[0]]),
    ]
    data = read_training_data([*result.sources])
    assert [(c.corpus_id, c.query_instruction) for c in data.corpora] == [("FEVER", "Find: "), ("HotpotQA", "Find: ")]
    assert len(read_training_data(result.output)) == 6  # the whole folder as one source
    assert "HotpotQA" in result.summary() and "restored" in result.summary() and "6" in result.summary()


def test_the_layout_is_what_the_recipes_of_automodel_name(replica, tmp_path):
    prepare(replica)
    out = tmp_path / "out" / "HotpotQA"
    whole = json.loads((out / "HotpotQA.json").read_text())
    assert whole["corpus"] == {"path": "./corpus"}
    assert whole["data"][0] == {
        "question_id": "q0",
        "question": QUESTIONS[2],
        "corpus_id": "HotpotQA",
        "pos_doc": [{"id": "d_3"}],
        "neg_doc": [{"id": "d_0"}],
    }
    documents = pq.read_table(out / "corpus" / "train.parquet").to_pydict()
    assert documents == {"id": ["d_6", "d_0", "d_3"], "text": [PASSAGES[6], PASSAGES[0], PASSAGES[3]]}
    metadata = json.loads((out / "corpus" / "merlin_metadata.json").read_text())
    assert metadata == {
        "corpus_id": "HotpotQA",
        "class": "TextQADataset",
        "query_instruction": "Find: ",
        "ids_only": False,
    }


def test_texts_from_columns_of_a_source(replica, tmp_path):
    pq.write_table(pa.table({"q": QUESTIONS, "answer": PASSAGES[:4]}), tmp_path / "pairs.parquet")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs.parquet").rename(tmp_path / "pairs" / "train.parquet")
    told = {"source_repo": str(tmp_path / "pairs"), "loader_config": "column", "split": "train"}
    told |= {"query_column": "q", "document_column": "answer"}
    rows = [row(i, f"q_{i}", [f"d_{i}"], []) for i in (3, 1)]
    subset_at(replica / "GooAQ", {"id": ["d_3", "d_1"]}, rows, ids_only=True)
    (replica / "GooAQ" / "source_config.json").write_text(json.dumps(told))
    [subset] = prepare(replica, subsets=["GooAQ"]).subsets
    assert spelled_out(subset.path) == [(QUESTIONS[3], [PASSAGES[3]], []), (QUESTIONS[1], [PASSAGES[1]], [])]


def test_what_is_done_is_skipped_and_what_was_cut_off_goes_on(replica, tmp_path):
    first = prepare(replica)
    times = {s: Path(s).stat().st_mtime_ns for s in first.sources}
    assert all(s.skipped for s in prepare(replica).subsets)
    assert times == {s: Path(s).stat().st_mtime_ns for s in first.sources}
    (tmp_path / "out" / "FEVER" / "_manifest.json").unlink()  # as a run leaves it that is killed before the end
    (tmp_path / "out" / "FEVER" / "_staging").mkdir()
    assert [s.skipped for s in prepare(replica).subsets] == [False, True]
    pq.write_table(pa.table({"id": ["d_6", "d_0", "d_3", "d_1"]}), replica / "HotpotQA" / "corpus.parquet")
    with pytest.raises(OutputExistsError, match="made from something else"):
        prepare(replica)
    assert prepare(replica, overwrite=True).subsets[1].documents == 4


def test_what_cannot_be_trained_on_is_left_out_and_counted(replica, tmp_path):
    documents = {"id": ["a", "b", "c"], "text": ["x", " ", "z"]}
    rows = [
        row(0, "good?", ["a", "b"], ["c", "b", "a"]),
        row(1, "  ", ["a"], ["c"]),
        row(2, "no positive?", ["b"], ["c"]),
        row(0, "the same id?", ["a"], ["c"]),
    ]
    subset_at(replica / "PAQ", documents, rows)
    [subset] = prepare(replica, subsets=["PAQ"]).subsets
    assert spelled_out(subset.path) == [("good?", ["x"], ["z"])]
    assert (subset.questions, subset.documents) == (1, 2)
    assert subset.left_out == {
        "blank documents": 1,
        "blank negatives": 1,
        "negatives that are positives": 1,
        "blank questions": 1,
        "questions without a positive": 1,
        "repeated question ids": 1,
    }
    rejects = (tmp_path / "out" / "PAQ" / "_rejects" / "left_out.jsonl").read_text().splitlines()
    assert len(rejects) == 6 and json.loads(rejects[0]) == {"reason": "blank documents", "document": "b"}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"loader_config": "zip"}, "loader_config='zip' is not known"),
        ({"loader_config": None}, "'loader_config' is a string, this is None"),
        ({"source_repo": "no-such-org/no-such-set"}, "cannot be loaded"),
        ({"loader_config": "column"}, "'split' is a string"),
        (
            {
                "loader_config": "column",
                "subset": "corpus",
                "split": "corpus",
                "document_column": "body",
                "query_column": "text",
            },
            "has no column 'body'; columns: _id, text",
        ),
    ],
)
def test_sources_that_cannot_be_used(replica, told, said):
    path = replica / "HotpotQA" / "source_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises(InputError, match=said):
        prepare(replica, subsets=["HotpotQA"])


@pytest.mark.parametrize("name", ["d_8", "d_03", "17", "q_1", "d_-1"])
def test_ids_that_the_source_does_not_have(replica, name):
    pq.write_table(pa.table({"id": ["d_0", name]}), replica / "HotpotQA" / "corpus.parquet")
    with pytest.raises(InputError, match=f"'{name}' is no row of .* which has 8 rows"):
        prepare(replica, subsets=["HotpotQA"])


def test_other_layouts_are_refused(replica, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'FEVER'"):
        prepare(replica, subsets=["FEVERS"])
    with pytest.raises(InputError, match="no folder in it has a corpus"):
        prepare_nemotron(str(tmp_path / "mteb"), str(tmp_path / "out"))
    (replica / "HotpotQA" / "source_config.json").unlink()
    with pytest.raises(InputError, match="no source_config"):
        prepare(replica, subsets=["HotpotQA"])
    (replica / "FEVER" / "queries.parquet").unlink()
    with pytest.raises(InputError, match="has no queries"):
        prepare(replica, subsets=["FEVER"])
    with pytest.raises(InputError, match="there is no such folder"):
        prepare_nemotron("./nowhere", str(tmp_path / "out"))


def test_documents_that_questions_name_and_the_corpus_lacks(replica):
    rows = [row(0, "a?", ["gone"], ["d_0"])]
    subset_at(replica / "SQuAD", {"id": ["d_0"], "text": ["x"]}, rows)
    with pytest.raises(InputError, match="corpus 'SQuAD' has no document 'gone'"):
        prepare(replica, subsets=["SQuAD"])


def test_a_data_set_of_the_hub(replica, tmp_path, monkeypatch):
    """What the hub's own client finds in its cache: snapshots are folders of links to blobs."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub" / "datasets--some-org--some-set", "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(p for p in replica.rglob("*") if p.is_file())):
        link = repository / "snapshots" / commit / path.relative_to(replica)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(repository / "blobs" / str(number))
        link.symlink_to(repository / "blobs" / str(number))
    result = prepare_nemotron("some-org/some-set", str(tmp_path / "out"))
    assert [s.questions for s in result.subsets] == [4, 2]
    direct = read_training_data({"path": "hf://some-org/some-set@main/FEVER", "num_samples": 3})
    assert len(direct) == 3 and direct.corpora[0].corpus_id == "FEVER"
    with pytest.raises(InputError, match="ids only"):
        read_training_data("hf://some-org/some-set")
    with pytest.raises(InputError, match="has no 'FEVERS'"):
        read_training_data("hf://datasets/some-org/some-set/FEVERS")


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="the hub was not reached"):
        prepare_nemotron("nvidia/embed-nemotron-dataset-v1", str(tmp_path))
