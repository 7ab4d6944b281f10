"""Networks of BiGANs: shapes, what a pair's discriminator says, running means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amiss.errors import OptionError
from amiss.nn.bigan import Averaged, PairDiscriminator, SmallEncoder, SmallGenerator


def test_the_networks_for_mnist_have_the_papers_shapes() -> None:
    size, dim = (28, 28), 200
    encoder = SmallEncoder(size, dim, channels=1).eval()
    generator = SmallGenerator(size, dim, channels=1).eval()
    judge = PairDiscriminator(size, dim, channels=1, width=64, is_small=True).eval()
    x, z = torch.rand(3, 1, 28, 28), torch.randn(3, 200)
    with torch.no_grad():
        assert encoder(x).shape == (3, 200)
        made = generator(z)
        assert made.shape == (3, 1, 28, 28) and made.abs().max() <= 1
        assert judge(x, z).shape == (3, 1)
        assert judge.features(x, z).shape == (3, 1024)
        assert judge.of_image(x).shape == (3, 3136) and judge.of_code(z).shape == (3, 512)
        torch.testing.assert_close(judge.head(judge.features(x, z)), judge(x, z))


@pytest.mark.parametrize(("size", "is_small"), [((32, 48), False), ((20, 36), True)])
def test_other_sizes_keep_their_shapes(size: tuple[int, int], is_small: bool) -> None:
    judge = PairDiscriminator(size, 5, channels=3, width=4, is_small=is_small).eval()
    with torch.no_grad():
        assert judge(torch.rand(2, 3, *size), torch.randn(2, 5)).shape == (2, 1)


def test_sides_that_cannot_be_halved_twice_are_refused() -> None:
    with pytest.raises(OptionError, match="halved twice"):
        SmallEncoder((28, 30), 4, channels=1)


def test_weights_are_drawn_narrowly_and_offsets_are_nothing() -> None:
    torch.manual_seed(0)
    judge = PairDiscriminator((28, 28), 200, channels=1, width=64, is_small=True)
    for module in judge.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            assert module.bias is not None and not module.bias.any()


def test_a_running_mean_follows_weights_and_copies_statistics() -> None:
    torch.manual_seed(0)
    both = Averaged(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    linear, norm = both.network[0], both.network[1]  # type: ignore[index]
    before = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight += 1
    both(torch.randn(8, 3))  # in training: the statistics move
    both.follow(0.9)
    average = both.average
    torch.testing.assert_close(average[0].weight, before + 0.1)  # type: ignore[index]
    assert torch.equal(average[1].running_mean, norm.running_mean)  # type: ignore[index]
    assert not any(p.requires_grad for p in average.parameters())
