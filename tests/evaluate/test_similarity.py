"""A model is mined and judged by the similarity that its files name: as sentence-transformers compares its vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycurate.core.errors import ContractError
from raycurate.data.corpora.beir import read_beir, write_beir
from raycurate.models.contract import EmbeddingContract
from raycurate.retrieval.metrics import evaluate_hits
from raycurate.retrieval.retrieve import DenseModel, retrieve
from raycurate.stages.mine.stage import STAGE as mine_hard_negatives
from tests.encoders.tiny import WORDS, save_roberta

RUN: dict[str, Any] = {"dtype": "float32", "device": "cpu", "concurrency": 1}


def save_model(folder: Path, similarity: str | None) -> str:
    """A model whose vectors have lengths of their own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    torch.manual_seed(3)
    modules = [Transformer(save_roberta(folder / "body"), max_seq_length=32), Pooling(32), Dense(32, 16)]
    model = SentenceTransformer(modules=modules, device="cpu")
    with torch.no_grad():  # the lengths differ by more than rounding
        model[2].linear.bias.add_(torch.linspace(-1, 1, 16))  # type: ignore[union-attr, operator]
    model.save_pretrained(str(folder / "whole"))
    settings = folder / "whole" / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"similarity_fn_name": similarity}))
    return str(folder / "whole")


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    "similarity", ["dot", pytest.param("cosine", marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)]
)
def test_ranks_and_scores_are_sentence_transformers(tmp_path: Path, similarity: str | None) -> None:
    from sentence_transformers import SentenceTransformer

    model = save_model(tmp_path, similarity)
    reference = SentenceTransformer(model, device="cpu")
    draw = np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(90)))
    documents, questions = texts[:60], texts[60:]
    vectors = [reference.encode(side, convert_to_tensor=True) for side in (questions, documents)]
    scores_QD = reference.similarity(*vectors).numpy()
    by_cosine = torch.nn.functional.cosine_similarity(vectors[0][:, None], vectors[1][None], dim=-1).numpy()
    assert (np.argsort(-scores_QD) == np.argsort(-by_cosine)).all() == (similarity != "dot")  # it makes a difference

    qrels = {f"q{i}": {f"d{i:02d}": 1, f"d{i + 25}": 2} for i in range(len(questions))}
    rows = [[{"_id": f"d{i:02d}", "text": text} for i, text in enumerate(documents)]]
    rows.append([{"_id": f"q{i}", "text": text} for i, text in enumerate(questions)])
    write_beir(str(tmp_path / "beir"), corpus=rows[0], queries=rows[1], qrels={"test": qrels})
    where = {"cache": str(tmp_path / "cache"), "work": str(tmp_path / "work")}
    found = retrieve(DenseModel(model, RUN), read_beir(str(tmp_path / "beir")), 60, **where)
    names = np.array([row["_id"] for row in rows[0]], object)
    order = np.argsort(-scores_QD, axis=1)
    wanted = evaluate_hits(qrels, list(qrels), names[order], np.take_along_axis(scores_QD, order, 1))
    judged = evaluate_hits(qrels, found.query_ids, found.document_ids_QK, found.scores_QK)
    assert judged["NDCG@10"] == pytest.approx(wanted["NDCG@10"], abs=1e-9)

    inline = [{"query": q, "pos_doc": [documents[i]], "neg_doc": []} for i, q in enumerate(questions)]
    inline.append({"query": "rain", "pos_doc": documents, "neg_doc": []})  # so that all documents are there
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in inline))
    options = {"model": model, "encoder": RUN, "hard_negatives_to_mine": 5, "hard_neg_margin_type": "none"}
    result = mine_hard_negatives(str(tmp_path / "train.jsonl"), str(tmp_path / "mined"), **options)
    mined = json.loads(Path(result.output, "train_mined.automodel.json").read_text())["data"]
    for at in range(len(questions)):
        best = np.delete(scores_QD[at], at)
        np.testing.assert_allclose([n["score"] for n in mined[at]["neg_doc"]], np.sort(best)[::-1][:5], rtol=1e-4)
        assert mined[at]["pos_doc"][0]["score"] == pytest.approx(scores_QD[at, at], rel=1e-4)


def test_a_similarity_that_no_search_has(tmp_path: Path) -> None:
    model = save_model(tmp_path, "euclidean")
    contract = EmbeddingContract.from_checkpoint(model)  # its vectors are what they are
    with pytest.raises(ContractError, match="compared by 'euclidean'"):
        _ = contract.by_cosine
    assert EmbeddingContract.from_checkpoint(model, normalize=True).by_cosine
    assert contract.identity() == contract.model_copy(update={"similarity": "dot"}).identity()
