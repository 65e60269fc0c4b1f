"""Recipes: what is read, what wins, and what an error tells."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import SecretStr

from raycurate.core.config import StageConfig, fingerprint, load_recipe, option, resolve
from raycurate.core.errors import ConfigError
from raycurate.core.redaction import REDACTED, redact

STAGES = ("embed", "dedup")


class Options(StageConfig):
    """A stage's options, as small as they come."""

    input: str = option(description="where it comes from")
    batch_size: int = option(32, "rows at a time", operational=True, ge=1)
    eps: float = option(0.01, "how close", gt=0, lt=1)
    hf_token: SecretStr | None = option(None, "for the hub")


def recipe_file(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'batchsize'; did you mean 'batch_size'\?"):
        Options.parse({"input": "x", "batchsize": 3}, where="recipe.yaml: embed")


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        Options.parse({"batchsize": 3, "eps": 7, "batch_size": 0}, where="recipe.yaml: embed")
    message = str(caught.value)
    assert message.startswith("recipe.yaml: embed: ")
    for part in ("batchsize", "input is missing", "eps=7", "less than 1", "batch_size=0", "greater than or equal to 1"):
        assert part in message


def test_a_bad_secret_is_not_printed() -> None:
    with pytest.raises(ConfigError) as caught:
        Options.parse({"input": "x", "hf_token": ["hf_verysecret"]}, where="r")
    assert "verysecret" not in str(caught.value)


def test_command_line_over_recipe_over_default(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "workdir: w\nembed:\n  input: docs\n  eps: 0.2\n")
    config = Options.parse(load_recipe(path, ["eps=0.3"], stages=STAGES, stage="embed").section("embed"), where="t")
    assert (config.input, config.eps, config.batch_size) == ("docs", 0.3, 32)
    whole = load_recipe(path, ["embed.eps=0.4", "workdir=/other"], stages=STAGES)
    assert whole.section("embed")["eps"] == 0.4
    assert whole.shared()["workdir"] == "/other"


def test_shared_override_beats_the_same_key_in_the_section(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "model: a\nembed:\n  model: b\n")
    assert load_recipe(path, ["model=c"], stages=STAGES, stage="embed").section("embed")["model"] == "c"


def test_override_values_are_yaml() -> None:
    section = load_recipe(
        None, ["a=1", "b=true", "c=[x, y]", "d={k: 2}", "e=", "f=s3://b/k=v"], stages=STAGES, stage="embed"
    )
    assert section.values["embed"] == {"a": 1, "b": True, "c": ["x", "y"], "d": {"k": 2}, "e": "", "f": "s3://b/k=v"}


@pytest.mark.parametrize("bad", ["eps", "=3", "embd.eps=3"])
def test_malformed_overrides(bad: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(None, [bad], stages=STAGES)


def test_interpolation_keeps_types_and_joins_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RC_TEST_DIR", "/data")
    monkeypatch.delenv("RC_TEST_UNSET", raising=False)
    path = recipe_file(
        tmp_path,
        "workdir: ${env:RC_TEST_DIR}/w\nseed: 7\nembed:\n  input: ${workdir}/docs\n  seed: ${seed}\n"
        "  list: [1, 2]\n  other: ${embed.list}\n  fallback: ${env:RC_TEST_UNSET,none}\n"
        "dedup:\n  from: ${embed.input}\n",
    )
    recipe = load_recipe(path, [], stages=STAGES)
    section = recipe.section("embed")
    assert section["input"] == "/data/w/docs"
    assert section["seed"] == 7 and section["other"] == [1, 2] and section["fallback"] == "none"
    assert recipe.section("dedup")["from"] == "/data/w/docs"
    assert recipe.values["embed"]["input"] == "${workdir}/docs"  # as written, fit to be sent elsewhere


def test_an_override_reaches_what_refers_to_it(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "workdir: a\nembed:\n  input: ${workdir}/docs\n")
    assert load_recipe(path, ["workdir=b"], stages=STAGES, stage="embed").section("embed")["input"] == "b/docs"


def test_unset_variable_circle_and_unknown_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RC_TEST_UNSET", raising=False)
    with pytest.raises(ConfigError, match="environment variable RC_TEST_UNSET is not set"):
        resolve("${env:RC_TEST_UNSET}", {}, "r")
    with pytest.raises(ConfigError, match="a -> b -> a go round in a circle"):
        resolve("${a}", {"a": "${b}", "b": "${a}"}, "r")
    with pytest.raises(ConfigError, match=r"\$\{embed.nope\} names nothing"):
        resolve("${embed.nope}", {"embed": {}}, "r")


def test_secrets_are_redacted_and_references_are_not() -> None:
    shown = redact(
        {"hf_token": "hf_abc", "api_key": "${env:KEY}", "url": "s3://me:pw@host/x", "num_tokens": 5, "n": [1]}
    )
    assert shown == {
        "hf_token": REDACTED,
        "api_key": "${env:KEY}",
        "url": f"s3://{REDACTED}@host/x",
        "num_tokens": 5,
        "n": [1],
    }
    config = Options.parse({"input": "x", "hf_token": "hf_abc"}, where="r")
    assert (
        "hf_abc" not in str(config.redacted())
        and "hf_abc" not in str(config.result_keys())
        and "hf_abc" not in repr(config)
    )


def test_words_that_only_look_like_secrets_are_shown() -> None:
    plain = {"tokenizer": "bert", "max_tokens": "auto", "keyword": "x", "key": "y", "token_budget": 512}
    assert redact(plain) == plain


def test_only_result_keys_change_the_fingerprint() -> None:
    base = Options.parse({"input": "x"}, where="r").result_keys()
    assert set(base) == {"input", "eps", "hf_token"}
    faster = Options.parse({"input": "x", "batch_size": 64}, where="r").result_keys()
    other = Options.parse({"input": "x", "eps": 0.02}, where="r").result_keys()
    assert fingerprint(base) == fingerprint(faster) != fingerprint(other)


def test_fingerprint_is_of_the_value_not_of_its_order() -> None:
    digest = hashlib.sha256('{"a":1,"b":["ä"]}'.encode()).hexdigest()
    assert fingerprint({"a": 1, "b": ["ä"]}) == fingerprint({"b": ["ä"], "a": 1}) == digest[:16]


def test_bad_yaml_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "embed:\n  input: [a, b\nworkdir: x\n")
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        load_recipe(path, [], stages=STAGES)
    assert path in str(caught.value) and "line" in str(caught.value)


def test_a_recipe_is_a_mapping_with_known_sections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a recipe is a mapping, this is a list"):
        load_recipe(recipe_file(tmp_path, "- a\n"), [], stages=STAGES)
    with pytest.raises(ConfigError, match="unknown key 'embde'; did you mean 'embed'"):
        load_recipe(recipe_file(tmp_path, "embde: {}\n"), [], stages=STAGES)
    with pytest.raises(ConfigError, match="'embed' is 3, which has no keys"):
        load_recipe(recipe_file(tmp_path, "embed: 3\n"), ["eps=1"], stages=STAGES, stage="embed")
    with pytest.raises(ConfigError, match="'embed' must be a mapping of options"):
        load_recipe(recipe_file(tmp_path, "embed: 3\n"), [], stages=STAGES).section("embed")


def test_no_such_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Shipped recipes:"):
        load_recipe(str(tmp_path / "nope.yaml"), [], stages=STAGES)


def test_an_empty_recipe_and_an_empty_section_are_fine(tmp_path: Path) -> None:
    assert load_recipe(recipe_file(tmp_path, ""), [], stages=STAGES).section("embed") == {}
    assert load_recipe(recipe_file(tmp_path, "embed:\n"), [], stages=STAGES).section("embed") == {}
    overridden = load_recipe(recipe_file(tmp_path, "embed:\n"), ["eps=0.5"], stages=STAGES, stage="embed")
    assert overridden.section("embed") == {"eps": 0.5}
    shared = load_recipe(recipe_file(tmp_path, "model: a\nembed:\n"), ["model=b"], stages=STAGES, stage="embed")
    assert shared.shared()["model"] == "b"
