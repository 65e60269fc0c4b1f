"""Test sets by name and in MTEB's layout."""

from __future__ import annotations

import json
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raycurate.core.errors import ConfigError, InputError
from raycurate.data.corpora.beir import read_beir
from raycurate.retrieval.collections import locate, name_of

CARD = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: qrels/test.jsonl
  - split: dev
    path: qrels/dev.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: queries.jsonl
---
"""


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "task"
    (folder / "qrels").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    documents = [{"_id": 7, "title": "Rain", "text": "it falls"}, {"_id": 8, "title": None, "text": "it shines"}]
    (folder / "corpus.jsonl").write_text(lines(documents))
    questions = [{"_id": "q1", "text": "what falls"}, {"_id": "q2", "text": "what shines"}]
    (folder / "queries.jsonl").write_text(lines(questions))
    (folder / "qrels" / "test.jsonl").write_text(lines([{"query-id": "q1", "corpus-id": "7", "score": 2.0}]))
    (folder / "qrels" / "dev.jsonl").write_text(lines([{"query-id": "q2", "corpus-id": "8", "score": 1.0}]))
    return folder


def test_mtebs_layout(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = locate(f"mteb:{task}", cache_dir=str(tmp_path / "cache"))
    data = read_beir(folder, "test")
    assert data.qrels == {"q1": {"7": 2}}
    assert data.corpus.to_pylist() == [
        {"_id": "7", "title": "Rain", "text": "it falls"},
        {"_id": "8", "title": "", "text": "it shines"},
    ]
    assert read_beir(folder, "dev").qrels == {"q2": {"8": 1}}
    assert name_of(f"mteb:{task}") == str(task)
    (task / "qrels" / "test.jsonl").write_text(lines([{"query-id": "q1", "corpus-id": "8", "score": 1.0}]))
    again = locate(f"mteb:{task}", cache_dir=str(tmp_path / "cache"))  # the files changed, so it is read anew
    assert read_beir(again, "test").qrels == {"q1": {"8": 1}}


def test_judgements_that_are_no_whole_numbers(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (task / "qrels" / "dev.jsonl").write_text(lines([{"query-id": "q2", "corpus-id": "8", "score": 0.5}]))
    with pytest.raises(InputError, match=r"'q2', '8' is 0\.5, no whole number"):
        locate(f"mteb:{task}", cache_dir=str(tmp_path / "cache"))


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'beir:scifact'"):
        locate("beir:scifct", cache_dir=str(tmp_path))
    with pytest.raises(InputError, match="For BEIR's data set write beir:fiqa"):
        locate("fiqa")
    with pytest.raises(InputError, match="no test set in BEIR's layout"):
        locate(str(tmp_path))
    downloaded = tmp_path / "raycurate" / "beir" / "scifact" / "qrels"
    downloaded.mkdir(parents=True)
    (downloaded / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    assert locate("beir:scifact", cache_dir=str(tmp_path)) == str(downloaded.parent)
    assert (name_of("beir:scifact"), name_of("s3://b/x/eval_beir/")) == ("scifact", "eval_beir")


def test_a_download_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("beir")
    with zipfile.ZipFile(tmp_path / "cqadupstack.zip", "w") as archive:
        for inner in ("android", "english"):
            archive.writestr(f"cqadupstack/{inner}/corpus.jsonl", lines([{"_id": "7", "text": inner}]))
            archive.writestr(f"cqadupstack/{inner}/qrels/test.tsv", "query-id\tcorpus-id\tscore\n")
    asked: list[str] = []

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        monkeypatch.setattr("raycurate.retrieval.collections.BEIR_URL", f"http://127.0.0.1:{port}/{{}}.zip")
        cache = str(tmp_path / "cache")
        folder = Path(locate("beir:cqadupstack/english", cache_dir=cache))
        assert json.loads((folder / "corpus.jsonl").read_text())["text"] == "english"
        assert Path(locate("beir:cqadupstack/android", cache_dir=cache)).parent == folder.parent
        with pytest.raises(InputError, match="a folder of android, english"):
            locate("beir:cqadupstack", cache_dir=cache)
        server.shutdown()
    assert asked == ["/cqadupstack.zip"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["android", "english"]
    assert [path.name for path in folder.parent.parent.iterdir()] == ["cqadupstack"]


def test_a_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("beir")
    monkeypatch.setattr("raycurate.retrieval.collections.BEIR_URL", "http://127.0.0.1:9/{}.zip")
    with pytest.raises(InputError, match="could not be downloaded"):
        locate("beir:nfcorpus", cache_dir=str(tmp_path))
    assert list((tmp_path / "raycurate" / "beir").iterdir()) == []
