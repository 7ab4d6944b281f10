"""Residual networks of WGAN-GP and f-AnoGAN, and the penalty that their critic is held by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amiss.nn.losses import gradient_penalty
from amiss.nn.residual_gan import ResidualEncoder, ResidualGenerator


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("channels", "generator", "critic", "encoder"),
    [(1, 8_539_329, 7_490_689, 8_531_200), (3, 8_540_483, 7_491_841, 8_532_352)],
)
def test_networks_have_the_papers_counts_of_weights(
    channels: int, generator: int, critic: int, encoder: int
) -> None:
    size = (64, 64)
    with torch.device("meta"):
        assert _count(ResidualGenerator(size, 128, channels=channels, width=64)) == generator
        made = ResidualEncoder(size, 1, channels=channels, width=64, norm="layer")
        assert _count(made) == critic
        made = ResidualEncoder(size, 128, channels=channels, width=64, norm="batch")
        assert _count(made) == encoder


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_the_critic_always_has_8192_features(side: int) -> None:
    with torch.device("meta"):
        critic = ResidualEncoder((side, side), 1, channels=1, width=64, norm="layer")
    assert critic.head.in_features == 8192


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (48, 64)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_shapes_for_sides_of_any_ratio(size: tuple[int, int], batch: int) -> None:
    torch.manual_seed(0)
    generator = ResidualGenerator(size, 5, channels=3, width=4).eval()
    encoder = ResidualEncoder(size, 5, channels=3, width=4, norm="batch").eval()
    with torch.no_grad():
        images = generator(torch.randn(batch, 5))
        assert images.shape == (batch, 3, *size) and images.abs().max() <= 1
        assert encoder(images).shape == (batch, 5)
        torch.testing.assert_close(encoder.head(encoder.features(images)), encoder(images))


def test_what_the_critic_says_of_an_image_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 1, 32, 32)
    other = images.clone()
    other[2] += 1
    for norm, alike in (("layer", True), ("batch", False)):
        network = ResidualEncoder((32, 32), 1, channels=1, width=4, norm=norm).train()
        with torch.no_grad():
            apart = (network(images) - network(other)).flatten()[[0, 1, 3]].abs().max()
        assert (float(apart) < 1e-5) is alike


def test_weights_are_drawn_as_the_authors_draw_them() -> None:
    torch.manual_seed(0)
    network = ResidualEncoder((64, 64), 1, channels=1, width=64, norm="layer")
    block = network.blocks[2]
    for conv, share in ((block.conv1, 4), (block.shortcut, 2)):
        fans = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] ** 2
        deviation = float(conv.weight.detach().std())
        assert deviation == pytest.approx((share / fans) ** 0.5, rel=0.02)
        assert conv.bias is None or not conv.bias.detach().any()


# --- the penalty -----------------------------------------------------------------------------


def _linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flatten(1) @ weight


def test_the_penalty_of_a_linear_critic_is_that_of_its_weights() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12)
    for _ in range(3):
        found = gradient_penalty(_linear(weight), torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2))
        assert float(found) == pytest.approx(float((weight.norm() - 1) ** 2), rel=1e-5)


def test_the_penalty_of_half_the_square_is_that_of_the_images_norms() -> None:
    x = torch.randn(6, 3, 2, 2)
    found = gradient_penalty(lambda y: 0.5 * y.square().flatten(1).sum(1), x, x).detach()
    assert float(found) == pytest.approx(float((x.flatten(1).norm(dim=1) - 1).square().mean()))


def test_the_square_is_taken_before_the_mean() -> None:
    slopes = torch.tensor([0.0, 2.0])
    x = torch.randn(2, 1)
    found = gradient_penalty(lambda y: slopes * y[:, 0], x, x)
    assert float(found) == pytest.approx(1.0, abs=1e-4)
    one_sided = gradient_penalty(lambda y: slopes * y[:, 0], x, x, "one_sided")
    assert float(one_sided) == pytest.approx(0.5, abs=1e-4)


def test_the_penalty_teaches_the_critic_and_not_the_generator() -> None:
    torch.manual_seed(0)
    generator = ResidualGenerator((16, 16), 3, channels=1, width=2)
    critic = ResidualEncoder((16, 16), 1, channels=1, width=2, norm="layer")
    fake = generator(torch.randn(2, 3))
    gradient_penalty(critic, torch.randn(2, 1, 16, 16), fake).backward()
    assert all(p.grad is None for p in generator.parameters())
    taught = [p for p in critic.parameters() if p.grad is not None and bool(p.grad.any())]
    assert len(taught) > len(list(critic.parameters())) / 2


def test_one_share_is_drawn_for_each_whole_image() -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    torch.manual_seed(0)
    gradient_penalty(critic, torch.ones(8, 3, 4, 4), torch.zeros(8, 3, 4, 4))
    shares = seen[0].flatten(1)
    assert (shares == shares[:, :1]).all()  # the same over colours and pixels
    assert len(shares[:, 0].unique()) == 8 and shares.min() >= 0 and shares.max() <= 1
