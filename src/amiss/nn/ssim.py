"""Structural similarity of images, as a map that gradients pass through.

Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
Similarity", IEEE Transactions on Image Processing 13, 2004.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def ssim_map(x: Tensor, y: Tensor, *, span: float = 2.0) -> Tensor:
    """SSIM at each pixel: x, y (B, C, H, W) with values `span` apart at most -> (B, H, W), the mean
    over the channels, in [-1, 1].

    Means, variances and covariance go by a Gaussian window of 11 x 11 and sigma 1.5, equations 13
    to 16; beyond its edge an image is mirrored. Sides of less than 6 pixels are too small for that.
    """
    channels = x.shape[1]
    kernel = _gaussian(x)
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)

    def mean(values: Tensor) -> Tensor:
        half = _SIDE // 2
        padded = F.pad(values, (half, half, half, half), mode="reflect")
        return F.conv2d(F.conv2d(padded, rows, groups=channels), columns, groups=channels)

    # In float32 whatever the precision: variances are differences of nearly equal numbers.
    x, y = x.float(), y.float()
    mx, my = mean(x), mean(y)
    vx, vy = mean(x * x) - mx * mx, mean(y * y) - my * my
    both = mean(x * y) - mx * my
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    found = (2 * mx * my + c1) * (2 * both + c2)
    return (found / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(1)


def _gaussian(like: Tensor) -> Tensor:
    at = torch.arange(_SIDE, dtype=torch.float32, device=like.device) - _SIDE // 2
    weights = torch.exp(-at.square() / (2 * _SIGMA**2))
    return weights / weights.sum()
