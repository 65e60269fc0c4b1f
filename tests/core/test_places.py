"""An output that overlaps an input is refused, in every stage and for every option that names a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycurate.core.config import load_recipe
from raycurate.core.errors import ConfigError
from raycurate.core.places import kind_of, refuse_overlaps, resolved
from raycurate.data.documents.documents import DocumentsOptions
from raycurate.pipeline import STAGES, config_of

NEEDED: dict[str, dict[str, Any]] = {
    "embed": {"model": "m", "engine": "a:B"},
    "mine": {"model": "m"},
    "prep": {"model": "m"},
    "finetune": {"model": "m", "val": None},
    "eval": {"model": "m"},
    "convert": {},
    "kmeans": {},
    "dedup": {},
    "unroll": {},
}
PLACES = [
    (stage, name)
    for stage in NEEDED
    for name, info in STAGES[stage].Config.model_fields.items()
    if kind_of(info) in ("input", "model") and name != "init"  # which is a file
]


def parse(stage: str, **values: Any) -> None:
    STAGES[stage].Config.parse(values, where=stage)


def values_of(stage: str, name: str, path: str) -> dict[str, Any]:
    main = "train" if stage == "finetune" else "input"
    listed = name in ("mining_models", "exclude_positives_of")
    value: Any = [path] if listed else path
    return {**NEEDED[stage], main: "elsewhere", name: value}


@pytest.mark.parametrize(("stage", "name"), PLACES)
def test_every_place_that_a_stage_reads_is_looked_at(tmp_path: Path, stage: str, name: str) -> None:
    place = tmp_path / "in"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    spellings = [str(place), f"{tmp_path}/x/../in", f"file://{place}", f"{tmp_path}/link", f"{place}/"]
    for spelling in spellings:
        for output, said in [(place, "is"), (place / "deep" / "out", "lies inside"), (tmp_path, "lies above")]:
            with pytest.raises(ConfigError, match=rf"the output \(.*\) {said} "):
                parse(stage, **values_of(stage, name, spelling), output=str(output))


@pytest.mark.parametrize(
    ("output", "path", "overlaps"),
    [
        ("s3://b/emb", "s3://b/emb/", True),
        ("s3://b/emb", "s3a://b/x/../emb?region=eu", True),
        ("s3://b/emb", "s3://b/embeddings", False),
        ("s3://b", "s3://b/docs", True),
        ("gs://b/a", "s3://b/a", False),
        ("w/emb", "w/*.jsonl", False),
        ("w/emb", "w/**/*.jsonl", True),
        ("w/emb", "w/*/*.jsonl", True),
        ("w/emb", "w/d*/*.jsonl", False),
        ("w", "w/*.jsonl", True),
        ("w2", "w", False),
        ("out", "hf://org/out", False),
    ],
)
def test_globs_and_uris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, path: str, overlaps: bool
) -> None:
    monkeypatch.chdir(tmp_path)

    class Config(DocumentsOptions):
        output: str

    config = Config(input=path, output=output)
    if overlaps:
        with pytest.raises(ConfigError):
            refuse_overlaps(config, where="x")
    else:
        refuse_overlaps(config, where="x")


def test_what_is_no_path_is_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "embeddings").mkdir()
    parse("kmeans", input="vectors", output="embeddings", embedding_field="embeddings")
    parse("embed", input="docs", output="org", model="org/name", engine="a:B")  # a model of the hub
    parse("embed", input="docs", output="python:x", model="python:x", engine="a:B")
    parse("mine", input="train.json", output="work/mined", model="m", cache="work/cache")


def test_a_cache_may_lie_anywhere_but_not_be_the_output() -> None:
    parse("mine", input="train.json", output="work", model="m", cache="work/cache")
    with pytest.raises(ConfigError, match="cache=work"):
        parse("mine", input="train.json", output="work", model="m", cache="work")


def test_the_options_of_systems_are_looked_at(tmp_path: Path) -> None:
    systems = {"other": {"model": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"systems\.other\.model="):
        parse("eval", input="beir", output=str(tmp_path / "out"), systems=systems)


def test_a_file_of_first_centroids_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "first.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match="lies above init="):
        parse("kmeans", input="elsewhere", output=str(tmp_path), init=str(tmp_path / "first.npy"))


def test_a_recipe_is_refused_before_its_first_stage(tmp_path: Path) -> None:
    recipe = load_recipe(None, [f"corpus={tmp_path}", f"workdir={tmp_path}/work", "model=m"], stages=STAGES)
    with pytest.raises(ConfigError, match="lies inside"):
        config_of("embed", recipe)


def test_a_path_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    assert resolved(f"{tmp_path}/b/../b/x") == str((tmp_path / "a").resolve() / "x")


def test_options_that_name_places_are_known() -> None:
    """A new option whose help speaks of a folder, a file or a URI has to be marked with `place=`, or named here."""
    known = {"systems", "nim_url", "nim_api_key_env"}
    other = {"metadata_fields", "use_negatives_from_file", "split", "text_field", "contract"}
    said = {
        f"{stage}.{name}"
        for stage, found in STAGES.items()
        for name, info in found.Config.model_fields.items()
        if kind_of(info) is None
        and name not in known | other
        and "str" in str(info.annotation)
        and any(word in (info.description or "") for word in ("A folder", "Folder", "a folder", ".json file"))
    }
    assert not said
