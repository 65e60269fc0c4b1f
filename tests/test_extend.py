"""The worked examples of docs/extend run as they stand there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raycurate.core.config import Recipe
from raycurate.core.errors import OutputExistsError
from raycurate.core.manifest import verify
from raycurate.pipeline import STAGES, config_of, selected
from tests.processes import PATIENCE_S, ROOT

EXAMPLES = ROOT / "docs/extend"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("to be or not to be")
    (folder / "b.txt").write_text("be quick")
    return folder


def test_the_stage(docs: Path, tmp_path: Path) -> None:
    stage: Any = importlib.import_module("word_count").STAGE
    output = str(tmp_path / "counts")
    result = stage(str(docs), output, least=2)
    assert json.loads(Path(output, "words.json").read_text()) == {"be": 3, "to": 2}
    assert result.manifest.counts == {"files": 2, "words": 2} and verify(output).key.stage == "word-count"
    config = stage.Config(input=str(docs), output=output, least=2)
    assert stage.state(config) == "done, 2 words" and stage(str(docs), output, least=2).skipped
    with pytest.raises(OutputExistsError, match="least: 2 -> 1"):
        stage(str(docs), output)
    (docs / "c.txt").write_text("to")
    assert "input's files" in stage.state(config)


def test_the_stage_in_the_list_of_stages(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in the pipeline: a section of a recipe is enough, and its places follow from the shared keys."""
    stage: Any = importlib.import_module("word_count").STAGE
    monkeypatch.setitem(STAGES.helps, "word-count", "documents -> words")
    monkeypatch.setattr(type(STAGES), "__getitem__", _with(stage, type(STAGES).__getitem__))
    recipe = Recipe(
        {"workdir": str(tmp_path), "corpus": str(docs), "model": "m", "embed": False, "word-count": {"least": 3}}
    )
    assert [one.name for one in selected(recipe)] == ["word-count"]
    config = config_of("word-count", recipe)
    assert (config.input, config.output, config.least) == (str(docs), f"{tmp_path}/words", 3)


def _with(stage: Any, others: Any) -> Any:
    return lambda self, name: stage if name == stage.name else others(self, name)


def test_the_engine(docs: Path, tmp_path: Path) -> None:
    """As its page says: from the folder where the module lies."""
    vectors = tmp_path / "vectors"
    words = [f"input={docs}", f"output={vectors}", "model=any", "engine=letters:Letters", "concurrency=1"]
    command = [sys.executable, "-m", "raycurate.cli", "embed", *words]
    run = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=PATIENCE_S)
    assert run.returncode == 0, run.stderr
    table = pq.read_table(vectors)
    assert sorted(row[1] for row in table["embeddings"].to_pylist()) == [1.0, 2.0]  # the letter b
