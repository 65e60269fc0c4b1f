"""What is refused before Ray starts, and the names by which a checkpoint is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raycurate.cli import main
from raycurate.core import storage
from raycurate.core.errors import InputError, RaycurateError
from raycurate.models.fetch import fetch_model
from raycurate.models.options import EncoderOptions
from raycurate.stages.eval.systems import model_of
from raycurate.stages.finetune.check import check
from tests.finetune.families import save_family
from tests.finetune.runs import config_of

GOOD = {"query": "rain", "pos_doc": "rain falls", "neg_doc": ["a bird"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_family(tmp_path_factory.mktemp("model") / "bert", "bert")


def inline(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "not there": ({"train": "nowhere.jsonl"}, "nowhere"),
    "no negatives": ({"train": [{"query": "a", "pos_doc": "b", "neg_doc": []}]}, "negatives are needed"),
    "a wrong row": ({"train": [{"query": 3, "pos_doc": "b"}]}, "'query' must be a string"),
    "a wrong row of val": ({"val": [{"query": "a", "neg_doc": "b"}]}, "there is no 'pos_doc'"),
    "no test set": ({"dev": "no-beir"}, "no-beir"),
    "no such model": ({"model": "./nowhere"}, "nowhere"),
    "pooling that needs a choice": ({"model": "llama", "pooling": "last"}, "bidirectional=false"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_before_ray_starts(
    name: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, said = WRONG[name]
    values: dict[str, Any] = {"train": inline(tmp_path / "good.jsonl", GOOD), "model": model, "n_passages": 2}
    values |= {"data_cache": str(tmp_path / "cache"), **changes}
    for key in ("train", "val"):
        if isinstance(values.get(key), list):
            values[key] = inline(tmp_path / f"{key}.jsonl", *values[key])
    if values["model"] == "llama":
        values["model"] = save_family(tmp_path / "llama", "llama")
    with pytest.raises(RaycurateError, match=said):
        check(config_of(values, tmp_path / "out"))
    arguments = [f"{key}={value}" for key, value in values.items()]
    assert main(["finetune", *arguments, f"output={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and "what Ray and other libraries say" not in err
    assert not (tmp_path / "out").exists()


def test_a_missing_corpus_folder_names_the_file_that_names_it(model: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    row = {"question": "rain", "corpus_id": "c", "pos_doc": ["d0"], "neg_doc": ["d1"]}
    path.write_text(json.dumps({"corpus": {"path": "gone"}, "data": [row]}))
    with pytest.raises(InputError, match=f"{path} names it as its corpus.*Put the folder there") as caught:
        check(config_of({"train": str(path), "model": model}, tmp_path / "out"))
    assert str(tmp_path / "gone") in str(caught.value)


@pytest.mark.parametrize("remote", [False, True])
def test_a_checkpoints_folder_stands_for_the_model_in_it(remote: bool, model: str, tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    where = "memory://run" if remote else str(tmp_path / "run")
    checkpoint = f"{where}/checkpoints/epoch_0_step_3"
    for file in Path(model).iterdir():
        storage.write_bytes(f"{checkpoint}/model/consolidated/{file.name}", file.read_bytes())
    storage.write_text(f"{checkpoint}/checkpoint.json", "{}")
    storage.write_text(f"{checkpoint}/state/progress.json", "{}")
    for name in (checkpoint, f"{checkpoint}/", f"{checkpoint}/model/consolidated"):
        found = Path(fetch_model(EncoderOptions(model=model_of(name), cache_dir=str(tmp_path / "cache"))))
        assert {p.name for p in found.iterdir()} == {p.name for p in Path(model).iterdir()}
    if remote:
        MemoryFileSystem.store.clear()
