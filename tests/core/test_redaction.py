"""Secrets: what is one, what is none, and that none gets out by any way a run has."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from raycurate.core.errors import RaycurateError
from raycurate.core.manifest import Manifest, OutputFile, StageKey, read_manifest, write_manifest
from raycurate.core.redaction import REDACTED, hide_credentials, redact

SECRET = "Pa55w0rdThatNobodyMaySee"
NAMES = [
    "hf_token",
    "token",
    "api_key",
    "apiKey",
    "apikey",
    "X-Api-Key",
    "x-api-key",
    "Authorization",
    "authorization",
    "Proxy-Authorization",
    "private_key",
    "privateKey",
    "password",
    "passwd",
    "client_secret",
    "aws_secret_access_key",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "credentials",
    "access_key_id",
    "account_key",
    "session_token",
    "Ocp-Apim-Subscription-Key",
    "Set-Cookie",
]
PLAIN = [
    "tokenizer",
    "max_tokens",
    "pad_token",
    "eos_token",
    "add_bos_token",
    "key",
    "keyword",
    "api_key_env",
    "nim_api_key_env",
    "private_key_path",
    "token_budget",
    "author",
    "authors",
    "secretary",
    "id_field",
]
TEXTS = [
    f"https://user:{SECRET}@host/v1",
    f"https://{SECRET}@host/v1",
    f"s3://AKIA1:{SECRET}@bucket/x",
    f"https://host/v1?api_key={SECRET}",
    f"https://host/v1?region=eu&sig={SECRET}&x=1",
    f"s3://bucket/some file.txt?secret_key={SECRET}",
    f"postgresql://me:{SECRET}@host:5432/db",
    f"cannot reach 'https://user:{SECRET}@host/v1': refused",
    f"Authorization: Bearer {SECRET}",
    f"{{'Authorization': 'Basic {SECRET}'}}",
    f"curl -H 'X-Api-Key: {SECRET}' https://host",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    f"hf_{SECRET}",
    f"sk-{SECRET}",
]
OPEN = [
    "s3://bucket/a b?region=eu&endpoint_override=localhost:9000",
    "hf://org/name@rev",
    "hf://name@rev",
    "https://host/v1",
    "abfss://container@account.dfs.core.windows.net/x",
    "what is a token? a=b",
    "FAQ?x=1",
    "me@example.org",
    "bearer of news",
    "https://${env:USER}:${env:PASSWORD}@host/v1",
    "https://host/v1?key=${env:KEY}",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    assert redact({"a": [{name: SECRET}]}) == {"a": [{name: REDACTED}]}
    assert SECRET not in str(redact({name: {"inner": [SECRET]}}))
    assert redact({name: "${env:NAME}", "b": None}) == {name: "${env:NAME}", "b": None}


def test_names_of_other_things() -> None:
    assert redact(dict.fromkeys(PLAIN, "shown")) == dict.fromkeys(PLAIN, "shown")


@pytest.mark.parametrize("text", TEXTS)
def test_secrets_in_text(text: str) -> None:
    assert SECRET not in hide_credentials(text) and REDACTED in hide_credentials(text)


@pytest.mark.parametrize("text", OPEN)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert hide_credentials(text) == text


def test_errors_and_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from raycurate.core.observe import get_logger, setup_logging

    assert SECRET not in str(RaycurateError(TEXTS[0], where=TEXTS[2], fix=TEXTS[3]))
    setup_logging()
    get_logger("raycurate.test").warning("reading %s with %s", TEXTS[0], TEXTS[8])
    logging.getLogger("raycurate.test").error(TEXTS[4])
    err = capsys.readouterr().err
    assert "reading https://" in err and SECRET not in err


def test_a_manifest_holds_none_and_its_key_is_still_its_key(tmp_path: Path) -> None:
    options = {"input": TEXTS[2], "engine_kwargs": {"headers": {"X-Api-Key": SECRET}}, "batch": 3}
    key = StageKey(stage="embed", algorithm_version=1, input_fingerprint="f", options=options)
    files = [OutputFile(path="a", size=1)]
    write_manifest(str(tmp_path), Manifest(key=key, inputs=TEXTS, files=files, settings={"model": TEXTS[0], **options}))
    assert SECRET not in (tmp_path / "_manifest.json").read_text()
    found = read_manifest(str(tmp_path))
    assert found is not None and found.key == StageKey(**{**key.model_dump(), "options": options})


@pytest.mark.parametrize(
    "values",
    [
        {"embed": {"engine_kwargs": {"headers": {"Authorization": f"Bearer {SECRET}"}}}},
        {"embed": {"engine_kwargs": {"private_key": SECRET}}},
        {"embed": {"model": f"https://host/v1?key={SECRET}"}},
        {"corpus": f"s3://a:{SECRET}@bucket/x"},
        {"model": f"https://{SECRET}@host/v1"},
    ],
)
def test_none_is_sent_with_a_job(values: dict[str, Any]) -> None:
    from raycurate.core.config import Recipe
    from raycurate.core.errors import ConfigError
    from raycurate.ray_runtime import jobs

    with pytest.raises(ConfigError, match="would be sent as plain text") as caught:
        jobs.submit("embed", Recipe(values, "r.yaml"), address="http://127.0.0.1:1")
    assert SECRET not in str(caught.value)


def test_names_of_variables_and_tokens_of_tokenizers_may_be_sent() -> None:
    from raycurate.core.config import Recipe
    from raycurate.ray_runtime import jobs

    values = {"finetune": {"pad_token": "eos"}, "eval": {"nim_api_key_env": "NVIDIA_API_KEY"}}
    jobs._refuse_literal_secrets(Recipe(values, "r.yaml"))


def test_dry_run_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from raycurate.cli import main

    given = [f"corpus={TEXTS[2]}", f"model={TEXTS[0]}", f"embed.engine_kwargs={{headers: {{X-Api-Key: {SECRET}}}}}"]
    assert main(["run", "-c", "quickstart", *given, "--dry-run"]) == 0
    assert main(["info", "-c", "quickstart", f"workdir={tmp_path}", f"model={TEXTS[0]}"]) == 0
    out, err = capsys.readouterr()
    assert "s3://" in out and SECRET not in out + err


def test_rows_and_the_report(tmp_path: Path) -> None:
    from raycurate.data.documents.rows import source_of
    from raycurate.report.folder import describe

    assert SECRET not in source_of(TEXTS[5]) and source_of("/a/b c.txt") == "/a/b c.txt"
    old = {"key": {"stage": "embed", "algorithm_version": 1, "input_fingerprint": "x", "options": {"model": TEXTS[0]}},
           "inputs": [TEXTS[2]], "files": [], "settings": {"api_key": SECRET}}  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(old))  # as an earlier version wrote it
    assert "the output of embed" in describe(str(tmp_path)) and SECRET not in describe(str(tmp_path))
