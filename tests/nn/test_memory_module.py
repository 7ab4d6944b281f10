"""Memories: weights, shrinking, blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from amiss.errors import OptionError
from amiss.nn.memory_module import BlockMemory, Memory, division, emptied, entropy, shrunk


def memory(items: int = 7, dim: int = 5, **options: float | str) -> Memory:
    torch.manual_seed(0)
    return Memory(items, dim, **options)  # type: ignore[arg-type]


def queries(count: int = 9, dim: int = 5) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_weights_are_the_softmax_of_cosines(temperature: float) -> None:
    """M1 and B2; the angle alone counts."""
    bank, asked = memory(temperature=temperature), queries()
    weights = bank.weights(asked)
    cosines = F.cosine_similarity(asked[:, None], bank.items[None], dim=2)
    torch.testing.assert_close(weights, (cosines / temperature).softmax(1), atol=1e-6, rtol=1e-5)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(9))
    torch.testing.assert_close(bank.weights(37.5 * asked), weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bank(asked).values, weights @ bank.items)


def test_products_count_lengths_as_well() -> None:
    bank, asked = memory(similarity="dot"), queries()
    torch.testing.assert_close(bank.weights(asked), (asked @ bank.items.T).softmax(1))
    assert not torch.allclose(bank.weights(2 * asked), bank.weights(asked), atol=1e-3)


def test_a_query_of_nothing_is_answered_evenly() -> None:
    weights = memory().weights(torch.zeros(2, 5))
    torch.testing.assert_close(weights, torch.full((2, 7), 1 / 7))
    loss = memory()(torch.zeros(2, 5, requires_grad=True)).values.sum()
    loss.backward()


def test_cosines_of_one_temperature_are_nearly_even() -> None:
    """B5: the largest weight is at most e^2 times the least."""
    bank = memory(500, 64)
    with torch.no_grad():
        bank.items[1] = -3 * bank.items[0]
    asked = torch.cat([5 * bank.items[:1].detach(), queries(50, 64)])
    weights = bank.weights(asked).detach()
    ratios = weights.amax(1) / weights.amin(1)
    assert float(ratios[0]) == pytest.approx(math.e**2, rel=1e-5)  # an item, and its opposite
    assert float(ratios[1:].max()) < math.e**2


def test_blocks_are_weighed_by_their_angles_alone() -> None:
    """B2, through blocks that cut the channels too."""
    blocks = BlockMemory((8, 4, 6), (2, 3, 4), 7)
    maps = torch.randn(2, 8, 4, 6)
    weights = blocks(maps).weights
    assert weights.shape == (2 * 24, 7)
    torch.testing.assert_close(weights.sum(1), torch.ones(48))
    torch.testing.assert_close(blocks(11 * maps).weights, weights, atol=1e-6, rtol=1e-5)


def test_half_precision_does_not_reach_the_weights() -> None:
    bank, asked = memory(temperature=0.02), queries()
    with torch.autocast("cpu", torch.bfloat16):
        found = bank.weights(asked)
    assert torch.equal(found, bank.weights(asked))


def test_what_is_shrunk_is_gone_and_the_others_share_one() -> None:
    """M2."""
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]])
    found = shrunk(weights, 0.15)
    torch.testing.assert_close(found[0], torch.tensor([0.625, 0.375, 0.0, 0.0]))
    torch.testing.assert_close(found[1], weights[1])
    assert torch.equal(shrunk(weights, 0.25)[1], weights[1])  # none is above: as they were
    assert emptied(weights, 0.25).tolist() == [False, True]
    assert emptied(weights, 0.5).tolist() == [True, True]


def test_gradients_pass_what_was_shrunk() -> None:
    bank = memory(shrinkage=0.15)
    asked = queries().requires_grad_()
    bank(asked).values.square().sum().backward()
    assert asked.grad is not None and asked.grad.isfinite().all() and bool(asked.grad.any())
    assert bank.items.grad is not None and bank.items.grad.isfinite().all()


def test_a_weight_just_above_the_limit_has_a_slope_like_the_others() -> None:
    limit = torch.tensor(0.0025)
    above = torch.nextafter(limit, torch.tensor(1.0))
    weights = torch.tensor([[float(above), 0.4, 0.5975]], requires_grad=True)
    kept = shrunk(weights, 0.0025)
    assert kept[0, 0] > 0
    kept[0, 1].backward()
    assert weights.grad is not None and float(weights.grad.abs().max()) < 2


def test_entropy_goes_from_nothing_to_log_n() -> None:
    """M3."""
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(entropy(weights), torch.tensor([0.0, math.log(4)]))


def test_one_item_answers_everything() -> None:
    """M4."""
    bank = memory(1)
    torch.testing.assert_close(bank(queries()).values, bank.items.expand(9, -1))


@pytest.mark.parametrize("rates", [(8, 8, 1), (1, 1, 1), (16, 8, 1), (4, 2, 4)])
def test_what_is_divided_can_be_assembled(rates: tuple[int, int, int]) -> None:
    """B1, to the bit."""
    blocks = BlockMemory((12, 16, 8), rates, 3)
    maps = torch.randn(2, 12, 16, 8)
    parts = blocks.divide(maps)
    assert parts.shape == (2 * math.prod(rates), 12 * 16 * 8 // math.prod(rates))
    assert torch.equal(blocks.assemble(parts), maps)
    channels_last = maps.to(memory_format=torch.channels_last)
    assert torch.equal(blocks.assemble(blocks.divide(channels_last)), maps)


def test_blocks_are_what_lies_together() -> None:
    blocks = BlockMemory((2, 4, 6), (2, 3, 2), 3)
    maps = torch.arange(48.0).view(1, 2, 4, 6)
    parts = blocks.divide(maps)
    assert torch.equal(parts[0].view(2, 2), maps[0, 0, :2, :2])  # the first channel's corner
    assert torch.equal(parts[1].view(2, 2), maps[0, 1, :2, :2])  # the second's
    assert torch.equal(parts[2].view(2, 2), maps[0, 0, :2, 2:4])  # one to the right


def test_the_finest_division_asks_for_each_cell_the_coarsest_for_all() -> None:
    """B3."""
    maps = torch.randn(2, 5, 4, 3)
    cells = BlockMemory((5, 4, 3), (4, 3, 1), 7)
    asked = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    values, weights = cells(maps)
    torch.testing.assert_close(weights, cells.memory.weights(asked))
    wanted = cells.memory(asked).values.view(2, 4, 3, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(values, wanted)
    whole = BlockMemory((5, 4, 3), (1, 1, 1), 7)
    assert whole(maps).weights.shape == (2, 7)


def test_small_maps_are_cut_into_what_they_have() -> None:
    assert division((8, 8, 1), (64, 4, 16)) == (4, 8, 1)
    assert division((8, 8, 1), (64, 2, 2)) == (2, 2, 1)
    with pytest.raises(OptionError, match="12 x 16 cells"):
        division((8, 8, 1), (64, 12, 16))
    with pytest.raises(OptionError, match="does not divide a map"):
        BlockMemory((64, 8, 8), (3, 8, 1), 5)
