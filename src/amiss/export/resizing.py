"""Pillow's antialiased bilinear resizing as two matrix products, so that a graph can hold it.

A pixel of the result is a mean of the pixels around its centre, with weights that fall linearly to
zero at a distance of one pixel of the coarser of the two grids. Like Pillow, columns come first,
weights are whole multiples of 2^-22 and each of the two passes rounds to whole levels. A weight is
taken as 2^11 times a high part and a low part, of which float32 sums products with levels exactly:
the result is Pillow's to the last bit, wherever the engine divides in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amiss.data.geometry import ResizeMode

_PART = 1 << 11  # Pillow's weights have 22 bits


def resize_frames(
    images: Tensor, size: tuple[int, int], mode: ResizeMode
) -> tuple[Tensor, Tensor | None]:
    """(B, H, W, 3) uint8 -> frames (B, 3, h, w) uint8, and (h, w) bool where they hold the image,
    None for everywhere. Same as `data.geometry.resize_image` up to rounding; `size` is (h, w)."""
    x = images.permute(0, 3, 1, 2).to(torch.float32)
    # Sizes as tensors: they are read off the image when the graph runs.
    H, W = _length(x[0, 0, :, 0]), _length(x[0, 0, 0, :])
    h, w = (torch.scalar_tensor(n, dtype=torch.int64) for n in size)
    top = left = torch.zeros((), dtype=torch.int64)
    if mode == "letterbox":
        scale = torch.minimum(h.double() / H, w.double() / W)
        height = torch.minimum(h, (H * scale).round().long().clamp_min(1))
        width = torch.minimum(w, (W * scale).round().long().clamp_min(1))
        top, left = (h - height) // 2, (w - width) // 2
    else:
        height, width = h, w
    across, columns = _axis(x[0, 0, 0, :], W, size=size[1], inner=width, start=left)
    down, rows = _axis(x[0, 0, :, 0], H, size=size[0], inner=height, start=top)
    x = _weighed(across @ x.transpose(2, 3)).transpose(2, 3)  # (B, 3, H, w)
    x = _weighed(down @ x)  # (B, 3, h, w)
    inside = None if mode == "squash" else rows[:, None] & columns[None]
    return x.to(torch.uint8), inside


def _length(pixels: Tensor) -> Tensor:
    """The number of elements of a vector, as a scalar int64 tensor."""
    return torch.ones_like(pixels, dtype=torch.int64).sum()


def _weighed(sums: Tensor) -> Tensor:
    """(..., 2 n, m) sums of high and of low parts times levels -> (..., n, m) whole levels.

    floor((2^11 high + low + 2^21) / 2^22), in steps whose values float32 holds exactly.
    """
    high, low = sums.chunk(2, dim=-2)
    carry = torch.floor(low / _PART)
    return torch.floor((high + carry + _PART // 2) / _PART).clamp(0, 255)


def _axis(
    pixels: Tensor, count: Tensor, *, size: int, inner: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """(2 size, H) float32 matrix, high parts above low ones, from `count` pixels, of which `pixels`
    is a row, to `inner` cells that begin at `start` of a frame of `size`; and (size,) bool, which
    cells these are. The other rows are zero."""
    cell = torch.arange(size) - start
    inside = (cell >= 0) & (cell < inner)
    pixel = torch.ones_like(pixels, dtype=torch.int64).cumsum(0) - 1  # 0 .. count - 1
    # Twice `inner` times the distance of the centres of pixel and cell, in pixels of the image.
    apart = ((2 * pixel + 1)[None] * inner - (2 * cell + 1)[:, None] * count).abs()
    weight = (2 * torch.maximum(count, inner) - apart).clamp_min(0)
    weight = torch.where(inside[:, None], weight, torch.zeros_like(weight)).double()
    share = weight / weight.sum(1, keepdim=True).clamp_min(1)
    whole = torch.floor(share * _PART**2 + 0.5)
    high = torch.floor(whole / _PART)
    return torch.cat([high, whole - high * _PART]).to(torch.float32), inside
