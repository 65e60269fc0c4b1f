"""What is typed on the command line, read by the option's declared type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field, SecretStr, TypeAdapter

from raycurate.core.config import load_recipe
from raycurate.core.errors import ConfigError
from raycurate.core.typed_text import phrase, read_typed
from raycurate.pipeline import STAGES, config_of, options_of, selected

TYPED = [
    "2024",
    "yes",
    "no",
    "1e5",
    "1.0",
    "0x1f",
    "[x",
    "{x",
    "notes #2",
    "a: b",
    "query: ",
    " lead",
    "*a",
    "&a",
    "!b",
    "# x",
    "2024-01-01",
    "12:30",
    "~/x",
    "~",
    "a=b",
    "%25",
    "@x",
    "- x",
    "-x",
    "'tis",
    "ünï",
    "010",
    "[x]",
    "{a: 1}",
    "FAQ - what is new?",
    "null",
    "none",
    "true",
    "a,b",
    "a\tb",
    "\\n",
    ".inf",
    "=",
    "<<",
]
OTHERS: list[Any] = [
    int,
    int | None,
    float,
    float | None,
    bool,
    bool | None,
    Annotated[int, Field(gt=0)] | Literal["auto"],
    bool | Literal["auto"],
    Literal["a", "b"],
    list[int],
    int | Literal["auto"] | list[int],
    dict[str, float],
    dict[int, float],
]


class Part(BaseModel):
    name: str
    size: int = 0


@pytest.mark.parametrize("text", TYPED)
def test_an_option_of_type_text_takes_what_was_typed(text: str) -> None:
    assert read_typed(text, str) == text
    assert read_typed(text, Annotated[str, Field(min_length=1)]) == text
    assert read_typed(text, SecretStr | None) == (None if text == "null" else text)
    assert read_typed(text, str | None) == (None if text == "null" else text)
    if text not in ("[x]", "{a: 1}"):
        assert read_typed(text, str | list[str]) == text


def test_what_stays_special_in_text() -> None:
    assert read_typed('"query: "', str) == "query: " and read_typed("'null'", str | None) == "null"
    assert read_typed('say "x"', str) == 'say "x"' and read_typed('"a" or "b"', str) == '"a" or "b"'
    assert read_typed("${workdir}/x", str) == "${workdir}/x" and read_typed("${n}", int) == "${n}"


def test_a_file_of_that_very_name_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_typed("[x, y]", str | list[str]) == ["x", "y"] and read_typed('"q"', str) == "q"
    for name in ("[x, y]", '"q"'):
        Path(name).touch()
        assert read_typed(name, str | list[str]) == name


def test_parts_of_lists_and_mappings_are_read_by_their_types() -> None:
    assert read_typed("[yes, 2024, '[x]', 1e5]", list[str]) == ["yes", "2024", "[x]", "1e5"]
    assert read_typed("[1, 2]", int | list[int]) == [1, 2]
    assert read_typed("{name: 2024, size: 3}", Part | None) == {"name": "2024", "size": 3}
    assert read_typed("[{name: on}, b]", list[str | Part]) == [{"name": "on"}, "b"]
    assert read_typed("{64: 1, 32: 0.5}", dict[int, float]) == {64: 1, 32: 0.5}
    assert read_typed("{a: null, b: 2}", dict[str, Any]) == {"a": None, "b": 2}


@pytest.mark.parametrize("declared", OTHERS)
@pytest.mark.parametrize("text", ["3", "-3", "0.5", "true", "false", "auto", "a", "[1, 2]", "{a: 1}", "null"])
def test_other_types_read_as_yaml_does_where_yaml_is_right(text: str, declared: Any) -> None:
    """Against PyYAML: what it makes valid for the type is what comes out, and what it does not stays invalid."""
    check = TypeAdapter(declared)

    def outcome(value: Any) -> Any:
        try:
            return check.validate_python(value, strict=isinstance(value, bool) or None)
        except ValueError:
            return "refused"

    assert outcome(read_typed(text, declared)) == outcome(yaml.safe_load(text))


def test_types_in_words() -> None:
    assert phrase(Annotated[int, Field(gt=0)] | Literal["auto"] | None) == "a whole number, auto or null"
    assert phrase(Literal["a", "b"]) == "one of a, b" and phrase(str) == "text"
    assert phrase(str | list[str]) == "text or a list [text, ...]"


# ----------------------------------------------------------------------------------------------------- in commands


def options(stage: str, *overrides: str) -> dict[str, Any]:
    recipe = load_recipe(None, overrides, stages=STAGES, stage=stage, types=options_of)
    return dict(config_of(stage, recipe).model_dump(exclude_unset=True))


def test_options_of_stages() -> None:
    said = options(
        "embed",
        "input=2024",
        "output=1e5",
        "model=null",
        "prefix=query: ",
        "batch_size=64",
        "dtype=bfloat16",
        "metadata_fields=[yes, 1]",
        "concurrency=[1, 2]",
        "actors.num_cpus=0.5",
        "hf_token=123",
    )
    assert (said["input"], said["output"], said["model"], said["prefix"]) == ("2024", "1e5", "null", "query: ")
    assert said["metadata_fields"] == ["yes", "1"] and said["actors"] == {"num_cpus": 0.5}
    assert (said["batch_size"], said["concurrency"], said["hf_token"].get_secret_value()) == (64, [1, 2], "123")
    judged = options("eval", "input=1", "output=o", "systems.small.model=2024", "systems.small.dimensions=8")
    assert judged["systems"]["small"] == {"model": "2024", "dimensions": 8}
    tuned = options("finetune", "train=[{path: 2024, num_samples: 3}, b]", "model=m", "output=o", "learning_rate=1e-4")
    assert tuned["train"][1] == "b" and tuned["train"][0]["num_samples"] == 3 and tuned["learning_rate"] == 1e-4
    mined = options("mine", "input=x", "output=o", "model=m", "encoder.query_prefix=query: ", "encoder.max_length=9")
    assert mined["encoder"] == {"query_prefix": "query: ", "max_length": 9}


def test_shared_keys_and_what_travels_as_a_recipe() -> None:
    recipe = load_recipe(
        None, ["workdir=2024", "model=yes", "seed=7", "corpus=a: b", "embed.revision=1e5", "embed.prefix=null"],
        stages=STAGES, types=options_of,
    )  # fmt: skip
    assert recipe.values == {
        "workdir": "2024", "model": "yes", "seed": 7, "corpus": "a: b", "embed": {"revision": "1e5", "prefix": None},
    }  # fmt: skip
    from raycurate.core import yaml_text

    assert yaml_text.load(yaml.safe_dump(recipe.values)) == recipe.values


def test_false_leaves_a_stage_out() -> None:
    def names(*overrides: str) -> list[str]:
        recipe = load_recipe("quickstart", overrides, stages=STAGES, types=options_of)
        return [stage.name for stage in selected(recipe)]

    assert "kmeans" in names() and "embed" in names()
    assert set(names()) - set(names("kmeans=false", "embed=false")) == {"kmeans", "embed"}
    assert "kmeans" in names("kmeans=false", "kmeans.n_clusters=3")  # the last word counts
    assert "convert" not in names() and "convert" in names("convert=true")


@pytest.mark.parametrize("bad", ["seed=x", "workdir=", "corpus=[]", "encoder=x"])
def test_shared_keys_are_checked(bad: str) -> None:
    with pytest.raises(ConfigError, match=bad.partition("=")[0]):
        recipe = load_recipe(None, [bad, "model=m", "workdir=w"][: 1 if "workdir" in bad else 3], stages=STAGES,
                             types=options_of)  # fmt: skip
        config_of("mine", recipe)
