"""What the sections say, against numbers worked out by hand or by another way."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raycurate.report.context import Context
from raycurate.report.rendering import Section
from raycurate.report.runs import Run, open_run
from raycurate.report.sections import clusters, corpus, duplicates, pairs, pipeline, retrieval, training
from tests.prep.sdg_records import pair, record, write_jsonl
from tests.report import outputs
from tests.report.evaluations import per_query, write_evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    workdir = outputs.write_run(tmp_path_factory.mktemp("runs") / "demo")
    write_evaluation(workdir / "eval")
    return open_run(str(workdir))


def words(made: Section | None) -> str:
    """A section's text without its markup and its figures."""
    assert made is not None
    plain = re.sub(r"<svg.*?</svg>", " ", made.html, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", plain)).split())


def test_word_counts_are_those_of_the_documents(run: Run):
    said = words(corpus.section(Context(run)))
    # 3 to 122 words, one document each: the median is 62.5, the quantiles 8.95 and 116.05
    assert "All 120 documents" in said
    assert "at most 62 words, 90% between 9 and 116" in said
    assert "Not counted here, as the model's tokenizer cannot be loaded: " in said


def test_tokens_are_counted_by_the_model(tmp_path: Path, minilm: str):
    outputs.write_corpus(tmp_path)
    outputs.write_embeddings(tmp_path, minilm)
    said = words(corpus.section(Context(open_run(str(tmp_path)))))
    # [CLS], "Title of doc-NNN" = title of doc - nnn (5 to 6 pieces), the words, "textN" as text ##N.., [SEP]
    found = re.search(r"at most (\d+) tokens, 90% between (\d+) and (\d+)", said)
    assert found is not None
    assert 62 + 8 <= int(found[1]) <= 62 + 14
    assert "The model reads the first 64 tokens; 30 of all 120 documents (25.0%) are longer and were cut there." in said


def test_a_large_corpus_is_read_in_part(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("raycurate.report.sampling._DOCUMENT_BYTES", 1000)
    documents, problem = Context(run).corpus
    assert documents is not None and problem == ""
    assert not documents.whole
    assert "A random part of the corpus" in words(corpus.section(Context(run)))


def test_the_map_is_the_principal_components_of_the_embeddings(run: Run):
    output = run.of("kmeans")
    assert output is not None
    found = clusters._projection(run, output)
    assert found is not None
    centred = outputs.vectors() - outputs.vectors().mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    np.testing.assert_allclose(found.shares, variances[:2] / variances.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.sum(found.at_N2**2, axis=0), variances[:2], rtol=1e-4)
    assert found.removed_N.sum() == outputs.REMOVED


def test_clusters_are_counted_and_named_by_their_nearest(run: Run):
    said = words(clusters.section(Context(run)))
    assert "4 clusters with 30 to 30 documents" in said
    # of cluster 0: documents 0, 4, 8, whose distances are the least
    assert "30 Title of doc-000; Title of doc-004; Title of doc-008" in said


def test_pairs_stand_on_the_right_side_of_the_threshold(run: Run):
    said = words(duplicates.section(Context(run)))
    removed, _, kept = said.partition("Both kept, just below the threshold")
    # of the six removed the three nearest to 0.95 have 0.985, 0.986 and 0.987
    assert re.findall(r"cosine (0\.\d+)", removed.partition("Removed, just above")[2]) == ["0.9850", "0.9860", "0.9870"]
    assert re.findall(r"cosine (0\.\d+)", kept)[:2] == ["0.9450", "0.9300"]
    assert "All stored pairs, 8, of cosine 0.9 or more; 6 are at or above the threshold of 0.95" in said
    assert "removed: Title of doc-119" in said and "word word word" in said
    assert "0.05 6 5.00%" in said and "0.1 8 6.67%" in said


def test_margins_and_false_negatives(run: Run):
    said = words(pairs.section(Context(run)))
    # margins 0.3, 0.1 and 0.1: one question has no negative
    assert "half are below 0.100, and 0% below 0.05" in said
    assert "213 in all, for the median question 6. 15 negatives were kept; 1 questions have fewer than 5" in said
    assert "30 of 130 pairs were left out, most of them for: short passage" in said
    assert "positive, score 0.800 The positive's text. hardest negative, score 0.500 The negative's text." in said


def test_quality_of_question_answer_records(tmp_path: Path):
    scores = [9.0, 8.0, 7.5, 3.0]
    source = write_jsonl(
        tmp_path / "sdg.jsonl", [record("a.txt", ["text"] * 4, [pair(f"q{n}?", [1]) for n in range(4)], scores)]
    )
    outputs.write_prep(tmp_path, pairs_from="sdg", input=source, quality_threshold=7.0)
    said = words(pairs.section(Context(open_run(str(tmp_path)))))
    assert "of 4 pairs of all records; the median is 7.8. 1 are below the threshold of 7." in said


def test_the_training_is_told_from_its_log_and_checkpoints(run: Run):
    said = words(training.section(Context(run)))
    # the loss of step s is 2 - 0.04 s: the first four steps' mean is 1.9, the last four's 0.46
    assert "From 1.900 (mean of the first tenth of the steps) to 0.460 (of the last)" in said
    assert "nDCG@10 is 0.5000 at the best checkpoint, step 20, and was 0.4000 before training." in said
    assert "nDCG@10 0.4000 0.5000 +0.1000" in said
    assert "2 validations; best 0.6000 at step 40" in said
    assert "Clipping to 1 changed 100% of the steps" in said


def test_the_running_mean_starts_at_the_first_loss(tmp_path: Path):
    outputs.write_finetune(tmp_path, ended=False)
    log = tmp_path / "finetune" / "train.jsonl"
    log.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 3.0}\n{"step": 4, "lo')
    said = words(training.section(Context(open_run(str(tmp_path)))))
    assert "From 3.000" in said and "to 3.000" in said
    assert "1 step had no finite loss" in said
    assert "its log goes to step 3" in said  # the last line is not whole: it is being written


def test_questions_are_compared_one_by_one(run: Run):
    said = words(retrieval.section(Context(run)))
    scores = per_query()
    change = scores["finetuned"] - scores["base"]
    gains, losses = int((change > 0).sum()), int((change < 0).sum())
    assert (
        f"Of 200 questions, {gains} are answered better by finetuned than by base, {losses} worse, "
        f"{200 - gains - losses} the same."
    ) in said
    assert "bm25+finetuned is highest" in said
    assert "finetuned 0.546 (0.519 to 0.572)" in said
    # of each system the metrics that drifted, or the one that differs most
    told, _, every = said.partition("Drift ")[2].partition("Every metric (4)")
    assert "served against finetuned ✗ drifted nDCG@10 −0.0200 0.01" in told and "MAP@10" not in told
    assert "exported against finetuned ✓ within P@10 +0.0020 0.01" in told and "+0.0000" not in told
    assert "MAP@10 +0.0040" in every
    assert "Left out: reranked, there is no such file or folder." in said
    # losses are listed from the largest
    lost = said.partition("Questions that lost most")[2]
    assert re.findall(r"thing (\d) fail\?", lost) == ["5", "4"]
    assert "0.80 → 0.05" in lost


def test_comparisons_that_one_asks_first(run: Run):
    said = words(retrieval.section(Context(run)))
    told, _, rest = said.partition("Comparisons In nDCG@10.")[2].partition("The other pairs (1)")
    assert re.findall(r"(\w+ against \w+) ", told) == ["finetuned against base", "finetuned against bm25"]
    assert "base against bm25 • no difference −0.0160 −0.046 to +0.014 < 0.001 90 / 80 / 30" in rest


def test_another_primary_metric(tmp_path: Path):
    folder = write_evaluation(tmp_path / "eval")
    results = folder / "eval_results.json"
    given = json.loads(results.read_text())
    for one in given["_metadata"]["comparisons"]:
        one["metric"] = "Recall@5"
    given["_metadata"]["primary_metric"] = "Recall@5"
    results.write_text(json.dumps(given))
    table = pq.read_table(folder / "per_query.parquet")
    pq.write_table(table.rename_columns([*table.column_names[:-1], "Recall@5"]), folder / "per_query.parquet")
    outputs.write_manifest(folder, "eval")
    said = words(retrieval.section(Context(open_run(str(tmp_path)))))
    assert "Recall@5 by system" in said and "Differences in Recall@5" in said and "Recall@5 0.10 → 0.90" in said


def test_counts_and_left_outs_of_the_pipeline(run: Run):
    said = words(pipeline.section(Context(run)))
    assert (
        "embed embeddings ✓ done 2026-11-22 01:00 12.0 s 120 documents, 9,000 tokens, 30 truncated, 2 rejected" in said
    )
    assert "1 epoch, 2 checkpoints, 1 worker" in said
    assert "embed rejected empty text 2" in said and "prep left out short passage 30" in said
    assert "1 min 24 s in all" in said  # seven stages of 12 s


def test_results_that_are_none_are_an_error(tmp_path: Path):
    folder = write_evaluation(tmp_path / "eval")
    (folder / "eval_results.json").write_text(json.dumps({"base": 3}))
    outputs.write_manifest(folder, "eval")
    from raycurate.core.errors import InputError

    with pytest.raises(InputError, match=r"eval_results\.json: it does not hold the results"):
        retrieval.section(Context(open_run(str(tmp_path))))
