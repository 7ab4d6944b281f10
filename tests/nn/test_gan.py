"""Networks of the DCGAN kind: sizes, shapes, counts of weights, and what their losses are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from amiss.errors import OptionError
from amiss.nn.gan import ConvEncoder, ConvGenerator, halvings, init_weights
from amiss.nn.losses import discriminator_loss, generator_loss, norms


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


# By side and channels: encoder, generator, discriminator; the counts of the authors' networks.
@pytest.mark.parametrize(
    ("side", "channels", "encoder", "generator", "discriminator"),
    [
        (32, 1, 1_066_752, 1_066_880, 661_248),
        (32, 3, 1_068_800, 1_068_928, 663_296),
        (64, 3, 3_576_576, 3_576_704, 2_765_568),
        (128, 3, 12_786_432, 12_786_560, 11_164_416),
        (256, 3, 47_983_360, 47_983_488, 44_739_328),
    ],
)
def test_networks_have_the_papers_counts_of_weights(
    side: int, channels: int, encoder: int, generator: int, discriminator: int
) -> None:
    size = (side, side)
    with torch.device("meta"):
        assert _count(ConvEncoder(size, 100, channels=channels, width=64)) == encoder
        assert _count(ConvGenerator(size, 100, channels=channels, width=64)) == generator
        assert _count(ConvEncoder(size, 1, channels=channels, width=64)) == discriminator


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (48, 64), (40, 32)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_shapes_for_sides_of_any_ratio(size: tuple[int, int], batch: int) -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(size, 7, channels=3, width=4).eval()
    generator = ConvGenerator(size, 7, channels=3, width=4).eval()
    with torch.no_grad():
        images = generator(torch.randn(batch, 7))
        assert images.shape == (batch, 3, *size)
        assert images.abs().max() <= 1
        assert encoder(images).shape == (batch, 7)
        features = encoder.features(images)
        height, width = encoder.grid
        assert features.shape == (batch, 4 << (halvings(size) - 1), height, width)
        torch.testing.assert_close(encoder.head(features).flatten(1), encoder(images))


def test_features_of_the_discriminator_at_32_px_are_256_maps_of_4_x_4() -> None:
    network = ConvEncoder((32, 32), 1, channels=1, width=64).eval()
    with torch.no_grad():
        assert network.features(torch.zeros(2, 1, 32, 32)).shape == (2, 256, 4, 4)


def test_extra_layers_keep_shapes() -> None:
    encoder = ConvEncoder((32, 32), 5, channels=1, width=4, extra_layers=2)
    generator = ConvGenerator((32, 32), 5, channels=1, width=4, extra_layers=2)
    plain = ConvEncoder((32, 32), 5, channels=1, width=4)
    assert encoder(generator(torch.randn(2, 5))).shape == (2, 5)
    assert _count(encoder) - _count(plain) == 2 * (4 * 4 * 9 + 2 * 4)


@pytest.mark.parametrize("size", [(7, 32), (33, 32), (36, 64), (100, 98)])
def test_sizes_that_cannot_be_halved_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="cannot be halved"):
        halvings(size)


def test_weights_are_drawn_as_dcgan_draws_them() -> None:
    torch.manual_seed(0)
    network = ConvGenerator((64, 64), 100, channels=3, width=64)
    init_weights(network)
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.02)
            assert not module.bias.any()


def test_losses_of_a_discriminator_that_knows_nothing() -> None:
    real, fake = torch.zeros(4, 1), torch.zeros(6, 1)
    assert float(discriminator_loss(real, fake)) == pytest.approx(2 * math.log(2))
    assert float(generator_loss(fake)) == pytest.approx(math.log(2))
    assert float(generator_loss(fake, "minimax")) == pytest.approx(-math.log(2))


def test_losses_are_the_logarithms_of_the_papers() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    wanted = -d_real.log().mean() - (1 - d_fake).log().mean()
    assert float(discriminator_loss(real, fake)) == pytest.approx(float(wanted))
    assert float(generator_loss(fake)) == pytest.approx(float(-d_fake.log().mean()))
    minimax = float((1 - d_fake).log().mean())
    assert float(generator_loss(fake, "minimax")) == pytest.approx(minimax)


def test_norms_are_those_of_whole_images() -> None:
    x = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    assert norms(x, 1).tolist() == [7.0, 0.0]
    found = norms(x, 2)
    assert found.tolist() == pytest.approx([5.0, 0.0], abs=1e-5)
    found.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
