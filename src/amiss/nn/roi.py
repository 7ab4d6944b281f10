"""Regions of interest, over pixels and on the way to the cells of a feature grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.errors import DataError
from amiss.types import Bool, Int64, UInt8


class RoiStore:
    """The regions of interest of n images, one bit a pixel; nothing is held until one is put."""

    def __init__(self, n: int, size: tuple[int, int]) -> None:
        self.n, self.size = n, size
        self.packed: UInt8 | None = None

    def put(self, indices: Int64, rois: Tensor | None) -> None:
        if rois is None:
            return
        if self.packed is None:
            self.packed = np.full((self.n, -(-self.size[0] * self.size[1] // 8)), 255, np.uint8)
        self.packed[indices] = np.packbits(rois.flatten(1).numpy(), axis=1)

    def get(self, index: int) -> Tensor | None:
        """(1, H, W) bool, or None for everywhere."""
        if self.packed is None:
            return None
        H, W = self.size
        bits = np.unpackbits(self.packed[index], count=H * W)
        return torch.from_numpy(bits.astype(np.bool_)).view(1, H, W)

    def cells(self, grid: tuple[int, int], numbers: Int64 | None = None) -> Bool:
        """(n, h * w) bool: the cells that lie inside, of all images or of some."""
        wanted = range(self.n) if numbers is None else numbers.tolist()
        if self.packed is None:
            return np.ones((len(wanted), grid[0] * grid[1]), dtype=np.bool_)
        rows = [roi_cells(roi, grid) for i in wanted if (roi := self.get(i)) is not None]
        return torch.cat(rows).numpy()


def inside(x: Tensor, roi: Tensor | None) -> Tensor:
    """x (B, C, H, W), 0 outside of `roi` (B, H, W), which is everywhere if None."""
    return x if roi is None else x * roi[:, None]


def roi_cells(roi: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W) bool -> (B, h * w) bool: cells of which at least half lies inside.

    A region thinner than a cell keeps the cells that lie inside it most.

    Raises:
        DataError: a region without a pixel.
    """
    share = F.adaptive_avg_pool2d(roi[:, None].float(), grid).flatten(1)
    most = share.amax(dim=1, keepdim=True)
    # An exported graph cannot refuse; whoever feeds it has looked.
    if not torch.compiler.is_compiling() and not bool((most > 0).all()):
        raise DataError(
            "A region of interest leaves nothing of its image to look at.",
            hint="White marks what is looked at; it must lie inside the image.",
        )
    return share >= most.clamp_max(0.5)
