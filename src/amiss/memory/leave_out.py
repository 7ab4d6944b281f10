"""The coreset that would have been chosen without one image, without choosing it anew.

Calibration wants each normal image judged by a bank that has not seen it. Leaving one image out
removes its rows from the coreset; the other rows still cover every patch but those that only the
removed ones covered. These few are measured against what is left, and the greedy selection goes on
among them until the covering radius and the number of rows are what they were: with fewer rows the
image would be judged by a coarser bank than the one that decides later. Over all images that costs
one pass over the patches to find out who is covered by whom, and a second one to measure what was
uncovered.

The rows that stay were chosen in the presence of the image, which a selection from scratch would
not have been; none of them belongs to it. How well the promised rates hold is measured in
docs/thresholds.md.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amiss.memory.coreset import Coreset
from amiss.memory.neighbors import nearest_rows
from amiss.types import Bool, Int64


class LeaveOneOut:
    """`flat` (n * P, D) patches of n images in order, the `chosen` coreset of those `inside`."""

    def __init__(self, flat: Tensor, chosen: Coreset, inside: Bool, per_image: int) -> None:
        self.flat, self.per_image = flat, per_image
        self.picks = chosen.indices
        self.picked_from = chosen.indices // per_image  # (k,) the image of each pick
        self.radius = chosen.radius
        centers = flat[torch.from_numpy(chosen.indices)]
        middle = centers.mean(0)
        norms = (centers - middle).square().sum(1)
        self.covered = np.flatnonzero(inside)  # patches that the coreset covers
        owner = np.empty(len(self.covered), dtype=np.int64)  # the image whose pick covers each
        for first in range(0, len(self.covered), _BLOCK):
            rows = flat[torch.from_numpy(self.covered[first : first + _BLOCK])]
            nearest = nearest_rows(rows, centers, norms, middle)[1].numpy()
            owner[first : first + _BLOCK] = self.picked_from[nearest]
        order = np.argsort(owner, kind="stable")
        self.by_owner = self.covered[order]
        self.ends = np.searchsorted(owner[order], np.arange(len(flat) // per_image + 1))

    def rows_without(self, image: int) -> Int64:
        """Rows of `flat` that form the bank without `image`; none when it is the only one."""
        kept: Int64 = self.picks[self.picked_from != image]
        uncovered = self.by_owner[self.ends[image] : self.ends[image + 1]]
        uncovered = uncovered[uncovered // self.per_image != image]
        return np.concatenate([kept, self._repair(uncovered, kept, len(self.picks))])

    def _repair(self, uncovered: Int64, kept: Int64, size: int) -> Int64:
        """Greedy picks among `uncovered` until all lie within the radius of a row of the bank, and
        the bank has `size` rows again or nothing is left to pick."""
        if len(uncovered) == 0:
            return uncovered
        rows = self.flat[torch.from_numpy(uncovered)]
        if len(kept) == 0:  # every pick came from the image: begin anew
            return np.concatenate([uncovered[:1], self._repair(uncovered[1:], uncovered[:1], size)])
        centers = self.flat[torch.from_numpy(kept)]
        middle = centers.mean(0)
        norms = (centers - middle).square().sum(1)
        distance, _ = nearest_rows(rows, centers, norms, middle)
        added: list[int] = []
        while True:
            farthest = int(distance.argmax())
            reach = float(distance[farthest])
            if reach == 0 or (reach <= self.radius and len(kept) + len(added) >= size):
                break
            added.append(uncovered[farthest])
            distance = torch.minimum(distance, (rows - rows[farthest]).norm(dim=1))
        return np.array(added, dtype=np.int64)


_BLOCK = 16_384  # patches measured at once
