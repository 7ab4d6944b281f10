"""Leaving one image out: the bank, and what it answers, against plain searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amiss.memory.coreset import covering_radius, greedy_coreset
from amiss.memory.leave_out import LeaveOneOut

N, P, D = 12, 30, 5


def patches(seed: int = 0) -> Tensor:
    return torch.randn(N * P, D, generator=torch.Generator().manual_seed(seed))


def images_of(flat: Tensor, rows: Tensor) -> list[int]:
    """The image of each of `rows`, found by its values."""
    return [int((flat == row).all(1).nonzero()[0]) // P for row in rows]


@pytest.mark.parametrize("size", [1, 3, 40, 120])
def test_a_bank_holds_no_row_of_the_image_left_out_and_answers_exactly(size: int) -> None:
    flat = patches()
    chosen = greedy_coreset(flat, size)
    others = LeaveOneOut(flat, chosen, np.ones(N * P, dtype=np.bool_), np.arange(N))
    for image in range(N):
        bank = others.without(image, 4)
        assert image not in images_of(flat, bank.rows)
        own = flat[image * P : (image + 1) * P]
        distance, nearest = bank.nearest(own)
        exact = torch.cdist(own.double(), bank.rows.double())
        torch.testing.assert_close(distance.double(), exact.min(1).values, rtol=1e-5, atol=1e-6)
        picked = exact[torch.arange(P), nearest]
        torch.testing.assert_close(picked, exact.min(1).values, rtol=1e-5, atol=1e-6)


def test_the_bank_is_as_large_and_covers_as_well_as_before() -> None:
    flat = patches(1)
    chosen = greedy_coreset(flat, 60)
    others = LeaveOneOut(flat, chosen, np.ones(N * P, dtype=np.bool_), np.arange(N))
    for image in range(N):
        bank = others.without(image, 4)
        rest = np.repeat(np.arange(N) != image, P)
        distance = torch.cdist(flat[torch.from_numpy(rest)], bank.rows).min(1).values
        assert float(distance.max()) <= chosen.radius + 1e-5
        removed = int((chosen.indices // P == image).sum())
        assert 60 - removed <= len(bank.rows) <= 60 + removed


def test_neighbourhoods_lead_with_the_row_itself() -> None:
    flat = patches(2)
    others = LeaveOneOut(
        flat, greedy_coreset(flat, 50), np.ones(N * P, dtype=np.bool_), np.arange(N)
    )
    bank = others.without(3, 6)
    near = bank.neighborhood(torch.tensor([0, 7]))
    exact = torch.cdist(bank.rows, bank.rows)
    assert near.shape == (2, 6, D)
    for found, row in zip(near, (0, 7), strict=True):
        assert torch.equal(found[0], bank.rows[row])
        expected = bank.rows[exact[row].topk(6, largest=False).indices]
        torch.testing.assert_close(found.sort(0).values, expected.sort(0).values)


def test_patches_outside_the_region_are_neither_covered_nor_picked() -> None:
    flat = patches(3)
    inside = np.ones(N * P, dtype=np.bool_)
    inside[::2] = False
    chosen = greedy_coreset(flat, 30, start=1, allowed=inside)
    others = LeaveOneOut(flat, chosen, inside, np.arange(N))
    outside = flat[torch.from_numpy(~inside)]
    for image in range(N):
        rows = others.without(image, 3).rows
        assert float(torch.cdist(rows, outside).min()) > 0
        assert covering_radius(flat, chosen.indices, allowed=inside) == pytest.approx(chosen.radius)


def test_images_of_a_group_are_left_out_together() -> None:
    flat = patches(4)
    flat[P : 2 * P] = flat[:P]  # image 1 is a copy of image 0
    group = np.array([0, 0, *range(1, N - 1)])
    everything = np.ones(N * P, dtype=np.bool_)
    chosen = greedy_coreset(flat, 100)
    apart = LeaveOneOut(flat, chosen, everything, np.arange(N)).without(0, 4)
    together = LeaveOneOut(flat, chosen, everything, group).without(0, 4)
    own = torch.cdist(flat[:P], together.rows)
    assert float(own.min()) > 0
    torch.testing.assert_close(together.nearest(flat[:P])[0], own.min(1).values)
    assert float(apart.nearest(flat[:P])[0].min()) == 0  # the copy vouches for it
