"""`raycurate eval` from end to end with small encoders: what it writes, goes on with, refuses and fails on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycurate.cli import main
from raycurate.core.errors import ConfigError, InputError
from raycurate.data.corpora.beir import read_beir, write_beir
from raycurate.stages.eval.config import EvalConfig
from raycurate.stages.eval.stage import STAGE, DriftError
from raycurate.stages.eval.systems import read_hits
from tests.embed.hashing import hash_vector
from tests.encoders.server import serving

HASHED: dict[str, Any] = {"engine": "tests.embed.hashing:HashEncoder", "concurrency": 1}
WORDS = ["rain", "stone", "bridge", "dawn", "cloud", "river", "house", "wind"]


def write_set(tmp_path: Path) -> str:
    """60 questions of two words; the relevant document has them and one more."""
    draw = np.random.default_rng(0)
    documents = [" ".join(draw.choice(WORDS, 3)) + f" number{i}" for i in range(70)]
    queries = [" ".join(text.split()[:2]) for text in documents[:60]]
    write_beir(
        str(tmp_path / "beir"),
        corpus=[*({"_id": f"d{i}", "text": text} for i, text in enumerate(documents)), {"_id": "empty", "text": " "}],
        queries=[{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)],
        qrels={"test": {f"q{i}": {f"d{i}": 1, "empty": 0} for i in range(60)}},
    )
    return str(tmp_path / "beir")


@pytest.fixture
def beir(tmp_path: Path) -> str:
    return write_set(tmp_path)


def config(beir: str, folder: Path, **options: Any) -> EvalConfig:
    values = {"input": beir, "output": str(folder), "model": "hash", "encoder": HASHED, **options}
    return EvalConfig.parse(values, where="test")


@pytest.mark.usefixtures("local_ray")
def test_what_it_writes(beir: str, tmp_path: Path) -> None:
    log = tmp_path / "encoded.txt"
    other = {"model": "hash", "encoder": {"engine_kwargs": {"log": str(log)}}, "same_as": "base"}
    asked = config(beir, tmp_path / "eval", systems={"copy": other})
    assert STAGE.state(asked) == "not run"
    result = STAGE.run(asked)
    assert result.systems == ["bm25", "base", "copy", "bm25+base"]
    assert result.manifest.counts == {"systems": 4, "queries": 60, "documents": 71, "left_out": 0}
    assert result.metadata["collection"]["judgements"] == 120
    assert result.metric("base", "NDCG@10") == result.metric("copy", "NDCG@10")
    assert result.comparison("copy", "base")["ties"] == 60  # type: ignore[index]
    assert result.drifted == []
    assert len(result.metadata["drift"]) == 20
    hits = json.loads(json.dumps(result.per_query.to_pylist()))
    assert len(hits) == 4 * 60
    assert "drift of copy from base: all 20 metrics agree" in result.summary()
    assert "95% of NDCG@10" in result.summary()
    assert STAGE.state(asked) == "done, 4 systems on 60 questions"
    encoded = log.read_text()
    assert STAGE.run(asked).skipped
    assert log.read_text() == encoded
    assert main(["verify", str(tmp_path / "eval")]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_smaller_vectors(beir: str, tmp_path: Path) -> None:
    """Of 16 buckets the first 4, re-scored bytes, and bits alone, all from the one set of vectors in the cache."""
    systems = {
        "int8": {"model": "hash", "quantization": "int8", "rescore": 20, "same_as": "base"},
        "bits": {"model": "hash", "quantization": "binary", "rescore": 0},
        "short": {"model": "hash", "dimensions": 4},
    }
    result = STAGE.run(config(beir, tmp_path / "eval", systems=systems, bm25=False, cache=str(tmp_path / "cache")))
    about = result.metadata["systems"]
    assert [about[name]["bytes_per_document"] for name in result.systems] == [64, 16, 2, 16]
    assert [about[name]["embedded_now"] > 0 for name in result.systems] == [True, False, False, False]
    assert result.drifted == []
    assert result.metric("short", "NDCG@10") < result.metric("base", "NDCG@10")
    with pytest.raises(ConfigError, match="17"):
        STAGE.run(config(beir, tmp_path / "other", systems={"long": {"model": "hash", "dimensions": 17}}))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_model_of_many_vectors_is_searched_by_maxsim(beir: str, tmp_path: Path) -> None:
    """Each word has a vector of length one: a question scores the number of its words whose bucket a document has."""
    encoder = {**HASHED, "engine": "tests.embed.hashing:HashTokens"}
    result = STAGE.run(config(beir, tmp_path / "eval", encoder=encoder, bm25=False))
    assert result.metadata["systems"]["base"]["kind"] == "multi_vector"
    data = read_beir(beir)
    texts = {row["_id"]: row["text"].split() for row in data.corpus.to_pylist() if row["text"].strip()}
    buckets = {name: {int(hash_vector(word).argmax()) for word in words} for name, words in texts.items()}
    hits = read_hits(str(tmp_path / "eval" / "hits" / "base.parquet"), data)
    for row, text in enumerate(data.queries["text"].to_pylist()):
        asked = [int(hash_vector(word).argmax()) for word in text.split()]
        scores = {name: sum(bucket in found for bucket in asked) for name, found in buckets.items()}
        best = sorted(scores, key=lambda name: (scores[name], name), reverse=True)
        assert hits.document_ids_QK[row, : len(best)].tolist() == best
    short = {"base2": {"model": "hash", "dimensions": 4}}
    with pytest.raises(ConfigError, match="searched with whole vectors only"):
        STAGE.run(config(beir, tmp_path / "other", encoder=encoder, bm25=False, systems=short, eval_base=False))


@pytest.mark.usefixtures("local_ray")
def test_a_killed_run_goes_on_with_the_next_system(beir: str, tmp_path: Path) -> None:
    """The first system's answers are there; the second fails for want of its server."""
    log = tmp_path / "encoded.txt"
    first = {**HASHED, "engine_kwargs": {"log": str(log)}}
    second = {"model": "hash", "encoder": {**HASHED, "engine_kwargs": {"poison": "dawn"}}}
    asked = config(beir, tmp_path / "eval", encoder=first, systems={"bad": second}, bm25=False)
    with pytest.raises(InputError, match="texts have no vector"):
        STAGE.run(asked)
    assert not (tmp_path / "eval" / "_manifest.json").exists()
    assert STAGE.state(asked) == "interrupted; a new run goes on"
    encoded = log.read_text()
    with pytest.raises(InputError, match="texts have no vector"):
        STAGE.run(asked)
    assert log.read_text() == encoded


@pytest.mark.usefixtures("local_ray")
def test_a_server_that_drifts(beir: str, tmp_path: Path) -> None:
    """It answers in any order and fails twice, which is put up with; then it gives the vectors of other words."""
    with serving(lambda texts: np.stack([hash_vector(text) for text in texts])) as server:
        server.failures = [(500, {}), (503, {"Retry-After": "0"})]
        asked = config(beir, tmp_path / "eval", nim_url=server.url, cache=str(tmp_path / "cache"))
        result = STAGE.run(asked)
        assert result.systems == ["bm25", "base", "served", "bm25+base"]
        assert result.drifted == []
        server.embed = lambda texts: np.stack([hash_vector(text[:-3]) for text in texts])
        with pytest.raises(DriftError, match="drift of served from base"):
            STAGE.run(asked)  # not taken for done: a server may answer otherwise
        told = json.loads((tmp_path / "eval" / "eval_results.json").read_text())
        assert any(not one["ok"] for one in told["_metadata"]["drift"])
        assert STAGE.run(asked.model_copy(update={"fail_on_drift": False})).drifted
        server.embed = lambda texts: np.full((len(texts), 16), np.nan, np.float32)
        with pytest.raises(InputError, match=r"the system 'served': .* is not finite"):
            STAGE.run(asked)


@pytest.mark.usefixtures("local_ray")
def test_systems_that_are_not_there(beir: str, tmp_path: Path) -> None:
    asked = config(beir, tmp_path / "eval", finetuned=str(tmp_path / "none"), encoder={})
    with pytest.raises(InputError, match="the system 'base'"):
        STAGE.run(asked)
    systems = {"gone": {"model": str(tmp_path / "none"), "encoder": {"engine": "transformers"}}}
    result = STAGE(
        beir,
        str(tmp_path / "eval"),
        model="hash",
        encoder=HASHED,
        systems=systems,
        nim_url="http://127.0.0.1:9",
        skip_missing=True,
    )
    assert result.systems == ["bm25", "base", "bm25+base"]
    assert set(result.metadata["missing"]) == {"gone", "served"}
    assert "left out gone: " in result.summary()


def test_an_unfinished_training_is_refused(beir: str, tmp_path: Path) -> None:
    staging = tmp_path / "tuned" / "_staging"
    staging.mkdir(parents=True)
    (staging / "run.json").write_text("{}")
    with pytest.raises(InputError, match="this fine-tuning has not ended"):
        STAGE.run(config(beir, tmp_path / "eval", eval_base=False, finetuned=str(tmp_path / "tuned")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None, "bm25": False}, "nothing to evaluate"),
        ({"eval_finetuned": True}, "eval_finetuned=true needs finetuned"),
        ({"systems": {"base": "x"}}, "the name base is taken"),
        ({"systems": {"a/b": "x"}}, "names a file"),
        ({"systems": {"a": {"model": "x", "same_as": "b"}}}, "same_as=b: it is not another of base, a"),
        ({"fusion": ["finetuned"]}, "there is no dense system 'finetuned'"),
        ({"encoder": {"prefix": "x"}}, "write query_prefix and passage_prefix"),
        ({"k_values": [0]}, "whole numbers from 1"),
        ({"systems": {"a": {"modl": "x"}}}, "did you mean 'systems.*model'"),
    ],
)
def test_wrong_options(beir: str, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(beir, tmp_path, **options)
