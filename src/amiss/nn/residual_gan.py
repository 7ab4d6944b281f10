"""Residual generator, critic and encoder, as WGAN-GP and f-AnoGAN have them at 64 px.

Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of Wasserstein GANs", NeurIPS
2017; Schlegl et al., "f-AnoGAN", Medical Image Analysis 2019.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.nn.gan import halvings

_CAP = 8  # widest layer, of the first one's width at 64 px
_DEEP = 6  # halvings from which the first layer is half as wide


class ResidualEncoder(nn.Module):
    """images (B, C, H, W) -> (B, `out`), before anything that bounds it.

    With `out` = 1 and norm "layer" it is the critic: what it says of an image does not depend on
    the others. Norm "batch" makes the encoder. `features` are what the last layer takes in.
    """

    def __init__(
        self, size: tuple[int, int], out: int, *, channels: int, width: int, norm: str
    ) -> None:
        super().__init__()
        widths = _widths(size, width)
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(a, b, norm, "down") for a, b in pairwise(widths)))
        cells = math.prod(_grid(size))
        self.head = nn.Linear(widths[-1] * cells, out)
        _init_weights(self)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """f: images (B, C, H, W) -> (B, n_d), 8,192 values at the papers' widths."""
        found: Tensor = self.blocks(self.first(images)).flatten(1)
        return found

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images))
        return found


class ResidualGenerator(nn.Module):
    """latent (B, d) -> images (B, C, H, W) in [-1, 1]."""

    def __init__(
        self, size: tuple[int, int], latent_dim: int, *, channels: int, width: int
    ) -> None:
        super().__init__()
        widths = _widths(size, width)[::-1]
        self.shape = (widths[0], *_grid(size))
        self.first = nn.Linear(latent_dim, math.prod(self.shape))
        self.blocks = nn.Sequential(*(_Block(a, b, "batch", "up") for a, b in pairwise(widths)))
        self.norm = _norm("batch", widths[-1])
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
        _init_weights(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.first(latent).unflatten(1, self.shape)
        x = F.relu(self.norm(self.blocks(x)))
        return torch.tanh(self.last(x))


class _Block(nn.Module):
    """Norm, ReLU and convolution, twice, beside a shortcut; halved or doubled on the way."""

    def __init__(self, before: int, after: int, norm: str, way: str) -> None:
        super().__init__()
        inner = before if way == "down" else after
        self.is_up = way == "up"
        self.norm1, self.norm2 = _norm(norm, before), _norm(norm, inner)
        self.conv1 = nn.Conv2d(before, inner, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inner, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        if self.is_up:
            y = self.conv2(F.relu(self.norm2(self.conv1(_doubled(y)))))
            # A 1 x 1 convolution and doubling may change places; before it there is less to do.
            raised: Tensor = _doubled(self.shortcut(x)) + y
            return raised
        y = F.avg_pool2d(self.conv2(F.relu(self.norm2(self.conv1(y)))), 2)
        shortcut: Tensor = self.shortcut(F.avg_pool2d(x, 2))
        return shortcut + y


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _norm(kind: str, channels: int) -> nn.Module:
    """ "batch", or "layer": by the statistics of each image, a scale and an offset per channel."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
    return nn.GroupNorm(1, channels)


def _widths(size: tuple[int, int], width: int) -> list[int]:
    """Channels of the maps from the first to the deepest: doubled up to eight times `width`."""
    count = halvings(size)
    first = width if count < _DEEP else width // 2
    return [min(first << i, _CAP * width) for i in range(count + 1)]


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    count = halvings(size)
    return size[0] >> count, size[1] >> count


def _init_weights(network: nn.Module) -> None:
    """As the authors draw them: uniformly, with the variance 4 / (fan in + fan out) for the
    convolutions of blocks and half of it for all else; offsets are 0."""
    inner = {
        id(conv)
        for block in network.modules()
        if isinstance(block, _Block)
        for conv in (block.conv1, block.conv2)
    }
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = math.sqrt(2) if id(module) in inner else 1.0
            nn.init.xavier_uniform_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
