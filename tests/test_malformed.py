"""Recipes and command lines that cannot be meant: exit code 2 and one sentence, whatever they hold."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from raycurate.cli import main
from raycurate.core.config import load_recipe
from raycurate.core.errors import RaycurateError
from raycurate.pipeline import STAGES, config_of, options_of

BASE = "workdir: w\ncorpus: docs\nmodel: m\n"


def bomb(levels: int = 9) -> str:
    names = "abcdefghijklm"[: levels + 1]
    lines = [f"{names[0]}: &{names[0]} [{', '.join('x' * 9)}]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    return "embed:\n" + "".join(f"  {line}\n" for line in lines)


RECIPES: dict[str, bytes | str] = {
    "latin-1": "workdir: caf\u00e9\n".encode("latin-1"),
    "utf-16": BASE.encode("utf-16"),
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "weights": b"\x00" * 4096,
    "control character": BASE + "seed: \x07\n",
    "too large": BASE + "#" * 300_000,
    "integer option key": BASE + "embed: {1: x}\n",
    "null option key": BASE + "embed: {null: x}\n",
    "empty option key": BASE + "embed:\n  : x\n",
    "true as option key": BASE + "embed: {yes: x}\n",
    "list as key": BASE + "? [a]\n: 1\n",
    "integer section": BASE + "7: x\n",
    "null section": BASE + "null: x\n",
    "nested integer key": BASE + "embed: {actors: {1: 2}}\n",
    "list that holds itself": BASE + "embed: {metadata_fields: &a [*a]}\n",
    "mapping that holds itself": BASE + "embed: &e {engine_kwargs: *e}\n",
    "alias bomb": BASE + bomb(),
    "deep list": BASE + "embed: {metadata_fields: " + "[" * 20_000 + "]" * 20_000 + "}\n",
    "deep mapping": BASE + "embed: " + "{a: " * 20_000 + "\n",
    "deep block": BASE + "embed:\n" + "".join(" " * n + "- \n" for n in range(2, 300)),
    "key twice": BASE + "workdir: v\n",
    "section twice": BASE + "embed: {}\nembed: {}\n",
    "option twice": BASE + "embed:\n  batch_size: 1\n  batch_size: 2\n",
    "nested key twice": BASE + "embed: {actors: {num_cpus: 1, num_cpus: 2}}\n",
    "unclosed": BASE + "embed: {a: [1\n",
    "tab": "workdir: w\n\tcorpus: docs\n",
    "two documents": BASE + "---\n" + BASE,
    "text": "just words",
    "list": "- a\n- b\n",
    "number": "7\n",
    "unknown alias": BASE + "seed: *nobody\n",
    "unknown tag": BASE + "seed: !thing 3\n",
    "python tag": BASE + "seed: !!python/object/apply:os.system [true]\n",
    "wrong tag": BASE + "seed: !!int x\n",
    "empty workdir": "workdir:\ncorpus: docs\nmodel: m\n",
    "blank workdir": "workdir: ''\ncorpus: docs\nmodel: m\n",
    "empty model": "workdir: w\ncorpus: docs\nmodel:\n",
    "empty list of corpora": "workdir: w\ncorpus: []\nmodel: m\n",
    "workdir is a number": "workdir: 2024\ncorpus: docs\nmodel: m\n",
    "workdir is a list": "workdir: [a]\ncorpus: docs\nmodel: m\n",
    "model is a mapping": "workdir: w\ncorpus: docs\nmodel: {a: b}\n",
    "seed is text": BASE + "seed: x\n",
    "seed is a share": BASE + "seed: 1.5\n",
    "huge seed": BASE + f"seed: {2**70}\nkmeans: {{}}\n",
    "seed of 33 bits": BASE + f"seed: {2**33}\nkmeans: {{}}\n",
    "5000 digits": BASE + "seed: " + "9" * 5000 + "\n",
    "huge hexadecimal": BASE + "seed: 0x" + "f" * 5000 + "\n",
    "infinite": BASE + "finetune: {train: t, learning_rate: .inf}\n",
    "not a number": BASE + "kmeans: {tol: .nan}\n",
    "nested infinite": BASE + "embed: {actors: {num_cpus: .inf}}\n",
    "unknown section": BASE + "embbed: {}\n",
    "section is a list": BASE + "kmeans: [n_clusters]\n",
    "section is text": BASE + "kmeans: yes please\n",
    "section is a number": BASE + "embed: 3\n",
    "unknown option": BASE + "embed: {batchsize: 3}\n",
    "option of another section": BASE + "embed: {n_clusters: 3}\n",
    "option at the top": BASE + "n_clusters: 3\n",
    "wrong types": BASE + "embed: {batch_size: many, concurrency: {a: 1}, metadata_fields: title, normalize: maybe}\n",
    "number for text": BASE + "embed: {revision: 2024}\n",
    "unset variable": BASE + "embed: {revision: '${env:RAYCURATE_TEST_NOT_SET}'}\n",
    "circle": BASE + "embed: {revision: '${embed.prefix}', prefix: '${embed.revision}'}\n",
    "reference to nothing": BASE + "embed: {revision: '${embed.nothing}'}\n",
    "null byte": BASE + 'embed: {input: "a\\0b"}\n',
    "lone surrogate": BASE + 'embed: {input: "a\\ud800b"}\n',
    "empty output": BASE + "embed: {output: ''}\n",
    "binary": BASE + "embed: {input: !!binary aGVsbG8=}\n",
    "set": BASE + "embed: {metadata_fields: !!set {a, b}}\n",
    "engine without a class": BASE + "embed: {engine: 'os:'}\n",
    "engine without a module": BASE + "embed: {engine: ':path'}\n",
    "engine is a path": BASE + "embed: {engine: '/usr/lib:x'}\n",
    "relative engine": BASE + "embed: {engine: '.mine:E'}\n",
}

COMMANDS = [
    "nosuch",
    "embd input=x",
    "embed --batch-size 3",
    "embed --nosuch",
    "embed -c",
    "embed batch_size",
    "embed =3",
    "embed . =",
    "embed ..=3",
    "embed input=x output=o model=m embed.=3",
    "embed input=x output=o model=m actors.num_cpus.x=3",
    "embed input=x output=o model=m input.x=3",
    "embed input=x output=o",
    "embed input= output=o model=m",
    "embed input=x output= model=m",
    "embed input=x output=o model=",
    "embed input=x output=o model=m n_clusters=3",
    "embed input=x output=o model=m kmeans.n_clusters=3",
    "embed input=x output=o model=m concurrency=[1",
    "embed input=x output=o model=m batch_size=1e9999",
    "embed -c ~nouser/recipe.yaml",
    "embed -c .",
    "embed -c /dev/null/x",
    "embed -c {tmp}",
    "embed -c quikstart",
    "embed -c nosuch://host/r.yaml",
    "kmeans input=x output=o random_state=1180591620717411303424",
    "kmeans input=x output=o random_state=-1",
    "kmeans input=x output=o tol=inf",
    "kmeans input=x output=o n_clusters=0",
    "finetune train=x model=m output=o learning_rate=.inf",
    "finetune train=x model=m output=o learning_rate=-1e400",
    "run",
    "run -c quickstart --from embd",
    "run -c quickstart --from eval --to embed",
    "run -c quickstart n_clusters=3",
    "run -c quickstart --force dedupe",
    "run -c quickstart workdir= --dry-run",
    "info {tmp}/nothing",
    "info ~nouser",
    "verify {tmp}",
    "verify {tmp}/nothing",
    "verify",
    "rethreshold {tmp} 0.1",
    "rethreshold {tmp} abc",
    "report {tmp}",
    "report {tmp}/nothing",
    "submit nosuch",
    "submit embed input=x output=o model=m hf_token=hf_plain --address http://127.0.0.1:1",
    "prep --dataset nvidia/x",
    "prep --show q",
]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one sentence on stderr."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith("raycurate: error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = RECIPES[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content.encode() if isinstance(content, str) else content)
    commands = [["run"], ["run", "--dry-run"], ["info"], ["submit", "run", "--address", "http://127.0.0.1:1"]]
    if name == "unset variable":  # it may be set where the job runs
        commands.pop()
    said = {refused(capsys, [*command, "-c", str(recipe)]) for command in commands}
    assert len(said) == 1 and "recipe.yaml" in said.pop()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, command.replace("{tmp}", str(tmp_path)).split())


def test_bytes_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not valid UTF-8" in refused(capsys, ["embed", os.fsdecode(b"input=caf\xe9"), "output=o", "model=m"])


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "os:path"}, "engine=os:path: this is a module, not an encoder's class"),
        ({"engine": "os:getcwd"}, "not an encoder's class"),
        ({"engine": "json:JSONDecoder"}, "a class without accepts, prepare, run, close"),
        ({"engine": "json:Nothing"}, "there is no such encoder class (AttributeError"),
        ({"engine": "no_such_module_here:E"}, "there is no such encoder class (ModuleNotFoundError"),
        ({"input": "~nouser/docs"}, "no home folder is known for '~nouser'"),
        ({"input": "nothing"}, "nothing: there is no such file or folder"),
        ({"num_gpus": "1"}, "num_gpus=1: no node of the cluster has a GPU"),
        ({"device": "cuda"}, "device=cuda: no node of the cluster has a GPU"),
        ({"actors.num_gpus": "1"}, "actors.num_gpus=1: no node of the cluster has a GPU"),
        ({"input": "s3://key:very-secret@bucket/x", "input_": ""}, "unknown key 'input_'"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_what_only_shows_when_it_runs(
    options: dict[str, str], message: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one text")
    given = {"input": str(tmp_path / "a.txt"), "output": str(tmp_path / "out"), "model": "hash"}
    values = {**given, "engine": "tests.embed.hashing:HashEncoder", **options}
    code = main(["embed", *flags, *(f"{name}={value}" for name, value in values.items())])
    err = capsys.readouterr().err
    assert code == 2 and message in err and "Traceback" not in err and "very-secret" not in err
    assert [line for line in err.splitlines() if "error" in line][-1].startswith("raycurate: error: ")


# ------------------------------------------------------------------------------------------------ anything at all

ODD = ["", " ", "null", "~", "[", "]", "{", "{}", "[]", "[[1]]", "{a: 1}", "-1", "0", "1e400", "nan", "-inf", "0x10",
       "9" * 5000, "é\u4f60", "~nouser/x", "${env:RC_NOT_SET}", "${workdir}", "*x", "&x y", "!!python/name:os.system",
       "a: b", "# x", "'", '"', "[a, b", "true", "2024-01-01", "12:30", "@", "`", "%", "|", "?", "\t", "a\nb", "=",
       str(2**63), str(2**64), str(-(2**70))]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_any_text_for_any_option_is_a_value_or_one_error(stage: str) -> None:
    given = [f"{key}=x" for key in ("input", "train", "model", "output") if key in options_of(stage).model_fields]
    draw = random.Random(stage)
    for name in options_of(stage).model_fields:
        for text in draw.sample(ODD, 12):
            read(stage, [*given, f"{name}={text}"])
            read(stage, [*given, f"{name}.x={text}"])


def read(stage: str, overrides: list[str]) -> Any:
    """The stage's options, or the error that a user would be shown."""
    try:
        recipe = load_recipe(None, overrides, stages=STAGES, stage=stage, types=options_of)
        return config_of(stage, recipe).redacted()
    except RaycurateError as error:
        assert str(error).strip()
        return error


@pytest.mark.parametrize("seed", range(8))
def test_recipes_with_random_damage(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Letters removed, doubled, replaced: each either still is a recipe, or is refused in one sentence."""
    from importlib import resources

    draw = random.Random(seed)
    whole = (resources.files("raycurate") / "recipes" / "quickstart.yaml").read_bytes()
    marks = b"[]{}:,&*!|>'\"%@`#-? \n\t\x00\xff"
    for _ in range(25):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(damaged))
            kind = draw.randrange(3)
            if kind == 0:
                del damaged[place : place + draw.randint(1, 8)]
            elif kind == 1:
                damaged[place:place] = damaged[place : place + draw.randint(1, 40)]
            else:
                damaged[place] = draw.choice(marks)
        (tmp_path / "r.yaml").write_bytes(damaged)
        code = main(["run", "--dry-run", "-c", str(tmp_path / "r.yaml")])
        err = capsys.readouterr().err
        assert (code == 0 and not err) or (code == 2 and err.count("\n") == 1 and "Traceback" not in err), bytes(
            damaged
        )


# ---------------------------------------------------------------------------------------- what a shell hands over


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line for bash in which `rc` is this raycurate."""
    rc = f"rc() {{ '{sys.executable}' -m raycurate.cli \"$@\"; }}; "
    return subprocess.run(
        ["bash", "-c", rc + line], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_a_reader_that_leaves_is_no_error() -> None:
    done = shell("rc embed --help | head -1; echo ${PIPESTATUS[0]} >&2")
    assert done.stdout.startswith("usage: raycurate embed") and done.stderr.strip() in ("0", "141")
    assert shell("rc info | true").stderr == ""


def test_closed_streams() -> None:
    done = shell("rc info >&-; echo $?; rc info <&- >/dev/null; echo $?; rc nosuch 2>&-; echo $?")
    assert (done.stdout.split(), done.stderr) == (["0", "0", "2"], "")


def test_a_full_disk_under_stdout() -> None:
    done = shell("rc info >/dev/full")
    assert done.returncode == 2 and done.stderr.splitlines() == [
        "raycurate: error: standard output: it cannot be written (No space left on device)"
    ]


def test_ascii_only(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("workdir: caf\u00e9\ncorpus: docs\nmodel: m\n", encoding="utf-8")
    done = shell(f"rc run --dry-run -c {tmp_path}/r.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and r"caf\xe9/embeddings" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("line", "environment", "named"),
    [
        ("", {"HOME": "/proc/none"}, "/proc/none"),
        ("", {"HOME": "/dev/null/x"}, "/dev/null/x"),
        ("", {"TMPDIR": "/proc/none"}, "/proc/none"),
        ("", {"TMPDIR": "/tmp/" + "x" * 80}, "too long for Ray's sockets"),
        ("ulimit -v 6000000; ", {}, "ulimit -v unlimited"),
    ],
)
def test_ray_that_cannot_start(line: str, environment: dict[str, str], named: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    clean = {"RAY_ADDRESS": "", "RAY_TMPDIR": "", "RAY_AUTH_TOKEN": "", **environment}
    unset = "unset RAY_ADDRESS RAY_TMPDIR RAY_AUTH_TOKEN; "
    done = shell(f"{unset}{line}rc embed input={tmp_path}/a.txt output={tmp_path}/out model=m --dry-run", **clean)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert (last.startswith("raycurate: error: ") and named in last and "Set" in last) or "set" in last


@pytest.mark.usefixtures("local_ray")
def test_an_output_in_nobodys_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one text")
    engine = "engine=tests.embed.hashing:HashEncoder"
    assert main(["embed", f"input={tmp_path}", "output=~nouser/out", "model=hash", engine]) == 2
    assert "no home folder is known for '~nouser'" in capsys.readouterr().err and not Path("~nouser").exists()


def test_alone_it_prints_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n    {name}" in out for name in (*STAGES, "run", "info", "verify", "report", "submit")) and not err


# ------------------------------------------------------------------------------------- advice, followed to the letter

ADVICE = [
    (["embed", "input=x", "output=o", "model=m", "--batch-size=3"], r"key=value: (\S+)$", "{0}"),
    (["embed", "input=x", "output=o", "model=m", "bacth_size=3"], r"did you mean '(\w+)'", "{0}=3"),
    (["embed", "input=x", "output=o", "model=m", "actors.gpus=0"], r"did you mean '([\w.]+)'", "{0}=0"),
    (["embed", "input=x", "output=o", "model=m", "metadata_fields=lang"], r"of one thing: (\S+)$", "{0}"),
    (["embed", "input=x", "output=o", "model=m", "dtype=int8"], r"write one of (\w+),", "dtype={0}"),
    (["embed", "input=x", "output=o", "model=m", "num_gpus=some"], r"write a number or (\w+)$", "num_gpus={0}"),
    (["run", "-c", "quickstart", "n_clusters=3"], r"Write (\S+)=value$", "{0}=3"),
    (["embed", "-c", "quickstart", "kmeans.n_clusters=3"], r"or (.)un the whole recipe", ""),
    (["embed", "-c", "quikstart"], r"Did you mean '(\w+)'", "-c {0}"),
]


@pytest.mark.parametrize(("command", "advice", "instead"), ADVICE)
def test_advice_that_is_followed_works(
    command: list[str], advice: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(advice, refused(capsys, command).strip())
    assert found is not None
    first = command.index("-c") if instead.startswith("-c") else -1
    corrected = [*command[1:first], *instead.format(*found.groups()).split()] if first != -1 else [
        *command[1:-1], *instead.format(*found.groups()).split()
    ]  # fmt: skip
    named = corrected.index("-c") + 1 if "-c" in corrected else None
    overrides = [word for word in corrected if "=" in word]
    stage = None if command[0] == "run" else command[0]
    recipe = load_recipe(
        corrected[named] if named else None, overrides, stages=STAGES, stage=stage, types=options_of
    )  # fmt: skip
    for one in [stage] if stage else ["embed", "kmeans"]:
        assert config_of(one, recipe)


def test_quotes_that_are_advised_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(BASE + "embed: {revision: 2024}\n")
    found = re.search(r"with quotes: (.*)$", refused(capsys, ["run", "--dry-run", "-c", str(recipe)]).strip())
    assert found is not None
    recipe.write_text(BASE + f"embed:\n  {found[1]}\n")
    assert main(["run", "--dry-run", "-c", str(recipe)]) == 0 and "revision: '2024'" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["zzz", "x", "input_data_path_of_everything"])
def test_at_most_five_keys_are_named(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, ["embed", "input=x", "output=o", "model=m", f"{key}=1"])
    named = re.search(r"known keys: (.*) and \d+ more$", said.strip())
    assert named is not None and len(named[1].split(", ")) == 5
    for stage in STAGES:  # pydantic's own words for alternatives and checks
        assert not re.search(r"constrained|literal\[|function-|list\[|union|pydantic", str(read(stage, [f"{key}=1"])))


def test_no_inner_names_for_any_option() -> None:
    for stage in STAGES:
        given = [
            f"{name}=x" for name in ("input", "train", "model", "output") if name in options_of(stage).model_fields
        ]
        for name in options_of(stage).model_fields:
            for text in ("{a: {b: [1]}}", "[[1]]", "-7", "x y"):
                said = read(stage, [*given, f"{name}={text}"])
                if isinstance(said, RaycurateError):
                    assert not re.search(r"constrained|literal\[|function-|list\[|Input should|typing", str(said)), said
