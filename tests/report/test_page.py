"""The page as a whole: which sections it has, what it says of a run's state, and that no document can break it."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raycurate.cli import main
from raycurate.core import storage
from raycurate.core.errors import InputError, MissingDependencyError
from raycurate.report import write_report
from tests.report import outputs
from tests.report.evaluations import change, write_evaluation

SECTIONS = ("Results", "Pipeline", "Corpus", "Clusters", "Duplicates", "Training pairs", "Training", "Retrieval")
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Tree(HTMLParser):
    """Checks that every element is closed where it must be; collects names, ids, references and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.references += [f"#{name}" for name in (given.get("aria-labelledby") or "").split()]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = outputs.write_run(tmp_path_factory.mktemp("runs") / "demo")
    write_evaluation(workdir / "eval")
    return workdir


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    write_report(str(run))
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_whole_run_has_every_section(run: Path, page: str):
    result = write_report(str(run), str(run / "again.html"))
    assert (result.sections, result.problems) == (SECTIONS, ())
    assert str(run / "again.html") in result.summary()
    # neither the time nor chance: the same outputs, the same bytes
    assert (run / "again.html").read_text(encoding="utf-8") == page


def test_the_page_needs_nothing_else(page: str):
    tree = Tree(page)
    assert "script" not in tree.names and "iframe" not in tree.names
    outside = [r for r in tree.references if not r.startswith("#") and r != "data:,"]
    assert outside == []
    assert len(tree.ids) == len(set(tree.ids))
    assert {r.removeprefix("#") for r in tree.references if r.startswith("#")} <= set(tree.ids)
    assert "http" not in page.replace("http-equiv", "").replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_every_figure_has_a_text_alternative(page: str):
    tree = Tree(page)
    assert tree.names.count("svg") == tree.names.count("figure") >= 18
    assert page.count('role="img"') == page.count("<desc id=") == tree.names.count("svg")


def test_the_headline_is_what_the_stages_say(page: str):
    text = Tree(page).text
    for said in (
        "120 documents embedded 9,000 tokens",
        "6 near-duplicates removed 5.0% of 120 documents, at eps 0.05",
        "100 training and test questions 80 train, 10 val, 10 test",
        "0.404 → 0.546 nDCG@10, base → tuned +0.142 (95%: +0.112 to +0.172) ✓ improved",
    ):
        assert said in text


HOSTILE = '\x00$x_1$</p><script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>&amp; \u202e'


def test_documents_and_names_cannot_become_markup(tmp_path: Path):
    workdir = outputs.write_run(tmp_path / "<b>run</b>", **{outputs.name(0): HOSTILE})
    names = {"base": 0.4, "finetuned": 0.5, HOSTILE: 0.45}
    asked = change(HOSTILE, 0.1, 0.9, 0)
    asked["after"][0]["text"] = asked["after"][0]["title"] = HOSTILE
    write_evaluation(workdir / "eval", changes=[asked], names=names)
    write_report(str(workdir), title=HOSTILE)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    tree = Tree(page)
    assert {"script", "img", "b"}.isdisjoint(tree.names)
    assert "\x00" not in page and "\u202e" not in page
    assert tree.text.count('<script>alert("x")</script>') >= 4  # shown as it is: title, system, question, document


def test_without_stages_it_is_said_what_was_looked_for(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(
        InputError, match=r"no stage has left an output here.*notes.*manifest\.json.*workdir of a recipe"
    ):
        write_report(str(tmp_path))
    with pytest.raises(InputError, match="there is no such file or folder"):
        write_report(str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == [tmp_path / "notes"]


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"raycurate\[report\]"):
        write_report(str(run), str(run / "never.html"))
    assert not (run / "never.html").exists()


def test_one_stage_alone_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    outputs.write_dedup(tmp_path)
    assert (
        main(["report", str(tmp_path / "dedup"), "--out", str(tmp_path / "d.html"), "--title", "Only duplicates"]) == 0
    )
    assert "Results, Pipeline, Duplicates" in capsys.readouterr().out
    text = Tree((tmp_path / "d.html").read_text(encoding="utf-8")).text
    assert "Only duplicates" in text
    assert "The texts are not shown: the run does not say what its corpus was." in text
    assert main(["report", str(tmp_path / "nothing")]) == 2


def test_a_stage_that_is_not_whole_is_not_shown_as_done(tmp_path: Path):
    workdir = outputs.write_run(tmp_path / "run")
    (workdir / "dedup" / "edges" / "part-0.parquet").unlink()
    (workdir / "finetune" / "_manifest.json").unlink()
    (workdir / "prep" / "_manifest.json").write_text("{")
    result = write_report(str(workdir))
    assert result.sections == ("Results", "Pipeline", "Corpus", "Clusters", "Training")
    text = Tree((workdir / "report.html").read_text(encoding="utf-8")).text
    assert text.count("✓ done") == 3
    assert "✗ not whole 1 of 2 files are missing or have another size, first edges/part-0.parquet" in text
    assert "✗ not finished it has no _manifest.json: the stage has not ended" in text
    assert "its manifest is unreadable" in text
    assert "The training in finetune is not finished" in text and "its log goes to step 40" in text


def test_a_stage_older_than_its_input_is_marked(tmp_path: Path):
    outputs.write_corpus(tmp_path)
    outputs.write_embeddings(tmp_path)
    manifest = tmp_path / "corpus" / "_manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"created": "2026-11-23T00:00:00+00:00"}))
    write_report(str(tmp_path))
    text = Tree((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "done, but older made before sample-corpus ran again" in text


def test_a_file_that_cannot_be_read_costs_its_section_only(tmp_path: Path):
    workdir = outputs.write_run(tmp_path / "run")
    write_evaluation(workdir / "eval")
    (workdir / "eval" / "changes.json").write_text("[")
    outputs.write_manifest(workdir / "eval", "eval")  # whole by its sizes, and yet no JSON
    result = write_report(str(workdir))
    assert "Training" in result.sections
    assert len(result.problems) == 1 and "changes.json: it is not JSON" in result.problems[0]
    assert "not made  Retrieval" in result.summary()
    text = Tree((workdir / "report.html").read_text(encoding="utf-8")).text
    assert "This part could not be made" in text


def test_a_run_in_an_object_store(tmp_path: Path, s3: str):
    workdir = outputs.write_run(tmp_path / "run")
    write_evaluation(workdir / "eval")
    remote = f"{s3}/runs/demo"
    for file in sorted(p for p in workdir.rglob("*") if p.is_file()):
        storage.write_bytes(f"{remote}/{file.relative_to(workdir).as_posix()}", file.read_bytes())
    for manifest in workdir.glob("*/_manifest.json"):  # as if it had run there: nothing local is read
        moved = manifest.read_text().replace(str(workdir), remote)
        storage.write_text(f"{remote}/{manifest.relative_to(workdir).as_posix()}", moved)
    result = write_report(remote)
    assert (result.path, result.sections, result.problems) == (f"{remote}/report.html", SECTIONS, ())
    text = Tree(storage.read_text(result.path)).text
    assert "All 120 documents, read from demo/corpus" in text
    assert remote not in text  # where a run lies is seen from its own folder
