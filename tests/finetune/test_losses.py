"""Loss functions and masks against hand-worked numbers and other people's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from raycurate.core.errors import ConfigError
from raycurate.training.loss import losses
from raycurate.training.loss.losses import Columns
from raycurate.training.loss.masks import Keys, forbidden_columns, own_columns, reversed_columns
from raycurate.training.loss.objective import Objective, Targets
from raycurate.training.loss.options import Distillation, FalseNegatives, LossOptions
from raycurate.training.model.multi_vector import MultiVectors

LN2 = math.log(2)


def columns(positive: list[int], forbidden: list[tuple[int, int]], width: int, listed: int = 1) -> Columns:
    mask = torch.zeros(len(positive), width, dtype=torch.bool)
    for row, column in forbidden:
        mask[row, column] = True
    return Columns(torch.tensor(positive), mask, listed)


def keys(documents: list[int], known: list[list[int]], texts: list[int] | None = None) -> Keys:
    """Keys as a batch has them; texts are 1000 + document unless given."""
    offsets = np.cumsum([0, *map(len, known)])
    return Keys(
        torch.tensor(documents),
        torch.tensor(texts or [1000 + d for d in documents]),
        torch.tensor([key for row in known for key in row], dtype=torch.int64),
        torch.from_numpy(offsets),
    )


def near(got: Tensor, wanted: list[float], tolerance: float = 1e-6) -> bool:
    return bool((got - torch.tensor(wanted)).abs().max() <= tolerance)


# Contrastive


def test_listed_is_cross_entropy_of_scores_over_temperature():
    scores = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    loss = losses.listed(scores, temperature=0.5)
    assert near(loss, [LN2, math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))])


def test_in_batch_leaves_out_forbidden_columns_and_gives_them_no_gradient():
    scores = torch.tensor([[1.0, 1.0, 9.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = losses.in_batch(scores, columns([0, 1], [(0, 2)], 3), temperature=1.0)
    assert near(loss.detach(), [LN2, math.log(3)])
    loss.sum().backward()
    assert scores.grad is not None
    assert near(scores.grad, [[-0.5, 0.5, 0.0], [1 / 3, -2 / 3, 1 / 3]])


def test_a_row_without_any_negative_left_has_no_loss_and_no_gradient():
    scores = torch.tensor([[0.3, 0.9]], requires_grad=True)
    loss = losses.in_batch(scores, columns([0], [(0, 1)], 2), temperature=0.02)
    loss.sum().backward()
    assert loss.item() == 0
    assert scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize(
    ("rule", "masked"),
    [
        (FalseNegatives(kind="perc", margin=0.95), [False, True, False]),  # bound 0.76
        (FalseNegatives(kind="perc", margin=0.9), [False, True, True]),  # bound 0.72
        (FalseNegatives(kind="abs", margin=0.05), [False, True, False]),  # bound 0.75, and 0.75 is not above it
        (FalseNegatives.model_construct(kind="abs", margin=-0.2), [False, False, False]),  # bound 1.0
    ],
)
def test_margin_masks_columns_above_the_bound(rule: FalseNegatives, masked: list[bool]):
    scores = torch.tensor([[0.8, 0.9, 0.75]])
    assert losses.false_negative_columns(scores, columns([0], [], 3), rule).tolist() == [masked]


def test_margin_under_a_negative_positive_lies_below_it():
    # p = -0.5: bound -0.5 - 0.05 * 0.5 = -0.525, where p * 0.95 would be above p
    scores = torch.tensor([[-0.5, -0.51, -0.53]])
    found = losses.false_negative_columns(scores, columns([0], [], 3), FalseNegatives(kind="perc", margin=0.95))
    assert found.tolist() == [[False, True, False]]


def test_margin_spares_a_questions_own_listed_negatives_unless_asked():
    scores = torch.tensor([[0.5, 0.9, 0.9, 0.9], [0.9, 0.9, 0.5, 0.9]])
    at = columns([0, 2], [], 4, listed=2)
    spared = losses.false_negative_columns(scores, at, FalseNegatives())
    assert spared.tolist() == [[False, False, True, True], [True, True, False, False]]
    every = losses.false_negative_columns(scores, at, FalseNegatives(listed_too=True))
    assert every.tolist() == [[False, True, True, True], [True, True, False, True]]


def test_scale_makes_the_average_over_ranks_the_mean_over_all():
    parts = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([5.0])]  # two ranks, uneven
    sums = [losses.reduce(part) for part in parts]
    scale = losses.backward_scale(sum(int(s.questions) for s in sums), ranks=2)
    assert sum(scale * s.total.item() for s in sums) / 2 == pytest.approx(14 / 4)


# Scores


def test_maxsim_counts_no_padding_on_either_side():
    query = MultiVectors(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]]))
    passages = MultiVectors(
        torch.tensor([[[0.5, 0.1], [0.2, 0.4]], [[-0.3, -0.6], [7.0, 7.0]]]),
        torch.tensor([[True, True], [True, False]]),
    )
    assert near(losses.scores(query, passages), [[0.5 + 0.4, -0.3 - 0.6]])
    assert near(losses.listed_scores(query, passages), [[0.5 + 0.4, -0.3 - 0.6]])


def test_listed_scores_are_the_own_columns_of_all_scores():
    generator = torch.Generator().manual_seed(0)
    queries, passages = torch.randn(3, 5, generator=generator), torch.randn(12, 5, generator=generator)
    own = columns([0, 4, 8], [], 12, listed=4).own_QN()
    assert torch.allclose(losses.scores(queries, passages).gather(1, own), losses.listed_scores(queries, passages))
    real_q, real_p = torch.rand(3, 4, generator=generator) < 0.7, torch.rand(12, 6, generator=generator) < 0.7
    real_q[:, 0] = real_p[:, 0] = True
    many_q = MultiVectors(torch.randn(3, 4, 5, generator=generator), real_q)
    many_p = MultiVectors(torch.randn(12, 6, 5, generator=generator), real_p)
    assert torch.allclose(losses.scores(many_q, many_p).gather(1, own), losses.listed_scores(many_q, many_p))


def test_prefixes_are_of_length_one_again_only_where_the_model_normalises():
    vectors = torch.tensor([[0.6, 0.0, 0.8]])
    assert near(losses.at_dimension(vectors, 2, normalised=True), [[1.0, 0.0]])
    assert near(losses.at_dimension(vectors, 2, normalised=False), [[0.6, 0.0]])
    with pytest.raises(ValueError, match="3 dimensions, so no prefix of 4"):
        losses.at_dimension(vectors, 4, normalised=True)


# Distillation


def test_kl_by_hand_and_zero_for_a_perfect_student():
    scores, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3) * 2, 0.0]])
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert near(losses.kl_to_teacher(scores, teacher, temperature=0.1, teacher_temperature=2.0), [wanted])
    same = losses.kl_to_teacher(teacher * 0.05, teacher, temperature=0.1, teacher_temperature=2.0)
    assert near(same, [0.0])


def test_passages_without_a_teacher_score_take_no_part():
    nan = math.nan
    scores = torch.tensor([[0.0, 5.0, 0.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    teacher = torch.tensor([[math.log(3), nan, 0.0], [nan, nan, nan], [nan, 1.0, nan]])
    loss = losses.kl_to_teacher(scores, teacher, temperature=1.0)
    assert near(loss.detach(), [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0, 0.0])
    loss.sum().backward()
    assert scores.grad is not None
    assert near(scores.grad, [[-0.25, 0.0, 0.25], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    scores.grad = None
    loss = losses.margin_mse(scores, torch.tensor([[3.0, nan, 1.0], [nan, 1.0, 2.0], [0.0, 1.0, 2.0]]))
    assert near(loss.detach(), [4.0, 0.0, 0.0])
    loss.sum().backward()
    assert not scores.grad.isnan().any()  # type: ignore[attr-defined]


def test_margin_mse_by_hand():
    loss = losses.margin_mse(torch.tensor([[0.9, 0.4, 0.8]]), torch.tensor([[8.0, 2.0, 7.0]]), teacher_scale=0.1)
    assert near(loss, [((0.5 - 0.6) ** 2 + (0.1 - 0.1) ** 2) / 2])


def test_cosine_to_teacher_by_hand():
    queries, passages = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    teacher_q, teacher_p = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = losses.embeddings_to_teacher(queries, passages, teacher_q, teacher_p)
    assert near(loss, [(0 + 1 + 1 - math.sqrt(0.5)) / 3])


# Masks


def test_masks_by_hand():
    # two questions, each with a positive and a negative; documents 1..4
    # 0's positive is 1; 2 is a negative of 0. 1's positive is 3, its negative is 1: a known positive of question 0.
    batch = keys([1, 2, 3, 1], [[1, 1001], [3]])
    assert own_columns(batch).forbidden_QP.tolist() == [[False, False, False, True], [False, False, False, False]]
    assert own_columns(batch).positive_Q.tolist() == [0, 2]
    # known positives that were drawn for another question, by id (3) and by text (1004)
    batch = keys([1, 2, 3, 4], [[1, 3, 1004], [3]])
    assert own_columns(batch).forbidden_QP.tolist() == [[False, False, True, True], [False, False, False, False]]
    # a copy of the positive's text under another id, not named among the known ones
    batch = keys([1, 2, 3, 4], [[1], [3]], texts=[7, 8, 9, 7])
    assert own_columns(batch).forbidden_QP.tolist() == [[False, False, False, True], [False, False, False, False]]


def test_a_questions_own_positive_is_never_forbidden_even_when_two_rows_share_it():
    batch = keys([5, 5, 5], [[5, 1005]] * 3)
    assert own_columns(batch).forbidden_QP.tolist() == [
        [False, True, True],
        [True, False, True],
        [True, True, False],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_masks_equal_those_of_a_plain_loop(seed: int):
    random = np.random.default_rng(seed)
    questions, listed = 7, 3
    documents = random.integers(-5, 12, questions * listed)
    texts = documents // 2 + 100  # pairs of documents with one text
    first = np.arange(questions) * listed
    known = [sorted({documents[p], texts[p], *random.integers(-5, 12, random.integers(0, 4)).tolist()}) for p in first]
    batch = keys(documents.tolist(), known, texts.tolist())
    wanted = [
        [
            column != first[row]
            and (documents[column] in known[row] or texts[column] in known[row])  # its positive's are among them
            for column in range(len(documents))
        ]
        for row in range(questions)
    ]
    assert own_columns(batch).forbidden_QP.tolist() == wanted


def test_columns_that_are_no_rows_of_the_batch_are_judged_too():
    batch = keys([1, 2], [[1, 3], [2]])
    documents, texts = torch.tensor([9, 3, 1, 2]), torch.tensor([90, 30, 1001, 1002])
    found = forbidden_columns(batch, torch.tensor([2, 3]), documents, texts)
    assert found.tolist() == [[False, True, False, False], [False, False, False, False]]


def test_reversed_columns_are_the_transpose_at_the_positives():
    batch = keys([1, 2, 3, 4, 5, 6], [[1, 3], [3], [5, 1, 2]])
    forth = own_columns(batch)
    back = reversed_columns(forth, gathered=False)
    assert back.positive_Q.tolist() == [0, 1, 2]
    assert back.forbidden_QP.tolist() == [[False, False, True], [True, False, False], [False, False, False]]


# The whole objective


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_objective_is_sentence_transformers_multiple_negatives_loss():
    """Their in-batch loss with hard negatives, and the symmetric one without."""
    st = pytest.importorskip("sentence_transformers.util")
    queries, passages = unit(4, 8), unit(12, 8, seed=1)
    targets = Targets(keys(list(range(12)), [[]] * 4))
    similar = st.cos_sim(queries, torch.cat([passages[0::3], passages[1::3], passages[2::3]])) / 0.05
    wanted = torch.nn.functional.cross_entropy(similar, torch.arange(4))
    assert torch.allclose(
        Objective(LossOptions(loss="in_batch", temperature=0.05))(queries, passages, targets).mean(), wanted
    )

    targets = Targets(keys(list(range(4)), [[]] * 4))
    similar = st.cos_sim(queries, passages[:4]) / 0.05
    wanted = sum(torch.nn.functional.cross_entropy(s, torch.arange(4)) for s in (similar, similar.T)) / 2
    got = Objective(LossOptions(loss="in_batch", temperature=0.05, symmetric=True))(
        queries, passages[:4], targets
    ).mean()
    assert torch.allclose(got, wanted)


def test_cross_rank_in_one_process_is_in_batch():
    queries, passages = unit(3, 8), unit(6, 8, seed=1)
    targets = Targets(keys([1, 2, 3, 1, 4, 5], [[1], [3], [4]]))
    here, everywhere = (
        Objective(LossOptions(loss=kind, temperature=0.1, symmetric=True))  # type: ignore[arg-type]
        for kind in ("in_batch", "cross_rank")
    )
    assert torch.equal(here(queries, passages, targets), everywhere(queries, passages, targets))


def test_parts_add_up_with_their_weights():
    queries, passages = unit(2, 4), unit(4, 4, seed=1)
    teacher = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    targets = Targets(keys([1, 2, 3, 4], [[1], [3]]), None, teacher, unit(2, 4, seed=2), unit(4, 4, seed=3))
    parts = [
        Distillation(kind="kl", weight=0.5),
        Distillation(kind="margin_mse", weight=2.0),
        Distillation(kind="embeddings", weight=3.0, teacher="teacher"),
    ]
    dims = ((4, 1.0), (2, 0.25))
    got = Objective(
        LossOptions(loss="listed", temperature=0.1, contrastive_weight=0.7, matryoshka=dict(dims), distillation=parts)
    )(queries, passages, targets)
    small_q, small_p = (torch.nn.functional.normalize(v[:, :2], dim=1) for v in (queries, passages))
    own = losses.listed_scores(queries, passages)
    wanted = (
        0.7 * losses.listed(own, temperature=0.1)
        + 0.7 * 0.25 * losses.listed(losses.listed_scores(small_q, small_p), temperature=0.1)
        + 0.5 * losses.kl_to_teacher(own, teacher, temperature=0.1)
        + 2.0 * losses.margin_mse(own, teacher)
        + 3.0 * losses.embeddings_to_teacher(queries, passages, unit(2, 4, seed=2), unit(4, 4, seed=3))
    )
    assert torch.allclose(got, wanted)


def test_listed_negatives_that_are_known_positives_do_not_count():
    queries, passages = unit(2, 4), unit(6, 4, seed=1)
    targets = Targets(keys([1, 2, 3, 4, 5, 6], [[1, 2], [4]]))
    got = Objective(LossOptions(loss="listed", temperature=0.1))(queries, passages, targets)
    own = losses.listed_scores(queries, passages)
    assert torch.allclose(got[0], losses.listed(own[:1, [0, 2]], temperature=0.1)[0])
    assert torch.allclose(got[1], losses.listed(own[1:], temperature=0.1)[0])


def test_fillers_change_nothing_for_the_others():
    """A question with key 0 for its passages, which all know: as if it were not there, forth and back."""
    queries, passages = unit(3, 8), unit(6, 8, seed=1)
    objective = Objective(LossOptions(loss="in_batch", temperature=0.1, symmetric=True))
    wanted = objective(queries[:2], passages[:4], Targets(keys([1, 2, 3, 4], [[1], [3]])))
    real = torch.tensor([True, True, False])
    filled = keys([1, 2, 3, 4, 0, 0], [[1, 0], [3, 0], [0]], texts=[11, 12, 13, 14, 0, 0])
    got = objective(queries, passages, Targets(filled, real))
    assert torch.allclose(got, torch.cat([wanted, torch.zeros(1)]))
    assert [x.item() for x in losses.reduce(got + 1, real)] == [pytest.approx(wanted.sum().item() + 2), 2]


def test_fillers_take_no_part_on_the_way_back_whatever_their_keys():
    """Neither a filler's question, as a column, nor its positive, as a row; an unknown document is known by real_Q."""
    queries, passages = unit(3, 8), unit(3, 8, seed=1)
    batch = keys([1, 2, 9], [[1], [2], [9]])
    back = reversed_columns(own_columns(batch), gathered=False, real_Q=torch.tensor([True, True, False]))
    assert back.forbidden_QP.tolist() == [[False, False, True], [False, False, True], [False, False, False]]
    queries.requires_grad_()
    scores_QG = losses.scores(queries, passages).T
    losses.reduce(losses.in_batch(scores_QG, back, temperature=0.1), torch.tensor([True, True, False])).total.backward()
    assert queries.grad is not None and queries.grad[:2].any(1).all() and not queries.grad[2].any()


def test_autocast_does_not_reach_the_loss():
    queries, passages = unit(4, 64), unit(8, 64, seed=1)
    targets = Targets(keys(list(range(8)), [[]] * 4))
    objective = Objective(LossOptions(loss="in_batch", temperature=0.02))
    wanted = objective(queries, passages, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective(queries, passages, targets), wanted)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="temperature=0: it should be greater than 0"):
        LossOptions.parse({"temperature": 0}, where="test")
    with pytest.raises(ValueError, match="in_batch or cross_rank"):
        LossOptions(loss="listed", symmetric=True)
    with pytest.raises(ValueError, match="the teacher's scores"):
        Objective(LossOptions(distillation=[Distillation(kind="kl")]))(
            unit(1, 4), unit(2, 4), Targets(keys([1, 2], [[1]]))
        )
