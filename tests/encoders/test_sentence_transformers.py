"""sentence-transformers against transformers: the same contract, the same vectors."""

import pytest
import torch

from raycurate.encoders.base import encode, load_encoder
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from tests.conftest import SHARED_DATA
from tests.encoders.parity import least_cosine, texts
from tests.encoders.tiny import TEXTS, save_llama, save_roberta

ENGINES = ("transformers", "sentence-transformers")


def vectors(model: str, inputs: list[str], engine: str, **options):
    encoder = load_encoder(EncoderOptions(model=model, engine=engine, dtype="float32", device="cpu", **options))
    return encode(encoder, inputs), encoder.contract


@pytest.mark.parametrize("options", [{}, {"role": "query", "prefix": "query: "}, {"max_length": 64}], ids=str)
def test_parity_on_real_text(minilm, options):
    inputs = texts(SHARED_DATA)
    (one, first), (other, second) = (vectors(minilm, inputs, engine, **options) for engine in ENGINES)
    assert least_cosine(one, other) >= 0.99999
    first.require_same(second, here="transformers", there="sentence-transformers")


@pytest.mark.parametrize("pooling", ["cls", "last", "weighted_mean"])
def test_another_pooling_than_the_models_own(minilm, pooling):
    one, other = (vectors(minilm, TEXTS, e, pooling=pooling, normalize=False)[0] for e in ENGINES)
    assert abs(one - other).max() < 1e-4
    assert abs((one**2).sum(1) - 1).min() > 0.01  # really not normalised


def test_multi_vector(minilm):
    one, other = (vectors(minilm, TEXTS, e, pooling="colbert")[0] for e in ENGINES)
    assert all(abs(a - b).max() < 1e-4 for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def dense_model(tmp_path_factory) -> str:
    """RoBERTa, cls, Dense 32 -> 48 tanh -> 16 without bias, normalised, with prompts: saved by the library itself."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    root = tmp_path_factory.mktemp("dense")
    body = Transformer(save_roberta(root / "body"), max_seq_length=32)
    torch.manual_seed(1)
    modules = [
        body,
        Pooling(32, pooling_mode="cls"),
        Dense(32, 48),
        Dense(48, 16, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "the bird ", "document": "rain "})
    model.save_pretrained(str(root / "whole"))
    return str(root / "whole")


def test_dense_heads_and_prompts_equal_the_library_itself(dense_model):
    from sentence_transformers import SentenceTransformer

    contract = EmbeddingContract.from_checkpoint(dense_model)
    assert [(m.in_features, m.out_features, m.activation, m.bias) for m in contract.modules] == [
        (32, 48, "Tanh", True),
        (48, 16, "Identity", False),
    ]
    assert (contract.pooling, contract.normalize, contract.dimension, contract.max_length) == ("cls", True, 16, 32)
    library = SentenceTransformer(dense_model, device="cpu")
    for role, expected in (("query", library.encode_query(TEXTS)), ("document", library.encode_document(TEXTS))):
        for engine in ENGINES:
            got, _ = vectors(dense_model, TEXTS, engine, role=role)
            assert abs(got - expected).max() < 1e-5, (role, engine)
    query, document = (vectors(dense_model, TEXTS, "transformers", role=r)[0] for r in ("query", "document"))
    assert abs(query - document).max() > 0.01  # the prompts matter


@pytest.mark.parametrize("build", [{"causal": False}, {"model_type": "llama_bidirec"}, {}], ids=str)
def test_decoders_attend_the_same_way(tmp_path, build):
    folder = save_llama(tmp_path / "m", **build)
    one, other = (vectors(folder, TEXTS, e, normalize=True)[0] for e in ENGINES)
    assert least_cosine(one, other) >= 0.99999
