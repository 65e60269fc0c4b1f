"""The command line as a new user meets it; the quick parts, most without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raycurate.cli import main
from raycurate.core.config import load_recipe, shipped_recipes
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.pipeline import STAGES, config_of, selected


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_option_of_embed_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["embed", "--help"])
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, info in EmbedConfig.model_fields.items():
        assert f"{name} (" in out
        assert info.description, f"{name} has no description"
        assert info.description.split()[0] in out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['raycurate', '--help']\n"
        "from raycurate.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'transformers', 'pandas', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_all_mistakes_of_a_recipe_are_told_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("workdir: w\nembed:\n  modle: x\n  batch_size: none\n  output_dtype: int8\n  input: docs\n")
    code, out, err = said(capsys, "embed", "-c", str(recipe))
    assert (code, out) == (2, "")
    assert "mine.yaml: embed" in err
    for part in ("model is missing", "did you mean 'model'", "batch_size='none'", "output_dtype='int8'"):
        assert part in err


def test_unknown_section_recipe_and_override(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("embbed: {}\n")
    assert "did you mean 'embed'" in said(capsys, "run", "-c", str(tmp_path / "r.yaml"))[2]
    assert "quickstart" in said(capsys, "run", "-c", "quikstart")[2]
    assert "key=value" in said(capsys, "embed", "-c", "quickstart", "model")[2]
    assert "model=..." in said(capsys, "embed", "--model", "x")[2]
    assert "Did you mean 'embed'" in said(capsys, "run", "-c", "quickstart", "--from", "embd")[2]
    code, _, err = said(capsys, "run", "-c", "quickstart", "--from", "embed", "--to", "sample-corpus")
    assert code == 2 and "comes after" in err


def test_dry_run_shows_resolved_options_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "run", "-c", "quickstart", "embed.hf_token=hf_abc123", "workdir=elsewhere", "--dry-run")
    assert code == 0
    assert "output: elsewhere/embeddings" in out and "input: elsewhere/corpus" in out
    assert "hf_abc123" not in out


def test_info_shows_the_state(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = said(capsys, "info", "-c", "quickstart", f"workdir={tmp_path}")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["sample-corpus"].endswith("not run")
    assert "embed" in lines
    assert "embed (documents -> embeddings)" in said(capsys, "info")[1]


def test_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = said(capsys, "verify", str(tmp_path))
    assert code == 2 and "no _manifest.json" in err
    key = {"stage": "embed", "algorithm_version": 1, "input_fingerprint": "x", "options": {}}
    (tmp_path / "a.parquet").write_bytes(b"1234")
    manifest = {"key": key, "files": [{"path": "a.parquet", "size": 4, "rows": 2}]}
    (tmp_path / "_manifest.json").write_text(json.dumps(manifest))
    code, out, _ = said(capsys, "verify", str(tmp_path))
    assert code == 0 and "1 files, 2 rows" in out


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    recipe = load_recipe(name, [], stages=STAGES)
    configs = {stage.name: config_of(stage.name, recipe) for stage in selected(recipe)}
    assert configs


def test_run_pipeline_then_skip_then_force(tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    """`raycurate run`: all stages, a second run that does nothing, --force that does it again."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("one text")
    (tmp_path / "docs" / "b.txt").write_text("one text")
    (tmp_path / "r.yaml").write_text(
        f"workdir: {tmp_path}/work\ncorpus: {tmp_path}/docs\nmodel: hash\n"
        "embed:\n  engine: tests.embed.hashing:HashEncoder\nkmeans: {}\ndedup: {}\n"
    )
    recipe = str(tmp_path / "r.yaml")
    code, out, _ = said(capsys, "run", "-c", recipe)
    assert code == 0 and "documents 2" in out and "sample-corpus" not in out
    assert "removed   1 (50.00%)" in out and "documents 1 kept" in out
    written = (tmp_path / "work" / "embeddings" / "_manifest.json").stat().st_mtime_ns
    again = said(capsys, "run", "-c", recipe)[1]
    assert all(f"== {stage} (done before)" in again for stage in ("embed", "kmeans", "dedup"))
    assert (tmp_path / "work" / "embeddings" / "_manifest.json").stat().st_mtime_ns == written
    code, out, _ = said(capsys, "run", "-c", recipe, "--force", "embed")
    assert code == 0 and "(done before)" not in out and "removed   1 (50.00%)" in out
    code, out, _ = said(capsys, "rethreshold", str(tmp_path / "work/dedup"), "0.01", "0.1")
    assert code == 0 and "eps 0.1  removed 1 of 2 (50.00%)" in out
    assert "done, 2 documents" in said(capsys, "info", "-c", recipe)[1]
    code, _, err = said(capsys, "run", "-c", recipe, "embed.keep_text=true")
    assert code == 2 and "keep_text: False -> True" in err
