"""`Embeddings`: the patches of all training images at once, and how far the work has come."""

from __future__ import annotations

import torch
from torch import Tensor

from amiss.nn.roi import RoiStore
from amiss.types import Bool, Int64


class Embeddings:
    """Patches (n, P, D) float32 of n images, their regions of interest, and the picks made so far.

    `done` images have been put, from the first on. `picks` are the coreset's rows in the flat
    numbering (n * P), in the order of picking.
    """

    def __init__(self, n: int, per_image: int, dim: int, image_size: tuple[int, int]) -> None:
        self.patches = torch.empty(n, per_image, dim)
        self.rois = RoiStore(n, image_size)
        self.done = 0
        self.picks: list[int] = []

    @property
    def flat(self) -> Tensor:
        """(n * P, D), a view."""
        return self.patches.flatten(0, 1)

    def put(self, indices: Int64, patches: Tensor, rois: Tensor | None) -> None:
        """Take in the next images: patches (B, P, D), rois (B, H, W) bool or None."""
        self.patches[torch.from_numpy(indices)] = patches
        self.rois.put(indices, rois)
        self.done = int(indices[-1]) + 1

    def inside(self, grid: tuple[int, int]) -> Bool:
        """(n, P) bool: patches that lie in the region of interest."""
        return self.rois.cells(grid)

    def tensors(self) -> dict[str, Tensor]:
        """What an interrupted job keeps."""
        kept = {
            "patches": self.patches[: self.done].contiguous(),
            "picks": torch.tensor(self.picks, dtype=torch.int64),
        }
        if self.rois.packed is not None:
            kept["rois"] = torch.from_numpy(self.rois.packed)
        return kept

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on from `tensors`."""
        self.done = len(kept["patches"])
        self.patches[: self.done] = kept["patches"]
        self.picks = kept["picks"].tolist()
        if "rois" in kept:
            self.rois.packed = kept["rois"].numpy().copy()
