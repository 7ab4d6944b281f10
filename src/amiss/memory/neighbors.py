"""Exact nearest neighbours as one matrix product per block, the norms riding in it as its bias."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.memory.packed import PackedLinear
from amiss.memory.pruning import FAR, GROUP, LowerBounds, lower_bounds

_BLOCK = 1 << 22  # ranks held at once: 16 MiB


class Rows:
    """Rows (N, D) float32 made ready to be searched.

    |q - m|^2 differs from |m - c|^2 - 2 (q - c).m only by what all m share, so the latter ranks
    rows by distance. It is a linear layer with weights -2 m and bias |m - c|^2. Any c will do; the
    mean of the rows loses the least to rounding where they lie far from the origin.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.center = rows.mean(0)
        padding = -len(rows) % GROUP
        norms = (rows - self.center).square().sum(1)
        self.ranking = PackedLinear(
            F.pad(-2 * rows, (0, 0, 0, padding)), F.pad(norms, (0, padding), value=FAR)
        )
        self._bounds: LowerBounds | None = None
        self._asked_for_bounds = False

    def ranks(self, queries: Tensor) -> Tensor:
        """(Q, D) -> (Q, N), ascending with the distance within each row of the result."""
        return self._padded_ranks(queries)[:, : len(self.rows)]

    def _padded_ranks(self, queries: Tensor) -> Tensor:
        return self.ranking(queries - self.center)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Euclidean distances (Q,) float32 to, and numbers (Q,) int64 of, the nearest rows.

        The distance is taken from the difference, so a row that equals the query is at exactly 0.
        """
        if torch.compiler.is_compiling():  # a graph has no loop over a size that it does not know
            return self.nearest_by_ranks(queries)
        step = max(1, _BLOCK // len(self.ranking))
        found = [self._nearest_of_block(block) for block in queries.split(step)]
        if len(found) == 1:
            return found[0]
        return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])

    def _nearest_of_block(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        bounds = self._lower_bounds()
        found = None if bounds is None else bounds.nearest(queries)
        if found is not None:
            return found[0].sqrt_(), found[1]
        return self.nearest_by_ranks(queries)

    def nearest_by_ranks(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """As `nearest`, with all rows compared at once and no bounds."""
        indices = first_minimum(self._padded_ranks(queries))
        return distances_to(queries, self.rows[indices]), indices

    def _lower_bounds(self) -> LowerBounds | None:
        if not self._asked_for_bounds:  # threads that come here at once make the same bounds
            self._bounds = lower_bounds(self.rows, self.center)
            self._asked_for_bounds = True
        return self._bounds

    def neighborhoods(self, indices: Tensor, count: int) -> Tensor:
        """(B,) row numbers -> (B, count) int64: the `count` nearest rows to each, itself first,
        whatever duplicates it may have."""
        found = []
        for own in indices.split(max(1, _BLOCK // len(self.ranking))):
            ranks = self.ranks(self.rows[own])
            ranks[torch.arange(len(own)), own] = -torch.inf
            found.append(ranks.topk(count, largest=False, sorted=True).indices)
        return torch.cat(found)


def first_minimum(values: Tensor) -> Tensor:
    """(Q, N') -> (Q,) int64: where each row of `values` is smallest, the first place of equals.
    N' is a multiple of GROUP.

    The smallest value of each group comes first, at the speed of memory; only the group that holds
    the smallest of all is then searched for the place. A plain argmin takes five times as long.
    """
    Q = values.shape[0]  # len() would fix the size in an exported graph
    groups = values.view(Q, -1, GROUP)  # (Q, N' / GROUP, GROUP)
    group = groups.amin(2).argmin(1)
    chosen = groups.gather(1, group[:, None, None].expand(Q, 1, GROUP))[:, 0]  # (Q, GROUP)
    return group * GROUP + chosen.argmin(1)


def distances_to(queries: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances between (..., D) and (..., D), from the difference, not from norms."""
    return (queries - others).square().sum(-1).sqrt()
