"""`PatchNetwork`: describes square patches, and all patches of an image at once.

Bergmann, Fauser, Sattlegger, Steger, "Uninformed Students", CVPR 2020, table of networks; the dense
form after Bailer et al., "Fast Dense Feature Extraction with CNNs that have Pooling or Striding
Layers", BMVC 2017, written with dilation: a pooling that is not strided doubles the dilation of all
that follows.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 5e-3  # of the leaky ReLU
STRIDES = (1, 2, 4, 8)


class _Conv(NamedTuple):
    kernel: int
    channels: int


_POOL = None  # 2 x 2, stride 2, what does not fill a window is left out
LAYERS: dict[int, tuple[_Conv | None, ...]] = {
    17: (_Conv(6, 128), _Conv(5, 256), _Conv(5, 256), _Conv(4, 128)),
    33: (_Conv(5, 128), _POOL, _Conv(5, 256), _POOL, _Conv(2, 256), _Conv(4, 128)),
    65: (
        _Conv(5, 128), _POOL, _Conv(5, 128), _POOL, _Conv(5, 128), _POOL, _Conv(4, 256),
        _Conv(1, 128),
    ),
}  # fmt: skip


class PatchNetwork(nn.Module):
    """Describes the patches of images, p pixels wide and high: 17, 33 or 65.

    `width` scales the channels of all layers; at 1 they are the paper's, with D = 128. `forward`
    gives the patches `stride` pixels apart, at 1 one for each pixel.
    """

    def __init__(self, patch_size: int, width: float = 1.0, stride: int = 1) -> None:
        super().__init__()
        self.patch_size, self.stride = patch_size, stride
        self.convs = nn.ModuleList()
        channels = 3
        for layer in LAYERS[patch_size]:
            if layer is not None:
                out = max(1, round(layer.channels * width))
                self.convs.append(nn.Conv2d(channels, out, layer.kernel))
                channels = out
        self.dim = channels
        self.to(memory_format=torch.channels_last)

    def describe(self, patches: Tensor) -> Tensor:
        """patches (N, 3, p, p) float32 -> descriptors (N, D)."""
        return self.inner(patches, stride=1 << _pools(self.patch_size))[:, :, 0, 0]

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) float32 -> (B, D, H / stride, W / stride).

        Cell (i, j) is what `describe` says, but for rounding, of the patch around the pixel
        (i * stride + stride // 2, j * stride + stride // 2). Images are reflected at their border.
        H and W are multiples of the stride, and larger than p / 2.
        """
        height, width = images.shape[2:]
        grid = (height // self.stride, width // self.stride)
        first = self.patch_size // 2 - self.stride // 2
        last = [
            (n - 1) * self.stride + self.patch_size - size - first
            for n, size in zip(grid, (height, width), strict=True)
        ]
        x = F.pad(images, (first, last[1], first, last[0]), mode="reflect")
        # Poolings leave out rows that do not fill a window, so a few cells too many come out.
        return self.inner(x, self.stride)[:, :, : grid[0], : grid[1]]

    def inner(self, x: Tensor, stride: int) -> Tensor:
        """x (B, 3, H, W) -> (B, D, h, w): the patches whose upper left corners are `stride` apart,
        the first in the corner of x. There may be some more than lie wholly within x, as poolings
        leave out the last rows of a patch."""
        layers = LAYERS[self.patch_size]
        deepest = max(i for i, layer in enumerate(layers) if layer is not None and layer.kernel > 1)
        done, dilation, number = 1, 1, 0
        for i, layer in enumerate(layers):
            if layer is None:
                if done < stride:
                    x = F.max_pool2d(x, 2, 2)
                    done *= 2
                else:
                    x = F.max_pool2d(x, 2, 1, dilation=dilation)
                    dilation *= 2
                continue
            step = 1
            if i == deepest:  # whatever is left of the stride: the last that looks around itself
                step, done = max(1, stride // done), stride
            conv = cast(nn.Conv2d, self.convs[number])
            x = F.conv2d(x, conv.weight, conv.bias, step, dilation=dilation)
            number += 1
            if i + 1 < len(layers):
                x = F.leaky_relu(x, SLOPE, inplace=True)
        return x


def _pools(patch_size: int) -> int:
    return sum(layer is None for layer in LAYERS[patch_size])
