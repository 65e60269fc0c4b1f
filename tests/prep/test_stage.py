"""prep, mine and unroll as a user runs them: what they write, what a second run does, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import raycurate as rc
from raycurate.core.errors import ConfigError, InputError, OutputExistsError
from raycurate.core.manifest import require_whole
from raycurate.data.training.training import read_training_data
from raycurate.pairs.config import UnrollConfig
from raycurate.pairs.show import show
from raycurate.stages.unroll.stage import STAGE as UNROLL
from tests.embed.hashing import hash_vector
from tests.prep.records import records, write

ENCODER = {"engine": "tests.embed.hashing:HashEncoder", "concurrency": 1}
pytestmark = pytest.mark.usefixtures("local_ray")


def strict(path: Path) -> Any:
    """JSON, where NaN and Infinity are none."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def prepare(folder: Path, **options: Any) -> Any:
    source = folder / "pairs.jsonl"
    if not source.exists():
        write(source, records())
    values = {"model": "words", "encoder": ENCODER, "cache": str(folder / "cache"), **options}
    return rc.prepare(str(source), str(folder / "prep"), **values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    folder = tmp_path_factory.mktemp("prep")
    result = prepare(folder)
    assert not result.skipped
    (folder / "summary.txt").write_text(result.summary())
    return folder


def texts_of(folder: Path) -> dict[str, str]:
    table = pq.read_table(folder / "corpus" / "train.parquet")
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def cosine(one: str, two: str) -> float:
    a, b = hash_vector(one), hash_vector(two)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_mined_files_are_valid_and_say_what_is_so(made: Path) -> None:
    output = made / "prep"
    plain, mined = strict(output / "train.json"), strict(output / "train_mined.automodel.json")
    assert mined["corpus"] == plain["corpus"] and set(mined) == {"corpus", "data", "mining"}
    assert mined["mining"]["hard_negatives_to_mine"] == 5 and mined["mining"]["hard_neg_margin_type"] == "perc"
    texts = texts_of(output)
    assert len(mined["data"]) == len(plain["data"]) > 50
    held = {d["id"] for d in strict(output / "val.json")["data"][0]["pos_doc"]}
    for before, row in zip(plain["data"], mined["data"], strict=True):
        assert {k: row[k] for k in ("question_id", "question", "corpus_id")} == {
            k: before[k] for k in ("question_id", "question", "corpus_id")
        }
        assert [d["id"] for d in row["pos_doc"]] == [d["id"] for d in before["pos_doc"]]
        for document in [*row["pos_doc"], *row["neg_doc"]]:
            assert document["score"] == pytest.approx(cosine(row["question"], texts[document["id"]]), abs=1e-6)
        bound = 0.95 * min(d["score"] for d in row["pos_doc"])
        scores = [d["score"] for d in row["neg_doc"]]
        assert scores == sorted(scores, reverse=True) and all(score <= bound + 1e-7 for score in scores)
        assert len(scores) <= 5 and not {d["id"] for d in row["neg_doc"]} & ({d["id"] for d in row["pos_doc"]} | held)


def test_no_positive_of_test_or_validation_is_a_negative_of_train(made: Path) -> None:
    output = made / "prep"
    held = {d["id"] for row in strict(output / "val.json")["data"] for d in row["pos_doc"]}
    names = {row["_id"]: row["text"] for row in map(json.loads, (output / "eval_beir/corpus.jsonl").open())}
    by_text = {text: name for name, text in texts_of(output).items()}
    for line in (output / "eval_beir/qrels/test.tsv").read_text().splitlines()[1:]:
        held.add(by_text[names[line.split("\t")[1]]])
    mined = strict(output / "train_mined.automodel.json")
    assert not held & {d["id"] for row in mined["data"] for d in row["neg_doc"]}
    unheld = held - {d["id"] for row in mined["data"] for d in row["pos_doc"]}
    assert len(unheld) > 10
    validated = strict(output / "val_mined.automodel.json")["data"]
    assert any(row["neg_doc"] for row in validated)


def test_unrolled_rows_share_their_negatives(made: Path) -> None:
    output = made / "prep"
    mined, flat = strict(output / "train_mined.automodel.json"), strict(output / "train_mined.automodel_unrolled.json")
    assert set(flat) == {"corpus", "data"}
    expected = []
    for row in mined["data"]:
        several = len(row["pos_doc"]) > 1
        for number, positive in enumerate(row["pos_doc"]):
            name = f"{row['question_id']}_{number}" if several else row["question_id"]
            expected.append({**row, "question_id": name, "pos_doc": [positive]})
    assert flat["data"] == expected
    assert any(row["question_id"].endswith("_1") for row in flat["data"])
    data = read_training_data(str(output / "train_mined.automodel_unrolled.json"))
    assert len(data) == len(expected)


def test_the_manifest_and_the_audit(made: Path) -> None:
    output = made / "prep"
    manifest = require_whole(str(output))
    counts = manifest.settings["mined"]["train"]
    audit = pq.read_table(output / "audit/train.parquet")
    mined = strict(output / "train_mined.automodel.json")["data"]
    assert audit["negatives"].to_pylist() == [len(row["neg_doc"]) for row in mined]
    assert counts["negatives"] == sum(len(row["neg_doc"]) for row in mined)
    assert counts["questions_with_fewer"] == sum(len(row["neg_doc"]) < 5 for row in mined)
    assert set(manifest.settings["dev"]) == {"base", "bm25"} and 0 < manifest.settings["dev"]["base"] <= 1
    assert not (output / "_staging").exists()
    said = (made / "summary.txt").read_text()
    assert "negatives for" in said and "nDCG@10 on the validation questions" in said and "least positive" in said


def test_a_second_run_does_nothing_and_another_option_is_refused(made: Path) -> None:
    assert prepare(made).skipped
    with pytest.raises(OutputExistsError, match="hard_negatives_to_mine: 5 -> 7"):
        prepare(made, hard_negatives_to_mine=7)


def test_mine_alone_is_what_prep_did_and_unroll_alone_too(made: Path, tmp_path: Path) -> None:
    output = made / "prep"
    options = {"model": "words", "encoder": ENCODER, "cache": str(made / "cache"), "hard_negatives_to_mine": 5}
    held = [str(output / "eval_beir"), str(output / "val.json")]
    result = rc.mine_hard_negatives(
        str(output / "train.json"), str(tmp_path / "mined"), exclude_positives_of=held, **options
    )
    assert result.manifest.counts["questions"] == len(strict(output / "train.json")["data"])
    name = "train_mined.automodel.json"
    assert strict(tmp_path / "mined" / name)["data"] == strict(output / name)["data"]
    done = UNROLL.run(UnrollConfig(input=str(tmp_path / "mined"), output=str(tmp_path / "flat")))
    flat = strict(tmp_path / "flat/train_mined.automodel_unrolled.json")
    assert flat["data"] == strict(output / "train_mined.automodel_unrolled.json")["data"]
    assert done.manifest.counts["rows"] == len(flat["data"])
    assert len(read_training_data(str(tmp_path / "flat/train_mined.automodel_unrolled.json"))) == len(flat["data"])


def test_inline_data_get_a_corpus_of_their_own(tmp_path: Path) -> None:
    lines = [
        {"query": f"word{n} word{n + 1}", "pos_doc": f"word{n} word{n + 1} word90", "neg_doc": [f"word{n} word77"]}
        for n in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"model": "words", "encoder": ENCODER, "hard_neg_margin_type": "none", "use_negatives_from_file": True}
    rc.mine_hard_negatives(str(tmp_path / "pairs.jsonl"), str(tmp_path / "mined"), hard_negatives_to_mine=3, **options)
    data = read_training_data(str(tmp_path / "mined/pairs_mined.automodel.json"))
    assert len(data) == 20 and len(data.corpora[0]) == 40
    for row, line in zip(data.table.to_pylist(), lines, strict=True):
        negatives = data.corpora[0].texts_of(row["neg"])
        assert negatives[0] == line["neg_doc"][0] and len(negatives) == 3
        assert data.corpora[0].texts_of(row["pos"]) == [line["pos_doc"]]


def test_show_prints_the_question_with_kept_and_dropped(made: Path) -> None:
    output = made / "prep"
    row = next(row for row in strict(output / "train_mined.automodel.json")["data"] if row["neg_doc"])
    said = show(str(output), row["question_id"])
    assert said.startswith(f"{row['question_id']}: {row['question']}")
    assert said.count("\npositive") >= len(row["pos_doc"]) and said.count("\nkept      ") == len(row["neg_doc"])
    assert show(str(output), row["question"][:-3]) == said
    assert not (output / "_staging").exists() and require_whole(str(output))
    with pytest.raises(InputError, match="no question with the id 'q99999'"):
        show(str(output), "q99999")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"hard_negatves_to_mine": 3}, ConfigError, "hard_negatives_to_mine"),
        ({"train_ratio": 0.5}, ConfigError, "sum to 0.7"),
        ({"quality_threshold": 9.5}, InputError, "Lower quality_threshold"),
        ({"encoder": {"engin": "x"}}, ConfigError, "did you mean 'engine'"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        prepare(tmp_path, **options)
    assert not (tmp_path / "cache").exists()
