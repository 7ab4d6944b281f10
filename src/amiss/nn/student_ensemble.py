"""Teachers of patches with the students that regress them, and how far these miss and differ.

Bergmann, Fauser, Sattlegger, Steger, "Uninformed Students", CVPR 2020, sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from amiss.nn.levels import as_input
from amiss.nn.patch_network import PatchNetwork


class StudentEnsemble(nn.Module):
    """images (B, 3, H, W) uint8 -> (B, L, 2, h, w): regression error e and predictive variance v
    of each of L patch sizes, at cells `stride` pixels apart.

    `teachers`: one for each patch size; `students`: M of the first, M of the next, and so on.
    `scales` (L, D, 2): mean and standard deviation of the teachers' entries.
    """

    def __init__(self, patch_sizes: Sequence[int], count: int, width: float, stride: int) -> None:
        super().__init__()
        self.count = count
        self.teachers = nn.ModuleList(PatchNetwork(p, width, stride) for p in patch_sizes)
        self.students = nn.ModuleList(
            PatchNetwork(p, width, stride) for p in patch_sizes for _ in range(count)
        )
        D = cast(PatchNetwork, self.teachers[0]).dim
        self.scales: Tensor
        self.register_buffer("scales", torch.ones(len(patch_sizes), D, 2))

    def forward(self, images: Tensor) -> Tensor:
        x = as_input(images)
        found = []
        for level, teacher in enumerate(self.teachers):
            first = level * self.count
            said = torch.stack([s(x) for s in self.students[first : first + self.count]])
            found.append(torch.stack(disagreement(self.scaled(level, teacher(x)), said), dim=1))
        return torch.stack(found, dim=1)

    def taught(self, images: Tensor) -> tuple[Tensor, ...]:
        """What each teacher says of images (B, 3, H, W) uint8: (B, D, h, w), not scaled."""
        x = as_input(images)
        return tuple(teacher(x) for teacher in self.teachers)

    def scaled(self, level: int, said: Tensor) -> Tensor:
        """(y - mu) / sigma, entry by entry, of what teacher `level` says (B, D, h, w)."""
        mean, deviation = self.scales[level].T[:, None, :, None, None].to(said.device)
        scaled: Tensor = (said - mean) / deviation
        return scaled


def regression_loss(said: Tensor, wanted: Tensor, cells: Tensor | None = None) -> Tensor:
    """L = 1/(wh) sum over cells of ||said - wanted||^2, over the cells (B, h, w) that count.

    said, wanted (B, D, h, w); wanted is what the teacher says, scaled.
    """
    apart: Tensor = (said - wanted).square().sum(1)
    if cells is None:
        return apart.mean()
    loss: Tensor = (apart * cells).sum() / cells.sum()
    return loss


def disagreement(wanted: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """What the teacher says, scaled (B, D, h, w), and the M students (M, B, D, h, w) -> e, v
    (B, h, w).

    e = ||mean_i y_i - y_T||^2 and v = (1/M) sum_i ||y_i||^2 - ||mean_i y_i||^2, written as the mean
    of ||y_i - mean||^2, which is the same and loses no digits.
    """
    mean = said.mean(0)
    error = (mean - wanted).square().sum(1)
    variance = (said - mean).square().sum(2).mean(0)
    return error, variance
