"""Encoders and decoders that make images again: with and without connections past the code.

The paper of DAAD gives its networks in tables that were not at hand; the U-Net here is our choice.
Gong et al., "Memorizing Normality to Detect Anomaly", ICCV 2019, for the small ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.errors import OptionError

_SLOPE = 0.2  # of the leaky ReLUs
_CAP = 8  # widest map, of the first one's width


def scales(size: tuple[int, int], width: int, count: int) -> list[tuple[int, int, int]]:
    """(C, H, W) of the maps of `count` scales: halved each time, with twice the channels up to
    eight times `width`.

    Raises OptionError for a size that cannot be halved as often.
    """
    if any(side % (1 << count) for side in size):
        raise OptionError(
            f"image_size={size[0]},{size[1]} cannot be halved {count} times.",
            hint=f"Use multiples of {1 << count}, or fewer scales.",
        )
    return [
        (min(width << i, _CAP * width), size[0] >> (i + 1), size[1] >> (i + 1))
        for i in range(count)
    ]


class Encoder(nn.Module):
    """images (B, C, H, W) -> the maps of all scales, from the largest to the deepest.

    Each scale: a convolution of 4 x 4 and stride 2, then two of 3 x 3, all with batch norm and
    leaky ReLU.
    """

    def __init__(self, channels: int, shapes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        widths = [channels, *(shape[0] for shape in shapes)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *_convolved(a, b, nn.Conv2d(a, b, 4, stride=2, padding=1, bias=False)),
                *_convolved(b, b),
                *_convolved(b, b),
            )
            for a, b in pairwise(widths)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        found = []
        x = images
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Decoder(nn.Module):
    """Maps of all scales, or with `skip` False the deepest alone -> images (B, C, H, W) in [-1, 1].

    Each scale: doubled, put beside the map of that size where there is one, and two convolutions of
    3 x 3 with batch norm and ReLU; last a convolution and tanh.
    """

    def __init__(self, channels: int, shapes: list[tuple[int, int, int]], *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        deep = shapes[-1][0]
        stages = []
        for shape in [*shapes[-2::-1], None]:
            beside = shape[0] if shape is not None and skip else 0
            after = shape[0] if shape is not None else shapes[0][0]
            stages.append(
                nn.Sequential(
                    *_convolved(deep + beside, after, slope=0.0),
                    *_convolved(after, after, slope=0.0),
                )
            )
            deep = after
        self.stages = nn.ModuleList(stages)
        self.last = nn.Conv2d(deep, channels, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, maps: list[Tensor]) -> Tensor:
        *others, x = maps
        for number, stage in enumerate(self.stages, 1):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            if self.skip and number <= len(others):
                x = torch.cat([x, others[-number]], dim=1)
            x = stage(x)
        made: Tensor = self.last(x)
        return made.tanh()


class _Layer(NamedTuple):
    """A convolution: kernel, stride and channels."""

    kernel: int
    stride: int
    channels: int


SMALL = {
    "mnist": (_Layer(3, 2, 16), _Layer(3, 2, 32), _Layer(3, 3, 64)),
    "cifar": (_Layer(3, 2, 64), _Layer(3, 2, 128), _Layer(3, 2, 128), _Layer(3, 2, 256)),
}
"""Encoders for images like those of MNIST and CIFAR-10, close to MemAE's as they are remembered;
decoders go back by the same steps, each with as many channels as its step led to."""


class SmallAutoencoder(nn.Module):
    """An encoder of `SMALL` and its mirror, in two halves for what stands between them.

    `shape` is (C, H, W) of the code.
    """

    def __init__(self, size: tuple[int, int], name: str, *, channels: int) -> None:
        super().__init__()
        layers = SMALL[name]
        widths = [channels, *(layer.channels for layer in layers)]
        sizes = [size]
        down: list[nn.Module] = []
        for layer, (a, b) in zip(layers, pairwise(widths), strict=True):
            conv = nn.Conv2d(a, b, layer.kernel, layer.stride, padding=1, bias=False)
            down += _convolved(a, b, conv)
            height, width = sizes[-1]
            sizes.append(((height - 1) // layer.stride + 1, (width - 1) // layer.stride + 1))
        up: list[nn.Module] = []
        before = widths[-1]
        for number in reversed(range(len(layers))):
            layer, wanted = layers[number], sizes[number]
            is_last = number == 0
            after = channels if is_last else layer.channels
            rest = [
                w - ((s - 1) * layer.stride + layer.kernel - 2)
                for w, s in zip(wanted, sizes[number + 1], strict=True)
            ]
            conv_up = nn.ConvTranspose2d(
                before, after, layer.kernel, layer.stride, padding=1,
                output_padding=(rest[0], rest[1]), bias=is_last,
            )  # fmt: skip
            # Last linear: a tanh that starts on the wrong side of a black pixel never leaves it.
            up += [conv_up] if is_last else _convolved(0, after, conv_up)
            before = after
        self.encoder, self.decoder = nn.Sequential(*down), nn.Sequential(*up)
        self.shape = (widths[-1], *sizes[-1])
        self.to(memory_format=torch.channels_last)


def _convolved(
    before: int, after: int, conv: nn.Module | None = None, *, slope: float = _SLOPE
) -> list[nn.Module]:
    """A convolution, 3 x 3 if none is given, its batch norm and a leaky ReLU."""
    conv = conv or nn.Conv2d(before, after, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.LeakyReLU(slope, inplace=True)]
