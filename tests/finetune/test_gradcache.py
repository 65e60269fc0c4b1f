"""GradCache, gathered negatives and gradient synchronisation: the gradients are the plain ones of one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raycurate.models.contract import EmbeddingContract
from raycurate.training.batches.batches import TokenInputs
from raycurate.training.collectives import gather_rows, gather_vectors, sum_over_ranks
from raycurate.training.loss import gradcache
from raycurate.training.loss.gradcache import Role, cached_backward, plain_backward
from raycurate.training.loss.losses import backward_scale, reduce
from raycurate.training.loss.masks import Keys, gathered_columns, own_columns
from raycurate.training.loss.objective import Objective, Targets
from raycurate.training.loss.options import FalseNegatives, LossOptions
from raycurate.training.metrics import Tally
from raycurate.training.model.bi_encoder import SHARED, BiEncoder, Tower
from raycurate.training.model.multi_vector import MultiVectors
from tests.ranks import in_two_ranks

LISTED = 3  # passages a question
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def model(*, separate: bool = False, pooling: str = "mean", dropout: float = 0.0) -> BiEncoder:
    """A tiny random BERT, or one for each role."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
    )  # fmt: skip
    contract = EmbeddingContract(
        weights="",
        tokenizer="",
        pooling=pooling,
        normalize=True,
        attention="bidirectional",
        max_length=40,
        dimension=16,
    )  # type: ignore[arg-type]
    names = ("query", "document") if separate else (SHARED,)
    towers = {name: Tower(BertModel(config, add_pooling_layer=False), nn.Sequential(), contract, "") for name in names}
    return BiEncoder(towers).train()


def tokens(rows: int, longest: int, seed: int) -> TokenInputs:
    """Random rows of 1 to `longest` tokens, padded on the right."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=random)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return TokenInputs(torch.randint(1, 50, (rows, longest), generator=random) * mask, mask)


@dataclass(frozen=True)
class Data:
    """A global batch: documents are few, so that questions share them."""

    queries: TokenInputs
    passages: TokenInputs
    documents: Tensor

    @classmethod
    def make(cls, questions: int, seed: int = 1) -> Data:
        random = torch.Generator().manual_seed(seed)
        documents = torch.randint(0, 4 * questions, (questions * LISTED,), generator=random)
        return cls(tokens(questions, 12, seed), tokens(questions * LISTED, 33, seed + 1), documents)

    def part(self, first: int, last: int) -> Data:
        """The questions first ... last - 1."""
        rows = slice(first * LISTED, last * LISTED)
        return Data(_cut(self.queries, slice(first, last)), _cut(self.passages, rows), self.documents[rows])

    def to(self, device: str) -> Data:
        inputs = (
            TokenInputs(t.input_ids.to(device), t.attention_mask.to(device)) for t in (self.queries, self.passages)
        )
        return Data(*inputs, self.documents.to(device))

    @property
    def targets(self) -> Targets:
        known = self.documents[::LISTED]
        return Targets(
            Keys(self.documents, self.documents + 1000, known, torch.arange(len(known) + 1, device=known.device))
        )

    def roles(self, encoder: nn.Module, rows: tuple[int, int] = (0, 0), frozen: str = "") -> list[Role]:
        return [
            Role(lambda batch: encoder(batch, "query"), self.queries, rows[0], frozen == "query"),
            Role(lambda batch: encoder(batch, "document"), self.passages, rows[1], frozen == "document"),
        ]

    def loss(self, objective: Objective, questions: int, ranks: int = 1) -> Callable[..., Tensor]:
        scale = backward_scale(questions, ranks)
        return lambda q, p: scale * reduce(objective(q, p, self.targets)).total


def _cut(whole: TokenInputs, rows: slice) -> TokenInputs:
    return TokenInputs(whole.input_ids[rows], whole.attention_mask[rows])


def gradients(encoder: nn.Module) -> dict[str, Tensor]:
    """By name without wrappers', whole."""
    found = {}
    for name, parameter in encoder.named_parameters():
        if parameter.grad is not None:
            whole: Any = parameter.grad
            found[name.removeprefix("module.")] = (
                whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            ).clone()
    return found


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The length of the difference, as a fraction of the gradient's."""
    assert one.keys() == other.keys() and one, sorted(one.keys() ^ other.keys())
    difference, whole = (
        torch.cat([each.flatten() for each in parts]).double().norm().item()
        for parts in ([one[name] - other[name] for name in one], other.values())
    )
    assert whole > 1e-2
    return difference / whole


OBJECTIVES = {
    "listed": Objective(LossOptions(loss="listed", temperature=0.1)),
    "in_batch": Objective(
        LossOptions(
            loss="in_batch",
            temperature=0.1,
            symmetric=True,
            false_negatives=FalseNegatives.model_construct(kind="abs", margin=-0.1),
        )
    ),
    "matryoshka": Objective(LossOptions(loss="cross_rank", temperature=0.1, matryoshka={16: 1.0, 4: 0.5})),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("rows", [(3, 4), (1, 100), (8, 1)])
def test_gradients_are_the_plain_ones(kind: str, rows: tuple[int, int]):
    data, objective = Data.make(8), OBJECTIVES[kind]
    plain, cached = model(), model()
    wanted = plain_backward(data.roles(plain), data.loss(objective, 8), plain)
    got = cached_backward(data.roles(cached, rows), data.loss(objective, 8), cached)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert apart(gradients(cached), gradients(plain)) < 1e-6


@pytest.mark.parametrize("options", [{"separate": True}, {"pooling": "multi_vector"}])
def test_separate_encoders_and_multi_vectors(options: dict[str, Any]):
    data, objective = Data.make(5), Objective(LossOptions(loss="in_batch", temperature=0.5, symmetric=True))
    plain, cached = model(**options), model(**options)
    plain_backward(data.roles(plain), data.loss(objective, 5), plain)
    cached_backward(data.roles(cached, (2, 4)), data.loss(objective, 5), cached)
    assert apart(gradients(cached), gradients(plain)) < 1e-6


def test_a_frozen_encoder_runs_once_and_the_other_has_its_gradients():
    data, objective = Data.make(5), Objective(LossOptions(loss="in_batch", temperature=0.1))
    plain, cached = model(separate=True), model(separate=True)
    for each in (plain, cached):
        each.tower("document").requires_grad_(False)
    plain_backward(data.roles(plain), data.loss(objective, 5), plain)
    calls = []
    cached.tower("document").register_forward_hook(lambda *_: calls.append(1))
    cached_backward(data.roles(cached, (2, 5), frozen="document"), data.loss(objective, 5), cached)
    assert apart(gradients(cached), gradients(plain)) < 1e-6
    assert len(calls) == 3
    with pytest.raises(ValueError, match="frozen=True"):
        cached_backward(data.roles(cached, (2, 5)), data.loss(objective, 5), cached)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, ON_CUDA])])
def test_with_dropout_the_second_forward_repeats_the_first(device: str):
    """A plain run over the same chunks from the same random state, whose graph is kept, has the same gradients."""
    data, objective = Data.make(8).to(device), Objective(LossOptions(loss="in_batch", temperature=0.1))
    plain, cached = model(dropout=0.3).to(device), model(dropout=0.3).to(device)
    torch.manual_seed(7)
    got = cached_backward(data.roles(cached, (3, 5)), data.loss(objective, 8), cached)
    after = torch.rand(1, device=device)

    torch.manual_seed(7)
    vectors: list[list[Tensor]] = [[], []]
    order: list[list[Tensor]] = [[], []]
    for chunk in gradcache.plan(data.roles(plain, (3, 5))):
        vectors[chunk.role].append(plain(chunk.tokens, ("query", "document")[chunk.role]))
        order[chunk.role].append(chunk.rows)
    whole = [torch.cat(v)[torch.cat(o).argsort()] for v, o in zip(vectors, order, strict=True)]
    wanted = data.loss(objective, 8)(*whole)
    wanted.backward()
    assert torch.equal(after, torch.rand(1, device=device)), "the random state goes on as after one forward"
    assert got.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert apart(gradients(cached), gradients(plain)) < 1e-6
    torch.manual_seed(8)
    assert cached_backward(data.roles(cached, (3, 5)), data.loss(objective, 8), cached).item() != got.item()


def test_autocast_keeps_the_weights_in_the_second_forward():
    """Casts that autocast remembered from the first, which has no graph, would cut them off."""
    data, objective = Data.make(8), Objective(LossOptions(loss="in_batch", temperature=0.1))
    plain, cached = model(), model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_backward(data.roles(plain), data.loss(objective, 8), plain)
        cached_backward(data.roles(cached, (3, 4)), data.loss(objective, 8), cached)
    assert apart(gradients(cached), gradients(plain)) < 0.05


def test_chunks_are_cut_to_their_longest_row_and_hold_every_row_once():
    data = Data.make(10)
    chunks = gradcache.plan(data.roles(model(), (4, 7)))
    for role, (whole, most) in enumerate(((data.queries, 4), (data.passages, 7))):
        mine = [chunk for chunk in chunks if chunk.role == role]
        assert torch.cat([chunk.rows for chunk in mine]).sort().values.tolist() == list(range(len(whole.input_ids)))
        assert all(len(chunk.rows) <= most for chunk in mine)
        for chunk in mine:
            longest = int(whole.attention_mask[chunk.rows].sum(1).max())
            width = chunk.tokens.input_ids.shape[1]
            assert width == min(whole.input_ids.shape[1], math.ceil(longest / 8) * 8)
            assert torch.equal(chunk.tokens.input_ids, whole.input_ids[chunk.rows, :width])


def test_rows_that_cannot_be_cut_are_refused():
    left = TokenInputs(torch.tensor([[0, 5], [4, 5]]), torch.tensor([[0, 1], [1, 1]]))
    with pytest.raises(ValueError, match="padded on the left"):
        gradcache.plan([Role(lambda batch: batch.input_ids, left, 1)])
    with pytest.raises(ValueError, match="without rows"):
        gradcache.plan([Role(lambda batch: batch.input_ids, tokens(0, 4, 0), 1)])


# Two processes

SPLIT = [(0, 3), (3, 8)]  # questions of each rank: uneven, so that one needs filler chunks


def test_two_ranks_have_the_gradients_of_one():
    """Every check of `_CHECKS` in two Gloo processes; an assertion that fails there fails here."""
    in_two_ranks(_every_check)


def _every_check() -> None:
    for check in _CHECKS:
        check(dist.get_rank())


def _ddp(encoder: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(encoder, forward_sync_buffers=False)


def _fsdp2(encoder: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for tower in encoder.towers.values():  # type: ignore[operator,union-attr]
        for layer in tower.body.encoder.layer:
            fully_shard(layer, mesh=mesh)
    return fully_shard(encoder, mesh=mesh)


def _one_process(data: Data, objective: Objective, **options: Any) -> dict[str, Tensor]:
    """The gradients of the whole batch at once, by a process that asks no other."""
    alone = model(**options)
    vectors = [role.encode(role.tokens) for role in data.roles(alone)]
    kind = "listed" if objective.options.loss == "listed" else "in_batch"
    local = Objective(objective.options.model_copy(update={"loss": kind}))
    (reduce(local(*vectors, data.targets)).total / len(data.queries.input_ids)).backward()
    return gradients(alone)


def _cross_rank(rank: int) -> None:
    data, objective = Data.make(8), Objective(LossOptions(loss="cross_rank", temperature=0.1, symmetric=True))
    mine = data.part(*SPLIT[rank])
    for options in ({}, {"separate": True}, {"pooling": "multi_vector"}):
        wanted = _one_process(data, objective, **options)
        for wrap in (_ddp, _fsdp2):
            for rows in ((0, 0), (2, 2)):
                trained = wrap(model(**options))
                run = cached_backward if any(rows) else plain_backward
                run(mine.roles(trained, rows), mine.loss(objective, 8, ranks=2), trained)
                away = apart(gradients(trained), wanted)
                assert away < 2e-6, f"{wrap.__name__} {options} {rows}: {away}"


def _fillers(rank: int) -> None:
    """Rows that only fill a rank's batch, one or all of a rank's: as if they were not there, forth and back."""
    data, objective = Data.make(5), Objective(LossOptions(loss="cross_rank", temperature=0.1, symmetric=True))
    for real, cuts in ((3, [(0, 2), (2, 4)]), (2, [(0, 2), (2, 3)])):
        wanted = _one_process(data.part(0, real), objective)
        mine = data.part(*cuts[rank])
        targets = _marked(mine, torch.arange(*cuts[rank]) < real)

        def loss(queries: Any, passages: Any, targets: Targets = targets, questions: int = real) -> Tensor:
            return backward_scale(questions, 2) * reduce(objective(queries, passages, targets), targets.real_Q).total

        for rows in ((0, 0), (1, 2)):
            trained = _ddp(model())
            run = cached_backward if any(rows) else plain_backward
            run(mine.roles(trained, rows), loss, trained)
            away = apart(gradients(trained), wanted)
            assert away < 2e-6, f"{real} questions, {rows}: {away}"


def _marked(data: Data, real_Q: Tensor) -> Targets:
    """As batches mark fillers: their passages have the key 0, which is a known positive of every question."""
    documents = torch.where(real_Q.repeat_interleave(LISTED), data.documents + 1, 0)
    texts = torch.where(documents > 0, documents + 1000, 0)
    known = torch.stack([documents[::LISTED], torch.zeros_like(documents[::LISTED])], 1).flatten()
    return Targets(Keys(documents, texts, known, torch.arange(0, 2 * len(real_Q) + 1, 2)), real_Q)


def _half_frozen(rank: int) -> None:
    """The last role takes no part in the last backward; the other's gradients come together all the same."""
    data, objective = Data.make(8), Objective(LossOptions(loss="cross_rank", temperature=0.1))
    wanted = _one_process(data, objective, separate=True)
    wanted = {name: gradient for name, gradient in wanted.items() if ".query.body" in name}
    mine = data.part(*SPLIT[rank])
    for wrap in (_ddp, _fsdp2):
        encoder = model(separate=True)
        encoder.tower("document").requires_grad_(False)
        trained = wrap(encoder)
        cached_backward(mine.roles(trained, (2, 2), "document"), mine.loss(objective, 8, ranks=2), trained)
        assert apart(gradients(trained), wanted) < 2e-6, wrap.__name__


def _accumulation(rank: int) -> None:
    """Two micro-steps on each of two ranks, unevenly cut, against one batch."""
    data, objective = Data.make(8), Objective(LossOptions(loss="listed", temperature=0.1))
    wanted = _one_process(data, objective)
    cuts = [[(0, 1), (1, 3)], [(3, 6), (6, 8)]][rank]
    for wrap in (_ddp, _fsdp2):
        for rows in ((0, 0), (1, 2)):
            trained = wrap(model())
            for step, cut in enumerate(cuts):
                mine, run = data.part(*cut), cached_backward if any(rows) else plain_backward
                loss = mine.loss(objective, 8, ranks=2)
                run(mine.roles(trained, rows), loss, trained, synchronise=step == 1)
            away = apart(gradients(trained), wanted)
            assert away < 2e-6, f"{wrap.__name__} {rows}: {away}"


def _synchronised_once(rank: int) -> None:
    """Until the last micro-step gradients stay on their rank; then they come together once, not once a chunk."""
    data, objective = Data.make(8), Objective(LossOptions(loss="listed", temperature=0.1))
    mine = data.part(*SPLIT[rank])
    alone = model()
    plain_backward(mine.roles(alone), mine.loss(objective, 8), alone)

    trained: Any = _ddp(model())
    buckets = _Counted(trained)
    cached_backward(mine.roles(trained, (2, 2)), mine.loss(objective, 8), trained, synchronise=False)
    assert apart(gradients(trained), gradients(alone)) < 1e-6
    assert buckets.reduced == 0
    trained.zero_grad()
    cached_backward(mine.roles(trained, (2, 2)), mine.loss(objective, 8), trained)
    assert buckets.reduced == 1

    trained = _fsdp2(model())
    seen = []
    for synchronise in (False, True):
        with _Traffic() as traffic:
            cached_backward(mine.roles(trained, (2, 2)), mine.loss(objective, 8), trained, synchronise=synchronise)
        seen.append(traffic.reduced)
    assert seen == [0, 3], f"{seen}: one for each layer and one for the root"


class _Traffic(TorchDispatchMode):
    """How often FSDP2 brought gradients together."""

    reduced = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reduced += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


class _Counted:
    """How often DDP brought its (one) bucket of gradients together."""

    def __init__(self, trained: Any) -> None:
        self.reduced = 0
        trained.register_comm_hook(dist.group.WORLD, self._hook)

    def _hook(self, state, bucket):
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.reduced += 1
        return allreduce_hook(state, bucket)


def _gathering(rank: int) -> None:
    """Rows of uneven ranks in order; the gradient of a row is the sum of what every rank makes of it."""
    mine = torch.arange(2.0 + rank)[:, None].add(10 * rank).requires_grad_()
    every = gather_rows(mine)
    assert every.flatten().tolist() == [0, 1, 10, 11, 12]
    (every.flatten() * torch.arange(5.0) * (rank + 1)).sum().backward()
    assert mine.grad is not None
    assert mine.grad.flatten().tolist() == [[0, 3], [6, 9, 12]][rank]

    many = MultiVectors(torch.ones(1, 1 + rank, 2), torch.ones(1, 1 + rank, dtype=torch.bool))
    both = gather_vectors(many)
    assert isinstance(both, MultiVectors)
    assert both.mask_NT.tolist() == [[True, False], [True, True]]
    assert both.vectors_NTD.sum(-1).tolist() == [[2, 0], [2, 2]]

    data = Data.make(8)
    own = gathered_columns(data.part(*SPLIT[rank]).targets.keys)
    assert torch.equal(own.forbidden_QP, own_columns(data.targets.keys).forbidden_QP[slice(*SPLIT[rank])])
    assert own.positive_Q.tolist() == [LISTED * q for q in range(*SPLIT[rank])]


def _metrics(rank: int) -> None:
    """A rank of three rows and one of one: the mean over four."""
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.6, 0.1], [0.1, 0.2, 0.3], [0.7, 0.7, 0.1]])
    rows = [slice(0, 3), slice(3, 4)][rank]
    tally = Tally()
    tally.add(torch.tensor([1.0, 2.0, 3.0, 4.0])[rows], scores[rows])
    found = tally.result()
    assert found["val_loss"] == 2.5 and found["val_acc1"] == 0.25
    assert abs(found["val_mrr"] - (1 + 1 / 2 + 1 / 3 + 1 / 2) / 4) < 1e-12
    assert sum_over_ranks(torch.tensor(rank + 1)).item() == 3


_CHECKS = [_gathering, _metrics, _cross_rank, _fillers, _half_frozen, _accumulation, _synchronised_once]
