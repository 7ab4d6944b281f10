"""Generator, encoder and discriminator of the DCGAN kind.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016; kernels of 4 and the widths are those of its PyTorch form, which
GANomaly took over.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from amiss.errors import OptionError

_SMALLEST = 4  # cells along the shorter side of the deepest map
_SLOPE = 0.2  # of the leaky ReLU


def halvings(size: tuple[int, int]) -> int:
    """How often an image of `size` (height, width) is halved: until its shorter side has 4 cells,
    or 5 to 7 where no power of two leads there.

    Raises OptionError for a size that cannot be halved as often.
    """
    shorter = min(size)
    count = int(math.log2(shorter / _SMALLEST)) if shorter >= 2 * _SMALLEST else 0
    if count < 1 or any(side % (1 << count) for side in size):
        raise OptionError(
            f"image_size={size[0]},{size[1]} cannot be halved to cells of one size.",
            hint="Use a power of two from 16 on, such as 32 or 64; or sides that are multiples of "
            "one, such as 48 x 64.",
        )
    return count


class ConvEncoder(nn.Module):
    """images (B, C, H, W) -> (B, `out`): convolutions of stride 2 with twice the channels each.

    With `out` = 1 it is the discriminator, whose answer is a logit, or a critic. `features` are the
    activations that its last layer takes in.

    Args:
        size: (H, W) of the images; see `halvings`.
        out: values that an image becomes.
        channels: of the images, C.
        width: channels of the first layer, 64 in the papers.
        extra_layers: 3 x 3 convolutions after the first one.
        has_norm: whether batch norms follow; not in a critic whose gradient is penalised image by
            image.
    """

    def __init__(
        self,
        size: tuple[int, int],
        out: int,
        *,
        channels: int,
        width: int,
        extra_layers: int = 0,
        has_norm: bool = True,
    ) -> None:
        super().__init__()
        count = halvings(size)
        layers: list[nn.Module] = [_down(channels, width), nn.LeakyReLU(_SLOPE, inplace=True)]
        for _ in range(extra_layers):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                *_norm(has_norm, width),
                nn.LeakyReLU(_SLOPE, inplace=True),
            ]
        for _ in range(count - 1):
            layers += [
                _down(width, 2 * width),
                *_norm(has_norm, 2 * width),
                nn.LeakyReLU(_SLOPE, inplace=True),
            ]
            width *= 2
        self.body = nn.Sequential(*layers)
        self.grid = (size[0] >> count, size[1] >> count)
        self.head = nn.Conv2d(width, out, self.grid, bias=False)
        init_weights(self)
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """f: images (B, C, H, W) -> (B, K, h, w), 4 x 4 for square images."""
        found: Tensor = self.body(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(images)).flatten(1)
        return found


class ConvGenerator(nn.Module):
    """latent (B, d) -> images (B, C, H, W) in [-1, 1]: the mirror of `ConvEncoder`."""

    def __init__(
        self,
        size: tuple[int, int],
        latent_dim: int,
        *,
        channels: int,
        width: int,
        extra_layers: int = 0,
    ) -> None:
        super().__init__()
        count = halvings(size)
        grid = (size[0] >> count, size[1] >> count)
        inner = width << (count - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent_dim, inner, grid, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
        ]
        for _ in range(count - 1):
            layers += [_up(inner, inner // 2), nn.BatchNorm2d(inner // 2), nn.ReLU(inplace=True)]
            inner //= 2
        for _ in range(extra_layers):
            layers += [
                nn.Conv2d(inner, inner, 3, padding=1, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(inplace=True),
            ]
        layers += [_up(inner, channels), nn.Tanh()]
        self.body = nn.Sequential(*layers)
        init_weights(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor) -> Tensor:
        found: Tensor = self.body(latent[:, :, None, None])
        return found


def init_weights(network: nn.Module) -> None:
    """Draw all weights as DCGAN does: convolutions from N(0, 0.02), batch norms from N(1, 0.02)
    with offset 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def folded(body: nn.Sequential) -> nn.Sequential:
    """A body that computes what `body` does in eval mode, with every batch norm drawn into the
    convolution before it; for networks that learn no more."""
    layers: list[nn.Module] = []
    for layer in body:
        if not isinstance(layer, nn.BatchNorm2d):
            layers.append(copy.deepcopy(layer))
            continue
        conv = layers[-1]
        assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
        assert layer.running_mean is not None and layer.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, layer.running_mean, layer.running_var, layer.eps,
            layer.weight, layer.bias, transpose=isinstance(conv, nn.ConvTranspose2d),
        )  # fmt: skip
    merged = nn.Sequential(*layers).eval().requires_grad_(False)
    return merged.to(memory_format=torch.channels_last)


def _norm(is_there: bool, channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if is_there else []


def _down(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)


def _up(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
