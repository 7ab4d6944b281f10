"""`Selection`: which of all training patches a bank keeps, by the options of a method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from amiss.errors import DataError
from amiss.memory.coreset import (
    Coreset,
    covering_radius,
    greedy_coreset,
    random_coreset,
    random_projection,
)
from amiss.run import Progress, silent
from amiss.types import Bool


@dataclass(frozen=True, slots=True)
class Selection:
    """`how` is "greedy" or "random"; `size` rows are kept, or else the share `ratio`.

    `projection_dim` above 0 chooses in a random projection to that dimension; the first pick is
    drawn with `seed`.
    """

    how: str
    ratio: float
    size: int | None
    projection_dim: int
    seed: int

    def count(self, rows: int) -> int:
        """Rows kept of `rows`: l = floor(ratio * |M|), at least one."""
        return min(rows, max(1, self.size or int(self.ratio * rows)))

    def choose(
        self,
        flat: Tensor,
        inside: Bool,
        *,
        picks: list[int] | None = None,
        progress: Progress = silent,
    ) -> Coreset:
        """Among the rows of `flat` (N, D) that lie `inside` (N,); `picks` as `greedy_coreset`."""
        if not inside.any():
            raise DataError("The region of interest leaves no patch to learn from.")
        size = self.count(int(inside.sum()))
        eligible = np.flatnonzero(inside)
        if size == len(eligible):  # everything is kept: there is nothing to choose
            return Coreset(eligible.astype(np.int64), 0.0)
        allowed = None if inside.all() else inside
        if self.how == "random":
            return random_coreset(flat, size, seed=self.seed, allowed=allowed)
        start = int(np.random.default_rng(self.seed).choice(eligible))
        space = flat
        if self.projection_dim:
            space = random_projection(flat, self.projection_dim, seed=self.seed)
        chosen = greedy_coreset(
            space, size, start=start, allowed=allowed, picks=picks, progress=progress
        )
        if space is flat:
            return chosen
        return Coreset(chosen.indices, covering_radius(flat, chosen.indices, allowed=allowed))


def sample_rows(flat: Tensor, inside: Bool, count: int, seed: int) -> Tensor:
    """(count, D) random rows that lie inside, to measure an approximate index on."""
    rows = np.random.default_rng(seed).choice(np.flatnonzero(inside), count)
    return flat[torch.from_numpy(rows)]
