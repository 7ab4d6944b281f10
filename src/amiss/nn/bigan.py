"""Networks of BiGANs: a discriminator of pairs of an image and its code, and EGBAD's for MNIST.

Donahue, Krähenbühl, Darrell, "Adversarial Feature Learning", ICLR 2017; Zenati, Foo, Lecouat,
Manek, Chandrasekhar, "Efficient GAN-Based Anomaly Detection", 2018.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from amiss.errors import OptionError
from amiss.nn.gan import halvings, init_weights

_SLOPE = 0.1  # of the leaky ReLUs
_JOINT, _OF_CODE = 1024, 512
_DROPOUT = 0.5


def quarter(size: tuple[int, int]) -> tuple[int, int]:
    """The grid after two halvings; raises OptionError where there is none."""
    if any(side % 4 for side in size):
        raise OptionError(
            f"image_size={size[0]},{size[1]} cannot be halved twice.",
            hint="Use multiples of 4, such as 28.",
        )
    return size[0] // 4, size[1] // 4


class SmallEncoder(nn.Module):
    """images (B, C, H, W) -> codes (B, d): three convolutions of 3 x 3 and a linear layer."""

    def __init__(self, size: tuple[int, int], latent_dim: int, *, channels: int) -> None:
        super().__init__()
        grid = quarter(size)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.LeakyReLU(_SLOPE),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.LeakyReLU(_SLOPE),
            nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128), nn.LeakyReLU(_SLOPE),
            nn.Flatten(), nn.Linear(128 * math.prod(grid), latent_dim),
        )  # fmt: skip
        draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.body(images)
        return found


class SmallGenerator(nn.Module):
    """codes (B, d) -> images (B, C, H, W) in [-1, 1]: two linear layers, two that double."""

    def __init__(self, size: tuple[int, int], latent_dim: int, *, channels: int) -> None:
        super().__init__()
        grid = quarter(size)
        inner = 128 * math.prod(grid)
        self.body = nn.Sequential(
            nn.Linear(latent_dim, 1024), nn.BatchNorm1d(1024), nn.ReLU(),
            nn.Linear(1024, inner), nn.BatchNorm1d(inner), nn.ReLU(),
            nn.Unflatten(1, (128, *grid)),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, channels, 4, stride=2, padding=1), nn.Tanh(),
        )  # fmt: skip
        draw_weights(self)

    def forward(self, codes: Tensor) -> Tensor:
        found: Tensor = self.body(codes)
        return found


class PairDiscriminator(nn.Module):
    """Of images (B, C, H, W) and codes (B, d), whether they are an image and its code: logits
    (B, 1). `features` are the 1,024 values that the last layer takes in.

    Args:
        size: (H, W) of the images.
        latent_dim: d.
        channels: of the images, C.
        width: channels of the first layer, 64 in the paper.
        is_small: two halvings, as the authors have them for MNIST; else as many as lead to 4 cells
            along the shorter side, each with twice the channels.
    """

    def __init__(
        self, size: tuple[int, int], latent_dim: int, *, channels: int, width: int, is_small: bool
    ) -> None:
        super().__init__()
        grid = quarter(size) if is_small else None
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE),
            nn.Dropout(_DROPOUT),
        ]  # fmt: skip
        before = width
        for _ in range(1 if is_small else halvings(size) - 1):
            after = width if is_small else 2 * before
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1), nn.BatchNorm2d(after),
                nn.LeakyReLU(_SLOPE), nn.Dropout(_DROPOUT),
            ]  # fmt: skip
            before = after
        if grid is None:
            grid = (size[0] >> halvings(size), size[1] >> halvings(size))
        self.of_image = nn.Sequential(*layers, nn.Flatten())
        self.of_code = nn.Sequential(
            nn.Linear(latent_dim, _OF_CODE), nn.LeakyReLU(_SLOPE), nn.Dropout(_DROPOUT)
        )
        self.joint = nn.Sequential(
            nn.Linear(before * math.prod(grid) + _OF_CODE, _JOINT), nn.LeakyReLU(_SLOPE),
            nn.Dropout(_DROPOUT),
        )  # fmt: skip
        self.head = nn.Linear(_JOINT, 1)
        draw_weights(self)

    def features(self, images: Tensor, codes: Tensor) -> Tensor:
        """f(x, z): (B, 1024)."""
        both = torch.cat([self.of_image(images), self.of_code(codes)], dim=1)
        found: Tensor = self.joint(both)
        return found

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images, codes))
        return found


class Averaged(nn.Module):
    """A network with a running mean of its weights, which is what scoring uses."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.network(*inputs)
        return found

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """mean <- decay mean + (1 - decay) weights; the statistics of batch norms are copied."""
        for mean, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)
        for kept, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            if buffer.is_floating_point():  # others count, or are pictures that the mean has made
                kept.copy_(buffer)


def draw_weights(network: nn.Module) -> None:
    """As `init_weights`, linear layers as convolutions; offsets are 0."""
    init_weights(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and (
            module.bias is not None
        ):
            nn.init.zeros_(module.bias)
