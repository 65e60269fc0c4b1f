"""The whole way from texts to metrics beside the `beir` package's own evaluation of the same model."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycurate.data.corpora.beir import read_beir
from raycurate.retrieval.metrics import evaluate_hits
from raycurate.retrieval.retrieve import DenseModel, depth_of, retrieve


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_real_model_on_a_real_test_set(shared_data: Path, minilm: str, tmp_path: Path) -> None:
    """After BEIR's rounding to five decimals. Its own search reads 1,000 hits; ours 101 are enough for k = 100."""
    pytest.importorskip("beir")
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.models import SentenceBERT
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    folder = str(shared_data / "beir" / "pubmedqa")
    data = read_beir(folder, "test")
    model = DenseModel(minilm, {"dtype": "float32", "device": "cpu"})
    found = retrieve(model, data, depth_of(data, 100), cache=None, work=str(tmp_path / "work"))
    ours = evaluate_hits(data.qrels, found.query_ids, found.document_ids_QK, found.scores_QK, mrr_ties="given")
    corpus, queries, qrels = GenericDataLoader(folder).load(split="test")
    search = DenseRetrievalExactSearch(SentenceBERT(minilm, device="cpu"), batch_size=32)
    theirs = EvaluateRetrieval(search, k_values=[1, 5, 10, 100], score_function="cos_sim")
    hits = theirs.retrieve(corpus, queries)
    ndcg, map_, recall, precision = theirs.evaluate(qrels, hits, [1, 5, 10, 100])
    mrr = theirs.evaluate_custom(qrels, hits, [1, 5, 10, 100], "mrr")
    rounded = ours.rounded()
    for family, wanted in zip(
        ("NDCG", "MAP", "Recall", "Precision", "MRR"), (ndcg, map_, recall, precision, mrr), strict=True
    ):
        assert rounded[family] == pytest.approx(wanted, abs=1.5e-5), family
