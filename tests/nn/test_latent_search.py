"""The search for codes: as torch's Adam, each image as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amiss.nn.latent_search import Search, search_codes


def _problem(n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return mix, torch.randn(n, 6, generator=generator, dtype=torch.float64)


def test_the_search_is_torchs_adam_with_three_rates() -> None:
    mix, wanted = _problem(1)
    search = Search(50, 0.1)
    found = search_codes(
        lambda z, i: (z @ mix.T - wanted[i]).abs().sum(1), torch.zeros(1, 5).double(), search
    )
    code = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([code], lr=0.1)
    for step in range(50):
        adam.param_groups[0]["lr"] = 0.1 if step < 20 else 0.01 if step < 30 else 0.005
        adam.zero_grad()
        (code @ mix.T - wanted).abs().sum().backward()
        adam.step()
    torch.testing.assert_close(found, code.detach())


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("keep_best", [False, True])
def test_images_together_are_searched_as_each_alone(patience: int, keep_best: bool) -> None:
    mix, wanted = _problem()
    wanted[2] *= 20  # goes on for longer than the others
    search = Search(60, 0.1, patience=patience, tolerance=0.02, keep_best=keep_best)
    start = torch.zeros(4, 5, dtype=torch.float64)

    def loss_of(targets: Tensor) -> object:
        return lambda z, i: (z @ mix.T - targets[i]).square().sum(1)

    together = search_codes(loss_of(wanted), start, search)  # type: ignore[arg-type]
    for n in range(4):
        alone = search_codes(loss_of(wanted[n : n + 1]), start[:1], search)  # type: ignore[arg-type]
        torch.testing.assert_close(together[n : n + 1], alone)


def test_an_image_that_comes_no_closer_leaves_the_batch() -> None:
    sizes: list[int] = []

    def loss_of(z: Tensor, numbers: Tensor) -> Tensor:
        sizes.append(len(z))
        still = torch.tensor([5.0, 0.0])[numbers]  # the first has nothing to gain
        return still + torch.tensor([0.0, 1.0])[numbers] * (z - 9).square().sum(1)

    found = search_codes(loss_of, torch.zeros(2, 1), Search(30, 0.1, patience=4, tolerance=0.001))
    assert sizes[:4] == [2] * 4 and sizes[-1] == 1
    assert found[0] == 0 and found[1] > 0.5


def test_the_best_code_is_kept_and_not_the_last() -> None:
    tried: list[float] = []

    def loss_of(z: Tensor, _: Tensor) -> Tensor:  # steps of 1 jump to and fro over the valley
        loss = (z - 0.4).abs().sum(1)
        tried.append(float(loss.detach()))
        return loss

    last = search_codes(loss_of, torch.zeros(1, 1), Search(2, 1.0))
    best = search_codes(loss_of, torch.zeros(1, 1), Search(2, 1.0, keep_best=True))
    least = min(tried)
    assert float(loss_of(best, last)) == pytest.approx(least)
    assert float(loss_of(last, last)) > least + 0.01


def test_codes_stay_in_bounds() -> None:
    found = search_codes(lambda z, _: -z.sum(1), torch.zeros(2, 3), Search(50, 0.5, bound=1.0))
    assert torch.equal(found, torch.ones(2, 3))
