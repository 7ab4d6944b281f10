"""Each loss against its formula on numbers that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from amiss.nn.losses import (
    compactness_loss,
    direction_loss,
    distillation_loss,
    triplet_loss,
    value_loss,
)


def test_distillation_is_a_squared_distance_averaged_over_patches() -> None:
    decoded = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    wanted = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert distillation_loss(decoded, wanted) == pytest.approx((4 + 25) / 2)


def test_a_triplet_costs_nothing_once_the_negative_is_far_enough() -> None:
    anchor = torch.zeros(1, 4)
    negative = torch.full((1, 4), 2.0)  # squared distance 16
    assert triplet_loss(anchor, anchor, negative, margin=16.0) == 0
    assert triplet_loss(anchor, anchor, negative, margin=20.0) == 4


def test_a_negative_near_the_positive_counts_as_near() -> None:
    anchor, positive = torch.tensor([[0.0]]), torch.tensor([[3.0]])
    negative = torch.tensor([[4.0]])  # 16 from the anchor, 1 from the positive
    assert triplet_loss(anchor, positive, negative, margin=2.0) == 2 + 9 - 1


def test_compactness_is_nothing_for_uncorrelated_entries() -> None:
    uncorrelated = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert compactness_loss(uncorrelated) == pytest.approx(0, abs=1e-6)
    equal = torch.tensor([[1.0, 2.0], [2.0, 4.0], [5.0, 10.0]])  # correlation 1, twice
    assert compactness_loss(equal) == pytest.approx(2, abs=1e-5)
    assert torch.isfinite(compactness_loss(torch.ones(3, 2)))


def test_a_scaled_clone_differs_in_value_and_not_in_direction() -> None:
    torch.manual_seed(0)
    source = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    assert direction_loss(source, 0.3 * source).abs().max() < 1e-12
    expected = (1 - 0.3) ** 2 * source.square().mean((1, 2, 3))
    torch.testing.assert_close(value_loss(source, 0.3 * source), expected)
    assert value_loss(source, source).eq(0).all()


def test_orthogonal_activations_have_a_direction_loss_of_one() -> None:
    source, clone = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    source[0, 0], clone[0, 1] = 1.0, 5.0
    assert direction_loss(source, clone) == 1
    assert direction_loss(source, -source) == 2
    assert torch.isfinite(direction_loss(source, torch.zeros_like(source)))


def test_only_what_lies_inside_counts() -> None:
    torch.manual_seed(0)
    source, clone = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    inside = torch.zeros(2, 1, 4, 4)
    inside[:, :, :2] = 1
    half = (source[:, :, :2], clone[:, :, :2])
    torch.testing.assert_close(value_loss(source, clone, inside), value_loss(*half))
    torch.testing.assert_close(direction_loss(source, clone, inside), direction_loss(*half))


def test_directions_of_small_values_count_as_those_of_large_ones() -> None:
    torch.manual_seed(0)
    source = torch.randn(2, 3, 4, 4)
    for size in (1e-4, 1.0, 1e4):
        small = size * source
        assert direction_loss(small, small).abs().max() < 1e-5
        assert direction_loss(small, -small).tolist() == pytest.approx([2, 2], abs=1e-5)
    zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
    direction_loss(source, zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()
