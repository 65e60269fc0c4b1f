"""The bi-encoder: its vectors are the encoders', padding changes nothing, every trained parameter has a gradient."""

import json

import pytest
import torch
from torch.overrides import TorchFunctionMode

from raycurate.core.errors import CapacityError, ConfigError, ContractError
from raycurate.encoders.base import encode, load_encoder
from raycurate.models.contract import EmbeddingContract
from raycurate.models.options import EncoderOptions
from raycurate.training.checkpoints.export import export_checkpoint
from raycurate.training.model.backbones import layers_of, load_body
from raycurate.training.model.bi_encoder import load_bi_encoder
from raycurate.training.model.meta_model import ModelOutline
from raycurate.training.model.multi_vector import MultiVectors, finish, maxsim
from raycurate.training.model.options import ModelOptions
from tests.encoders.tiny import TEXTS, save_llama
from tests.finetune.families import (
    DECODERS,
    ENCODERS,
    Batch,
    batch_of,
    least_cosine,
    save_family,
    save_mistral3,
    vectors,
)

POOLINGS = ("mean", "cls", "last", "weighted_mean")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    folders = {family: save_family(root / family, family) for family in (*ENCODERS, *DECODERS)}
    return folders | {"llama_bidirec": save_llama(root / "llama_bidirec", model_type="llama_bidirec")}


def engine_vectors(folder: str, role: str = "document", **options):
    return encode(
        load_encoder(EncoderOptions(model=folder, engine="transformers", dtype="float32", role=role, **options)), TEXTS
    )


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS, "llama_bidirec"])
def test_padding_changes_nothing_and_every_trained_parameter_has_a_gradient(tiny, family):
    both_ways = True if family in DECODERS else None
    for pooling in POOLINGS:
        model = load_bi_encoder(tiny[family], ModelOptions(pooling=pooling, normalize=True, bidirectional=both_ways))
        plain = vectors(model, TEXTS, "document")
        for padding in ({"left": 3}, {"right": 5}):
            assert (vectors(model, TEXTS, "document", **padding) - plain).abs().max() < 1e-5, (pooling, padding)
    assert plain.dtype == torch.float32
    model.encode(batch_of(model, TEXTS, "document"), "document")[:, 0].sum().backward()
    without = [n for n, p in model.named_parameters() if (p.grad is None) == p.requires_grad]
    assert not without  # an optimiser or DDP would trip over these
    assert len(layers_of(model.tower("query").body)) == 2


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_later_tokens_change_earlier_ones_only_when_bidirectional(tiny, family, attention):
    ids = torch.tensor([[0, 4, 5, 6, 7, 8, 11], [0, 4, 5, 6, 7, 8, 10]])
    padded = torch.nn.functional.pad(ids, (0, 2), value=1)
    for both_ways in (True, False):
        options = ModelOptions(pooling="multi_vector", bidirectional=both_ways, attention=attention)
        model = load_bi_encoder(tiny[family], options)
        for rows in (ids, padded):  # without padding there is no mask at all
            one, other = model.encode(Batch(rows, (rows != 1).long()), "document").rows()
            assert torch.allclose(one[1], other[1], atol=1e-6) != both_ways, rows


@pytest.mark.parametrize("family", [*ENCODERS, "llama", "qwen3", "llama_bidirec"])
@pytest.mark.parametrize("pooling", ["mean", "last", "multi_vector"])
def test_vectors_are_the_encoders(tiny, family, pooling):
    expected = engine_vectors(tiny[family], pooling=pooling, normalize=True)
    causal = {"bidirectional": False} if family in DECODERS else {}
    model = load_bi_encoder(tiny[family], ModelOptions(pooling=pooling, normalize=True, **causal))
    got = vectors(model, TEXTS, "document", right=3)
    if pooling == "multi_vector":
        for one, other in zip(got.rows(), expected, strict=True):
            assert one.shape == other.shape
            assert least_cosine(one, other) >= 0.9999
    else:
        assert least_cosine(got, expected) >= 0.9999


class InFloat64(TorchFunctionMode):
    """Computes in float64 also what a model's code casts to float32: normalisation, rotations, attention, pooling."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = lambda value: torch.float64 if value is torch.float32 else value  # noqa: E731
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


Found = tuple[torch.Tensor, list[torch.Tensor]]


def vectors_and_gradients(folder: str, batch, options: ModelOptions) -> tuple[Found, Found]:
    """Those of one model in float32, and of the same weights in float64."""
    model = load_bi_encoder(folder, options)
    rounded = _vectors_and_gradients(model, batch)
    if options.gradient_checkpointing:  # its second forward would run outside of InFloat64
        model = load_bi_encoder(folder, options.model_copy(update={"gradient_checkpointing": False}))
    model.zero_grad()
    with InFloat64():
        return rounded, _vectors_and_gradients(model.double(), batch)


def _vectors_and_gradients(model, batch) -> Found:
    found = model.encode(batch, "document")
    found = found.vectors_NTD.flatten(1) if isinstance(found, MultiVectors) else found
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    (found * weights).sum().backward()
    return found.detach(), [p.grad for p in model.parameters() if p.requires_grad]


def distance(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """The largest difference of two lists of tensors, as a part of the largest number in the second."""
    largest = max(float(other.abs().max()) for other in others)
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True)) / largest


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", *DECODERS[:-1]])
@pytest.mark.parametrize("pooling", [*POOLINGS, "multi_vector"])
def test_unpadded_gives_the_vectors_and_gradients_of_padded(tiny, family, pooling):
    """In float64 to its last digits; in float32 it is as near to that as the padded model is.

    How near is a matter of the model: rounding grows with the weights, and those of these models are large, so that
    the padded Llama's own gradients are wrong by 2e-4 of the largest on one processor and by less on another.
    """
    both_ways = pooling != "last" if family in DECODERS else None
    more = {"pooling": pooling, "normalize": True, "bidirectional": both_ways, "dropout": 0.0}
    batch = batch_of(load_bi_encoder(tiny[family], ModelOptions(**more)), TEXTS, "document", left=2)
    padded = ModelOptions(**more, attention="sdpa")
    unpadded = ModelOptions(**more, attention="unpadded", gradient_checkpointing=family == "llama")
    ((expected, gradients), (truth, truths)), ((got, others), (vectors_64, gradients_64)) = (
        vectors_and_gradients(tiny[family], batch, options) for options in (padded, unpadded)
    )
    assert truth.dtype == torch.float64 == truths[0].dtype
    assert (vectors_64 - truth).abs().max() < 1e-12
    assert distance(gradients_64, truths) < 1e-11
    rounding = len(TEXTS) ** 0.5 * torch.finfo(torch.float32).eps  # of the sum over texts that every gradient is
    assert distance([got], [truth]) < 4 * (distance([expected], [truth]) + rounding)
    assert distance(others, truths) < 4 * (distance(gradients, truths) + rounding)


def test_unpadded_has_dropout_and_is_refused_where_it_is_not_the_same_model(tiny):
    model = load_bi_encoder(tiny["bert"], ModelOptions(attention="unpadded", dropout=0.3))
    batch = batch_of(model, TEXTS, "document")
    assert (model.encode(batch, "document") - model.encode(batch, "document")).abs().max() > 1e-3
    load_bi_encoder(tiny["gemma3_text"], ModelOptions(attention="unpadded", bidirectional=False))
    # MPNet has attention of its own; transformers' mask of a window made bidirectional is one token wider than the
    # window that the layers themselves name.
    for family, both_ways in (("mpnet", None), ("gemma3_text", True)):
        with pytest.raises(ConfigError, match="attention=unpadded: this model cannot"):
            load_bi_encoder(tiny[family], ModelOptions(attention="unpadded", bidirectional=both_ways))


def test_a_decoder_made_bidirectional_is_the_one_whose_config_says_so(tiny, tmp_path):
    said = engine_vectors(save_llama(tmp_path / "said", causal=False), normalize=True)  # the same random weights
    model = load_bi_encoder(tiny["llama"], ModelOptions(bidirectional=True, normalize=True))
    assert (model.contract.attention, model.contract.pooling) == ("bidirectional", "mean")
    assert least_cosine(vectors(model, TEXTS, "document"), said) >= 0.9999


@pytest.mark.parametrize("head", [True, False])
def test_a_model_for_images_and_text_is_reduced_to_its_language_model(tmp_path, head):
    from transformers import AutoModel

    whole = save_mistral3(tmp_path / "whole", head=head)
    folder = str(tmp_path / "whole")
    model = load_bi_encoder(folder, ModelOptions(pooling="last", bidirectional=False))
    assert type(model.tower("query").body).__name__ == "Ministral3Model"
    assert model.contract.attention == "causal"
    batch = batch_of(model, TEXTS, "document")
    with torch.no_grad():
        hidden_BTH = (whole.model if head else whole)(**batch._asdict())[0]
    expected = hidden_BTH[torch.arange(len(TEXTS)), batch.attention_mask.sum(1) - 1]
    assert torch.allclose(vectors(model, TEXTS, "document"), expected, atol=1e-5)
    assert least_cosine(engine_vectors(folder), expected) >= 0.9999
    counts = ModelOutline(folder, ModelOptions()).counts
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    both_ways = load_bi_encoder(folder, ModelOptions(bidirectional=True, normalize=True))
    export_checkpoint(both_ways, str(tmp_path / "out"))
    assert type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "Ministral3Model"
    assert least_cosine(engine_vectors(str(tmp_path / "out")), vectors(both_ways, TEXTS, "document")) >= 0.9999


def test_quantised_weights_of_a_model_for_images_and_text_are_refused(tmp_path):
    save_mistral3(tmp_path, head=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ContractError, match=r"are quantised.*in bfloat16"):
        load_bi_encoder(str(tmp_path), ModelOptions())


def test_minilm_with_prompts_is_the_engines_model_and_the_prompts_matter(minilm):
    options = ModelOptions(prompts={"query": "question: ", "passage": "text: "}, max_length=32)
    model = load_bi_encoder(minilm, options)
    assert model.contract.prompts == {"query": "question: ", "document": "text: "}
    assert model.contract.max_length == 32
    for role, prefix in (("query", "question: "), ("document", "text: ")):
        expected = engine_vectors(minilm, role=role, prefix=prefix, max_length=32)
        assert least_cosine(vectors(model, TEXTS, role), expected) >= 0.9999
    assert least_cosine(vectors(model, TEXTS, "query"), vectors(model, TEXTS, "document")) < 0.99


def test_dense_heads_are_applied_and_trained(dense_model):
    model = load_bi_encoder(dense_model, ModelOptions())
    for role in ("query", "document"):
        assert least_cosine(vectors(model, TEXTS, role), engine_vectors(dense_model, role=role)) >= 0.9999
    model.encode(batch_of(model, TEXTS, "query"), "query")[:, 0].sum().backward()
    heads = model.tower("query").heads
    assert [tuple(p.shape) for p in heads.parameters()] == [(48, 32), (48,), (16, 48)]
    assert all(p.grad.abs().max() > 0 for p in heads.parameters())
    half = load_bi_encoder(dense_model, ModelOptions(dtype="bfloat16"))
    got = vectors(half, TEXTS, "query")
    assert got.dtype == torch.float32
    assert 0.99 < least_cosine(got, vectors(model, TEXTS, "query")) < 1


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradient_checkpointing_keeps_gradients_also_under_dropout(tiny, family):
    gradients = []
    for checkpointed in (False, True):
        model = load_bi_encoder(tiny[family], ModelOptions(dropout=0.2, gradient_checkpointing=checkpointed))
        assert model.training
        batch = batch_of(model, TEXTS, "document")
        torch.manual_seed(3)
        found = model.encode(batch, "document")
        found[:, :4].sum().backward()
        again = model.encode(batch, "document")
        assert (found - again).abs().max() > 1e-3  # dropout is at work
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("family", ["bert", "llama", "modernbert"])
def test_without_dropout_training_and_evaluation_give_the_same(tiny, family):
    model = load_bi_encoder(tiny[family], ModelOptions(dropout=0.0))
    trained = model.encode(batch_of(model, TEXTS, "document"), "document")
    assert torch.equal(trained, vectors(model, TEXTS, "document"))


def test_separate_encoders_start_alike_and_share_nothing(tiny):
    model = load_bi_encoder(tiny["bert"], ModelOptions(separate_encoders=True))
    assert torch.equal(vectors(model, TEXTS, "query"), vectors(model, TEXTS, "document"))
    before = vectors(model, TEXTS, "document")
    with torch.no_grad():
        for parameter in model.tower("query").parameters():
            parameter.mul_(1.5)
    assert torch.equal(before, vectors(model, TEXTS, "document"))
    assert not torch.equal(before, vectors(model, TEXTS, "query"))
    with pytest.raises(ValueError, match="role 'passage'"):
        model.tower("passage")


def test_what_cannot_be_trained_so_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="attends both ways"):
        load_bi_encoder(tiny["bert"], ModelOptions(bidirectional=False))
    with pytest.raises(ConfigError, match=r"Matryoshka dimensions \[16, 64\] of vectors of 32"):
        load_bi_encoder(tiny["bert"], ModelOptions(matryoshka_dims=(16, 64)))
    with pytest.raises(ContractError, match="more than the model's 64 positions"):
        load_bi_encoder(tiny["roberta"], ModelOptions(max_length=512))
    with pytest.raises(ContractError, match="transformers cannot load it"):
        load_bi_encoder(tiny["llama"], ModelOptions(attention="flash_attention_2"))
    if not torch.cuda.is_available():
        with pytest.raises(CapacityError, match="Liger"):
            load_bi_encoder(tiny["llama"], ModelOptions(liger=True))


def test_a_decoder_that_stays_causal_is_noticed(tiny, monkeypatch):
    """With the switch made ineffective, the probe must see that the first token does not see the second."""
    monkeypatch.setattr("raycurate.training.model.backbones.make_bidirectional", lambda body: None)
    contract = EmbeddingContract.from_checkpoint(tiny["qwen2"]).model_copy(update={"attention": "bidirectional"})
    with pytest.raises(ContractError, match="does not let a token see those after it"):
        load_body(tiny["qwen2"], contract, ModelOptions())


def test_maxsim_by_hand():
    """One query of tokens a, b and padding; passages [a] and [b, 2b, padding of 100]."""
    a, b = [1.0, 0.0], [0.0, 1.0]
    queries = MultiVectors(torch.tensor([[a, b, [9.0, 9.0]]]), torch.tensor([[True, True, False]]))
    passages = finish(
        torch.tensor([[a, [torch.nan, 0.0], b], [b, [0.0, 2.0], [100.0, 100.0]]]),
        torch.tensor([[1, 0, 0], [1, 1, 0]]),
        unit=False,
    )
    assert maxsim(queries, passages).tolist() == [[1.0, 2.0]]


def test_maxsim_in_blocks_is_the_double_loop_and_takes_gradients(monkeypatch):
    torch.manual_seed(0)
    queries = finish(torch.randn(3, 5, 8), torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]), unit=True)
    parts = [finish(torch.randn(2, width, 8), torch.ones(2, width), unit=True) for width in (4, 7)]
    passages = MultiVectors.join(parts)
    passages = MultiVectors(passages.vectors_NTD.requires_grad_(), passages.mask_NT)
    monkeypatch.setattr("raycurate.training.model.multi_vector._BLOCK", 3 * 5 * 7)  # one passage at a time
    scores = maxsim(queries, passages)
    for q, query in enumerate(queries.rows()):
        for p, passage in enumerate(passages.rows()):
            assert scores[q, p].item() == pytest.approx((query @ passage.T).max(1).values.sum().item(), abs=1e-5)
    scores.sum().backward()
    moved = passages.vectors_NTD.grad.abs().sum(-1) > 0
    assert moved.any()
    assert not (moved & ~passages.mask_NT).any()
