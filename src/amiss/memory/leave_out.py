"""A stand-in for the coreset that would have been chosen without one image.

Calibration wants each normal image judged by a bank that has not seen it. Leaving one image out
removes its rows from the coreset; the other rows still cover every patch but those that only the
removed ones covered. Among these few the greedy selection goes on until the covering radius and the
number of rows are what they were: with fewer rows the image would be judged by a coarser bank than
the one that decides later.

All of that follows from one pass over the patches, which finds for each its nearest pick and its
nearest pick from any other image than that one's. Whichever image is left out, a patch's distance
to the remaining picks is one of the two.

The rows that stay were chosen in the presence of the image, which a selection from scratch would
not have been; none of them belongs to it. How well the promised rates hold is measured in
docs/thresholds.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amiss.memory.coreset import Coreset
from amiss.memory.neighbors import Rows, distances_to
from amiss.types import Bool, Int64

_BLOCK = 1 << 22  # ranks held at once: 16 MiB


class _Nearest(NamedTuple):
    """For each patch (N,): the distance to a pick and the number of that pick among the picks; -1
    where there is none."""

    distance: Tensor
    pick: Tensor


class LeaveOneOut:
    """`flat` (n * P, D) patches of n images in order, the `chosen` coreset of those `inside`.

    Images of one group (n,) int64, numbered from 0, are left out together: copies of a photograph,
    or cuts of one strip, would otherwise vouch for each other.
    """

    def __init__(self, flat: Tensor, chosen: Coreset, inside: Bool, group: Int64) -> None:
        self.flat, self.group = flat, group
        self.per_image = len(flat) // len(group)
        owner = group[chosen.indices // self.per_image]
        order = np.argsort(owner, kind="stable")  # picks of a group stand together
        self.picks, self.owner = chosen.indices[order], owner[order]  # (k,)
        self.starts = np.searchsorted(self.owner, np.arange(int(group.max()) + 2))
        self.radius = chosen.radius
        self.first, self.second = self._two_nearest()
        covered_by = self.owner[self.first.pick.numpy()]
        covered_by[~inside] = -1
        self.by_owner = np.argsort(covered_by, kind="stable")
        self.ends = np.searchsorted(covered_by[self.by_owner], np.arange(len(self.starts)))

    @torch.inference_mode()
    def _two_nearest(self) -> tuple[_Nearest, _Nearest]:
        """The nearest pick of each patch, and the nearest of another group than that pick's."""
        N = len(self.flat)
        centers = self.flat[torch.from_numpy(self.picks)]
        known = Rows(centers)
        found = [_Nearest(torch.empty(N), torch.empty(N, dtype=torch.int64)) for _ in range(2)]
        step = max(1, _BLOCK // len(centers))
        for first in range(0, N, step):
            rows = self.flat[first : first + step]
            ranks = known.ranks(rows)  # (R, k)
            for nearest in found:
                value, pick = ranks.min(dim=1)
                nearest.pick[first : first + step] = pick
                distance = distances_to(rows, centers[pick])
                none = value == torch.inf
                nearest.distance[first : first + step] = distance.masked_fill_(none, torch.inf)
                self._forget(ranks, pick.numpy())
        return found[0], found[1]

    def _forget(self, ranks: Tensor, pick: Int64) -> None:
        """Set, in each row of `ranks` (R, k), the picks of the group that `pick` (R,) came from to
        infinity."""
        owner = self.owner[pick]
        start, count = self.starts[owner], self.starts[owner + 1] - self.starts[owner]
        row = np.repeat(np.arange(len(pick)), count)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        column = np.repeat(start, count) + within
        ranks[torch.from_numpy(row), torch.from_numpy(column)] = torch.inf

    def without(self, image: int, num_neighbors: int) -> LeftOut:
        """The bank that the other groups make, with what it answers to this image's patches."""
        group = int(self.group[image])
        kept = np.concatenate(
            [self.picks[: self.starts[group]], self.picks[self.starts[group + 1] :]]
        )
        added = self._repair(group, size=len(self.picks), kept=len(kept))
        own = slice(image * self.per_image, (image + 1) * self.per_image)
        mine = torch.from_numpy(self.owner[self.first.pick[own].numpy()] == group)
        distance = torch.where(mine, self.second.distance[own], self.first.distance[own])
        pick = torch.where(mine, self.second.pick[own], self.first.pick[own])
        removed = int(self.starts[group + 1] - self.starts[group])
        row = torch.where(pick >= int(self.starts[group + 1]), pick - removed, pick)
        for number, added_row in enumerate(added):
            to_added = distances_to(self.flat[own], self.flat[added_row])
            nearer = to_added < distance
            distance = torch.where(nearer, to_added, distance)
            row = torch.where(nearer, len(kept) + number, row)
        rows = torch.from_numpy(np.concatenate([kept, np.array(added, dtype=np.int64)]))
        return LeftOut(self.flat[rows], distance, row, num_neighbors)

    def _repair(self, group: int, *, size: int, kept: int) -> list[int]:
        """Greedy picks among the patches that only `group` covered, until they lie within the
        radius of a row of the bank, and the bank has `size` rows or nothing is left to pick."""
        uncovered = self.by_owner[self.ends[group] : self.ends[group + 1]]
        uncovered = uncovered[self.group[uncovered // self.per_image] != group]
        rows = self.flat[torch.from_numpy(uncovered)]
        distance = self.second.distance[torch.from_numpy(uncovered)].clone()
        added: list[int] = []
        while len(uncovered):
            farthest = int(distance.argmax())
            reach = float(distance[farthest])
            if reach == 0 or (reach <= self.radius and kept + len(added) >= size):
                break
            added.append(int(uncovered[farthest]))
            distance = torch.minimum(distance, distances_to(rows, rows[farthest]))
        return added


class LeftOut:
    """The bank without one image. It knows what it answers to the patches of that image, and only
    that: `rows` (k, D), and for each of its P patches the distance to, and number of, the nearest.
    """

    def __init__(self, rows: Tensor, distance: Tensor, nearest: Tensor, num_neighbors: int) -> None:
        self.rows = rows
        self.answer = distance, nearest
        self.num_neighbors = min(num_neighbors, len(rows))

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and row numbers for the patches of the image, whatever is handed in."""
        assert len(queries) == len(self.answer[0])
        return self.answer

    def neighborhood(self, indices: Tensor) -> Tensor:
        """(B,) row numbers -> (B, b, D): the rows nearest to each, itself first (N_b(m*))."""
        return self.rows[Rows(self.rows).neighborhoods(indices, self.num_neighbors)]
