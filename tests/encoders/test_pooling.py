"""Pooling against vectors worked by hand, for every kind of padding."""

import numpy as np
import pytest
import torch

from raycurate.core.errors import InputError
from raycurate.models.pooling import normalize, pool_packed, pool_padded

SEQUENCES = [
    np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], np.float32),
    np.array([[7.0, -1.0]], np.float32),
    np.array([[2.0, 0.0], [4.0, 6.0]], np.float32),
]
# mean: column means. weighted: (1*x1 + 2*x2 + 3*x3) / 6 and so on.
BY_HAND = {
    "mean": [[3.0, 5.0], [7.0, -1.0], [3.0, 3.0]],
    "cls": [[1.0, 2.0], [7.0, -1.0], [2.0, 0.0]],
    "last": [[5.0, 9.0], [7.0, -1.0], [4.0, 6.0]],
    "weighted_mean": [[22 / 6, 37 / 6], [7.0, -1.0], [10 / 3, 4.0]],
    "max": [[5.0, 9.0], [7.0, -1.0], [4.0, 6.0]],
    "mean_sqrt_len": [[9 / 3**0.5, 15 / 3**0.5], [7.0, -1.0], [6 / 2**0.5, 6 / 2**0.5]],
}
STARTS = {"right": [0, 0, 0], "left": [2, 4, 3], "mixed": [1, 0, 3]}


def rectangle(starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequences placed at `starts` in rows of 5; NaN everywhere else, so that padding that counts shows."""
    hidden, mask = np.full((3, 5, 2), np.nan, np.float32), np.zeros((3, 5), np.int64)
    for row, (start, sequence) in enumerate(zip(starts, SEQUENCES, strict=True)):
        hidden[row, start : start + len(sequence)], mask[row, start : start + len(sequence)] = sequence, 1
    return torch.from_numpy(hidden), torch.from_numpy(mask)


@pytest.mark.parametrize("padding", STARTS)
@pytest.mark.parametrize("pooling", BY_HAND)
def test_padded_pooling_is_the_hand_worked_one(pooling, padding):
    hidden, mask = rectangle(STARTS[padding])
    assert np.allclose(pool_padded(hidden, mask, pooling).numpy(), BY_HAND[pooling], atol=1e-6)


@pytest.mark.parametrize("pooling", BY_HAND)
def test_packed_pooling_is_the_hand_worked_one(pooling):
    packed = torch.from_numpy(np.concatenate(SEQUENCES))
    got = pool_packed(packed, torch.tensor([3, 1, 2]), pooling)
    assert np.allclose(got.numpy(), BY_HAND[pooling], atol=1e-6)


@pytest.mark.parametrize("padding", STARTS)
def test_multi_vector_is_the_real_tokens_only(padding):
    padded = pool_padded(*rectangle(STARTS[padding]), "multi_vector")
    packed = pool_packed(torch.from_numpy(np.concatenate(SEQUENCES)), torch.tensor([3, 1, 2]), "multi_vector")
    for one, other, expected in zip(padded, packed, SEQUENCES, strict=True):
        assert np.array_equal(one.numpy(), expected)
        assert np.array_equal(other.numpy(), expected)


@pytest.mark.parametrize("pooling", [*BY_HAND, "multi_vector"])
def test_a_row_without_tokens_is_an_error_not_nan(pooling):
    hidden, mask = rectangle(STARTS["right"])
    mask[1] = 0
    with pytest.raises(InputError, match=r"1 of 3 rows have no token.*\[1\]"):
        pool_padded(hidden, mask, pooling)
    with pytest.raises(InputError, match="have no token"):
        pool_packed(hidden[0, :3], torch.tensor([3, 0]), pooling)


def test_sums_run_in_float32_whatever_the_models_precision():
    # 512 + 1 is 512 in bfloat16: summed there, the mean of 512, 1, 1, 1, 1 would be 102.4, not 103.2.
    hidden = torch.tensor([[512.0], [1.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16)
    assert pool_packed(hidden, torch.tensor([5]), "mean").item() == pytest.approx(103.2)
    assert pool_padded(hidden[None], torch.ones(1, 5), "mean").item() == pytest.approx(103.2)


def test_normalize_gives_unit_length_to_vectors_and_to_each_token():
    assert np.allclose(normalize(torch.tensor([[3.0, 4.0]])).numpy(), [[0.6, 0.8]])
    assert np.allclose(normalize([torch.tensor([[0.0, 2.0], [3.0, 4.0]])])[0].numpy(), [[0, 1], [0.6, 0.8]])
