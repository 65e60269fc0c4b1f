"""The embed stage on good and on bad input, as a user would meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycurate.core.errors import ConfigError, InputError, OutputExistsError, RaycurateError
from raycurate.encoders.embed_options import EmbedConfig
from raycurate.models.contract import contract_from_schema
from raycurate.stages.embed.stage import STAGE, EmbedResult
from raycurate.streams.staging import TooManyRejectsError
from tests.embed.hashing import DIMENSION, hash_vector

pytestmark = pytest.mark.usefixtures("local_ray")


def options(tmp_path: Path, **values: Any) -> EmbedConfig:
    base = {
        "input": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "model": "hash",
        "engine": "tests.embed.hashing:HashEncoder",
    }
    return EmbedConfig.parse({**base, **values}, where="test")


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def table_of(result: EmbedResult) -> pa.Table:
    files = [f.path for f in result.manifest.files if f.path.endswith(".parquet")]
    return pa.concat_tables([pq.read_table(Path(result.output) / path) for path in files])


def rejects_of(result: EmbedResult) -> dict[str, str]:
    files = [Path(result.output) / f.path for f in result.manifest.files if f.path.startswith("_rejects/")]
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return {row["id"]: row["reject_reason"] for row in rows}


def nothing_written(tmp_path: Path) -> bool:
    return not (tmp_path / "out" / "_manifest.json").exists()


def test_format_of_the_output(tmp_path: Path) -> None:
    """FORMATS: id, fixed-size list of floats, metadata asked for; the contract in the schema and beside it."""
    rows = [{"id": f"d{i}", "text": f"text {i}", "title": f"t{i}", "lang": "en", "other": 1} for i in range(20)]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    result = STAGE.run(options(tmp_path, metadata_fields=["lang"], output_dtype="float16", embedding_field="vec"))
    table = table_of(result)
    assert table.column_names == ["id", "vec", "lang"]
    assert table.schema.field("vec").type == pa.list_(pa.float16(), DIMENSION)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    np.testing.assert_array_equal(np.stack(table["vec"].to_pylist())[3], hash_vector("t3 text 3"))
    contract = contract_from_schema(table.schema)
    assert contract is not None
    beside = json.loads((tmp_path / "out" / "_contract.json").read_text())
    assert json.loads(contract.to_json()) == beside
    assert beside["engine"] == "hashing"
    assert not (tmp_path / "out" / "_staging").exists()


def test_second_run_skips_and_a_changed_option_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"id": "a", "text": "x"}])
    first = STAGE.run(options(tmp_path))
    before = (tmp_path / "out" / "_manifest.json").read_bytes()
    again = STAGE.run(options(tmp_path, concurrency=1, block_bytes=100))
    assert (first.skipped, again.skipped) == (False, True)
    assert (tmp_path / "out" / "_manifest.json").read_bytes() == before
    assert STAGE.state(options(tmp_path)).startswith("done")
    with pytest.raises(OutputExistsError, match="output_dtype: 'float32' -> 'float16'"):
        STAGE.run(options(tmp_path, output_dtype="float16"))
    assert (tmp_path / "out" / "_manifest.json").read_bytes() == before
    replaced = STAGE.run(options(tmp_path, output_dtype="float16", overwrite=True))
    assert table_of(replaced).schema.field("embeddings").type == pa.list_(pa.float16(), DIMENSION)
    on_disk = sorted(p.name for p in (tmp_path / "out").glob("*.parquet"))
    assert on_disk == sorted(f.path for f in replaced.manifest.files)


def test_a_changed_input_is_noticed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"id": "a", "text": "x"}])
    STAGE.run(options(tmp_path))
    write_jsonl(tmp_path / "in" / "b.jsonl", [{"id": "b", "text": "y"}])
    assert "input's files" in STAGE.state(options(tmp_path))
    with pytest.raises(OutputExistsError, match="input's files"):
        STAGE.run(options(tmp_path))


def test_every_bad_row_is_counted_with_its_reason(tmp_path: Path) -> None:
    good = [{"id": f"g{i}", "text": f"fine {i}"} for i in range(30)]
    bad = [
        {"id": "null", "text": None},
        {"id": "blank", "text": " \n "},
        {"id": "number", "text": 7},
        {"id": "absent"},
        {"id": "long", "text": "x" * 5_000},
        {"id": "nan", "text": "this is poison for the model"},
        '{"id": "cut", "text": "no end',
        "[1, 2]",
    ]
    write_jsonl(tmp_path / "in" / "a.jsonl", [*good, *bad])
    with (tmp_path / "in" / "a.jsonl").open("ab") as out:
        out.write(b'\n{"id": "bytes", "text": "\xff\xfe"}\n')
    (tmp_path / "in" / "broken.jsonl.gz").write_bytes(b"not gzip at all")
    result = STAGE.run(options(tmp_path, engine_kwargs={"poison": "poison"}, max_chars=4999, over_long="reject"))
    assert result.manifest.rejects == {
        "null_text": 1,
        "empty_text": 1,
        "wrong_type": 1,
        "missing_text": 1,
        "too_long": 1,
        "non_finite_vector": 1,
        "invalid_json": 1,
        "not_an_object": 1,
        "undecodable": 1,
        "unreadable_file": 1,
    }
    assert sorted(table_of(result)["id"].to_pylist()) == sorted(row["id"] for row in good)
    assert sum(result.manifest.rejects.values()) == len(rejects_of(result))
    assert "null_text 1" in result.summary()


def test_integer_ids_and_long_books_and_folders_that_say_something(tmp_path: Path) -> None:
    for lang in ("en", "fr"):
        (tmp_path / "in" / f"lang={lang}").mkdir(parents=True)
    pq.write_table(pa.table({"id": [7], "text": ["ab " * 3000]}), tmp_path / "in" / "lang=en" / "a.parquet")
    pq.write_table(pa.table({"id": [9], "text": ["short"]}), tmp_path / "in" / "lang=fr" / "b.parquet")
    result = STAGE.run(options(tmp_path, metadata_fields=["lang"], max_chars=30))
    table = table_of(result)
    assert table.schema.field("id").type == pa.int64()
    assert list(zip(table["id"].to_pylist(), table["lang"].to_pylist(), strict=True)) == [(7, "en"), (9, "fr")]
    np.testing.assert_array_equal(np.stack(table["embeddings"].to_pylist())[0], hash_vector("ab " * 10))
    assert result.manifest.counts["over_long"] == 1
    assert "over-long 1" in result.summary()


def test_documents_that_share_an_id_are_refused_or_kept_apart(tmp_path: Path) -> None:
    """The case `repeated-ids`; the advice of the error is followed, and nothing is embedded a second time for it."""
    for name, texts in {"a": ["one", "two", "three"], "b": ["four", "one", "six"]}.items():
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])
    log = {"engine_kwargs": {"log": str(tmp_path / "log")}}
    with pytest.raises(InputError, match=r"3 rows have the id .*'0' in .*b\.jsonl.*repeated_ids=rename"):
        STAGE.run(options(tmp_path, **log))
    assert nothing_written(tmp_path)
    result = STAGE.run(options(tmp_path, repeated_ids="rename", **log))
    assert len((tmp_path / "log").read_text().splitlines()) == 6
    assert (result.manifest.counts["documents"], result.manifest.counts["renamed"]) == (6, 3)
    assert "renamed   3" in result.summary()
    table = table_of(result)
    assert table["id"].to_pylist()[:3] == ["0", "1", "2"]
    assert [name.partition("#")[0] for name in table["id"].to_pylist()[3:]] == ["0", "1", "2"]
    assert len(set(table["id"].to_pylist())) == 6
    np.testing.assert_array_equal(np.stack(table["embeddings"].to_pylist())[4], hash_vector("one"))


def test_ten_percent_null_texts_in_parquet_and_the_limit(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = [None if i % 10 == 0 else f"text {i}" for i in range(500)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in" / "a.parquet", row_group_size=50)
    with pytest.raises(TooManyRejectsError, match="max_rejects is 20"):
        STAGE.run(options(tmp_path, max_rejects=20, block_bytes=300))
    assert nothing_written(tmp_path)
    result = STAGE.run(options(tmp_path, max_rejects=50, block_bytes=300))
    assert (result.manifest.counts["documents"], result.manifest.rejects) == (450, {"null_text": 50})


@pytest.mark.parametrize(
    ("prepare", "values", "message"),
    [
        (lambda folder: folder.mkdir(), {}, "no file"),
        (lambda folder: None, {}, "there is no such"),
        (
            lambda folder: write_jsonl(folder / "a.jsonl", [{"id": "a", "text": None}]),
            {},
            r"no document could be embedded \(null_text 1\)",
        ),
        (
            lambda folder: (folder.mkdir(), pq.write_table(pa.table({"body": ["a"]}), folder / "a.parquet")),
            {},
            "text",
        ),
        (
            lambda folder: (folder.mkdir(), pq.write_table(pa.table({"text": [1, 2]}), folder / "a.parquet")),
            {},
            "int64",
        ),
    ],
    ids=["empty folder", "missing path", "only rejects", "no text column", "text of the wrong type"],
)
def test_input_that_cannot_be_used(tmp_path: Path, prepare: Any, values: dict[str, Any], message: str) -> None:
    prepare(tmp_path / "in")
    with pytest.raises(InputError, match=message):
        STAGE.run(options(tmp_path, **values))
    assert nothing_written(tmp_path)


def test_model_that_does_not_exist(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"id": "a", "text": "x"}])
    for model in ("no-such-organisation/no-such-model", str(tmp_path / "no_model"), "python:no_such_package"):
        with pytest.raises(RaycurateError, match=r"no.such"):
            STAGE.run(options(tmp_path, model=model, engine="transformers", local_files_only=True))
    assert nothing_written(tmp_path)


def test_misspelt_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key 'bach_tokens'; did you mean 'batch_tokens'"):
        EmbedConfig.parse({"input": "a", "output": "b", "model": "m", "bach_tokens": 3}, where="test")
    with pytest.raises(ConfigError, match="min <= max"):
        EmbedConfig.parse({"input": "a", "output": "b", "model": "m", "concurrency": [4, 2]}, where="test")


def test_a_file_that_is_not_a_model_s_fault(tmp_path: Path) -> None:
    """An engine that fails stops the run with its own words; what was staged before stays for the next run."""
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"id": "a", "text": "x"}])
    with pytest.raises(ConfigError, match=r"tests\.embed\.hashing:NoSuchEncoder"):
        STAGE.run(options(tmp_path, engine="tests.embed.hashing:NoSuchEncoder"))
    assert nothing_written(tmp_path)


def test_real_model_equals_sentence_transformers(tmp_path: Path, minilm: str) -> None:
    """Titles, truncation and two files: the stage's vectors are those of the reference."""
    from sentence_transformers import SentenceTransformer

    rows = [
        {"id": f"d{i}", "title": "Boats" if i % 2 else "", "text": f"The boat number {i} sails to sea. " * (1 + i * 3)}
        for i in range(24)
    ]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows[:10])
    write_jsonl(tmp_path / "in" / "b.jsonl", rows[10:])
    config = options(tmp_path, model=minilm, engine="transformers", dtype="float32", block_bytes=2_000)
    result = STAGE.run(config)
    table = table_of(result)
    vectors = np.stack(table["embeddings"].to_pylist())
    texts = [f"{row['title']} {row['text']}".strip() for row in rows]
    expected = SentenceTransformer(minilm, device="cpu").encode(texts)
    order = [table["id"].to_pylist().index(row["id"]) for row in rows]
    assert (vectors[order] * expected).sum(1).min() > 0.99999
    assert result.manifest.counts["tokens"] > 24 * 8
    assert result.manifest.counts["truncated"] > 0
