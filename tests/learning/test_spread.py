"""The units of disagreement: mean 0 and deviation 1 on the images they were taken from."""

from __future__ import annotations

import torch

from amiss.learning.spread import spread, spreads_without, sums


def test_scaled_by_their_own_spread_maps_have_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    maps = 5 + 3 * torch.rand(4, 2, 2, 6, 7)  # (N, L, 2, h, w)
    found = spread(sum(sums(one) for one in maps))  # type: ignore[arg-type]
    mean, deviation = found.unbind(2)
    scaled = (maps - mean[:, :, None, None]) / deviation[:, :, None, None]
    values = scaled.permute(1, 2, 0, 3, 4).flatten(2)
    torch.testing.assert_close(values.mean(2), torch.zeros(2, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(values.std(2, correction=0), torch.ones(2, 2), rtol=0, atol=1e-5)


def test_cells_outside_do_not_count() -> None:
    maps = torch.zeros(1, 2, 2, 2)
    maps[..., 1] = 9.0
    inside = torch.tensor([[True, False], [True, False]])
    assert sums(maps, inside)[0, 0].tolist() == [2, 0, 0]
    assert spread(sums(maps, inside))[0, 0, 0] == 0


def test_each_group_is_measured_by_the_others() -> None:
    torch.manual_seed(0)
    groups = {i: sums(torch.randn(1, 2, 4, 4) + i) for i in range(3)}
    total, without = spreads_without(groups)
    torch.testing.assert_close(without[1], spread(groups[0] + groups[2]))
    torch.testing.assert_close(total, spread(groups[0] + groups[1] + groups[2]))
    alone, own = spreads_without({7: groups[0]})
    assert torch.equal(alone, own[7])


def test_students_that_always_agree_do_not_divide_by_nothing() -> None:
    assert torch.isfinite(1 / spread(sums(torch.zeros(1, 2, 3, 3)))[..., 1]).all()
