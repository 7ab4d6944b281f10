"""From a grid of patch distances to an anomaly map: upsampling, then Gaussian blur.

Both act on rows and columns alone and are linear, so together they are one matrix on each side:
map = A_h d A_w^T. That is exact, and two small products where the plain form makes four passes
over the large map.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from amiss.types import Float64

_LEAST = 1e-6  # of a pixel's weight inside the region of interest


def gaussian_matrix(size: int, sigma: float) -> Float64:
    """(size, size) matrix of a Gaussian blur with reflected border (d c b a | a b c d | d c b a).

    Truncated at 4 sigma like SciPy's `gaussian_filter`; sigma 0 is the identity.
    """
    matrix = np.zeros((size, size))
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma > 0 else np.ones(1)
    kernel /= kernel.sum()
    rows = np.arange(size)
    for offset, weight in zip(offsets, kernel, strict=True):
        columns = (rows + offset) % (2 * size)  # the reflected signal has this period
        columns = np.where(columns < size, columns, 2 * size - 1 - columns)
        np.add.at(matrix, (rows, columns), weight)
    return matrix


def bilinear_matrix(source: int, target: int) -> Float64:
    """(target, source) matrix of bilinear interpolation with half-pixel centres."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, None)
    low = np.minimum(np.floor(position).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    fraction = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - fraction)
    np.add.at(matrix, (np.arange(target), high), fraction)
    return matrix


def corner_matrix(source: int, target: int) -> Float64:
    """(target, source) matrix of bilinear interpolation that takes corners to corners, as torch's
    `interpolate` with `align_corners`."""
    position = np.linspace(0, source - 1, target)
    low = np.minimum(np.floor(position).astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - (position - low))
    np.add.at(matrix, (np.arange(target), high), position - low)
    return matrix


def bicubic_matrix(source: int, target: int) -> Float64:
    """(target, source) matrix of cubic convolution with a = -0.75 and half-pixel centres, the
    border repeated, as torch's `interpolate` does it. Keys, 1981."""
    a = -0.75
    position = (np.arange(target) + 0.5) * source / target - 0.5
    low = np.floor(position).astype(int)
    matrix = np.zeros((target, source))
    for offset in (-1, 0, 1, 2):
        t = np.abs(position - (low + offset))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        columns = np.clip(low + offset, 0, source - 1)
        np.add.at(matrix, (np.arange(target), columns), np.where(t <= 1, near, far))
    return matrix


class MapUpsampler(nn.Module):
    """(B, h, w) distances on a grid -> (B, H, W) blurred map at the input size.

    `interpolation` is "bilinear", "bicubic" or "corners", bilinear from corner to corner.

    With `inside` (B, h, w), 1 where a cell is looked at and 0 elsewhere, the blur is normalised:
    cells outside neither raise nor lower the map at the border of the region of interest.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        size: tuple[int, int],
        sigma: float,
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        resize = {
            "bilinear": bilinear_matrix, "bicubic": bicubic_matrix, "corners": corner_matrix,
        }[interpolation]  # fmt: skip
        self.rows: Tensor
        self.columns: Tensor
        for name, source, target in zip(("rows", "columns"), grid, size, strict=True):
            matrix = gaussian_matrix(target, sigma) @ resize(source, target)
            self.register_buffer(name, torch.from_numpy(matrix).float(), persistent=False)

    def forward(self, distances: Tensor, inside: Tensor | None = None) -> Tensor:
        if inside is None:
            return self._spread(distances)
        weight = self._spread(inside.to(distances.dtype))
        # Bicubic weights are negative or nearly nothing some way outside, where nothing is asked.
        known = weight > _LEAST
        return self._spread(distances * inside) / weight.clamp_min(_LEAST) * known

    def _spread(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.T
