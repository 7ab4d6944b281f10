"""Spatial transformers: networks that look at an image or a feature map and straighten it.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu, "Spatial Transformer Networks", NIPS 2015: a
localization network, an affine grid, a sampler. Rotation and translation alone, and bounded: a free
affine map could agree on everything by zooming into a constant patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_POOLED = 8  # side of the grid that the localization network decides from


class SpatialTransformer(nn.Module):
    """x (B, C, H, W) -> (x transformed, theta (B, 2, 3)). At first the identity.

    theta maps output to input positions in [-1, 1], as `affine_grid` takes it: a rotation by at
    most `max_degrees` about the centre, in pixels and not in the squeezed frame, and a translation
    by at most `max_shift` of the height and width.
    """

    def __init__(self, channels: int, *, max_degrees: float, max_shift: float) -> None:
        super().__init__()
        self.max_radians, self.max_shift = math.radians(max_degrees), max_shift
        # Group norm: what one image is turned by must not depend on the others of its batch.
        self.localization = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(32, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(_POOLED), nn.Flatten(),
            nn.Linear(16 * _POOLED**2, 128), nn.ReLU(), nn.Linear(128, 3),
        )  # fmt: skip
        last = self.localization[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.theta(x)
        return warp(x, theta), theta

    def theta(self, x: Tensor) -> Tensor:
        """(B, 2, 3) for x (B, C, H, W)."""
        turn, right, down = torch.tanh(self.localization(x)).unbind(1)
        return rigid(
            turn * self.max_radians,
            2 * self.max_shift * down,
            2 * self.max_shift * right,
            aspect=x.shape[2] / x.shape[3],
        )


def rigid(angle: Tensor, down: Tensor, right: Tensor, *, aspect: float) -> Tensor:
    """(B, 2, 3): rotation by `angle` (B,) radians, translation by `down` and `right` (B,) in units
    of half the height and width. `aspect` is H / W."""
    cos, sin = angle.cos(), angle.sin()
    x = torch.stack([cos, -sin * aspect, right], dim=1)
    y = torch.stack([sin / aspect, cos, down], dim=1)
    return torch.stack([x, y], dim=1)


def warp(x: Tensor, theta: Tensor, *, padding: str = "reflection") -> Tensor:
    """(B, C, H, W) sampled bilinearly at theta (B, 2, 3) of each position."""
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def inverse(theta: Tensor) -> Tensor:
    """(B, 2, 3) such that `warp` with it undoes `warp` with theta, away from the border."""
    a, b, c, d = theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1]
    determinant = a * d - b * c  # 1 for a rotation
    linear = torch.stack([torch.stack([d, -b], 1), torch.stack([-c, a], 1)], 1)
    linear = linear / determinant[:, None, None]
    return torch.cat([linear, -linear @ theta[:, :, 2:]], dim=2)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """(B, 2, 3): `warp` with it is `warp` with `first`, then with `second`."""
    linear = first[:, :, :2] @ second[:, :, :2]
    return torch.cat([linear, first[:, :, :2] @ second[:, :, 2:] + first[:, :, 2:]], dim=2)
