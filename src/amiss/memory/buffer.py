"""`CoresetBuffer`: embeddings of a stream, reduced as they come, within a fixed number of rows.

Rows are collected into chunks; a full chunk is replaced by its own greedy coreset, and at the end
the final coreset is chosen among what the chunks kept. A row lies within its chunk's covering
radius of a kept row, and that within the final radius of a member, so every row that ever came by
is covered within the sum of the two (composable k-centre): `radius` is that bound.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amiss.errors import DataError
from amiss.memory.coreset import Coreset, greedy_coreset
from amiss.run import Progress, silent


class CoresetBuffer:
    """Collects (M, D) float32 rows with their origins (M, 3) int32.

    Args:
        dim: D.
        chunk_rows: rows held before a reduction.
        keep: share of a chunk's rows that its coreset keeps, in (0, 1].
    """

    def __init__(self, dim: int, *, chunk_rows: int, keep: float) -> None:
        self.keep = keep
        self.chunk = torch.empty(chunk_rows, dim)
        self.chunk_origin = torch.empty(chunk_rows, 3, dtype=torch.int32)
        self.filled = 0
        self.rows_seen = 0
        self.kept: list[Tensor] = []
        self.kept_origin: list[Tensor] = []
        self.chunk_radius = 0.0

    def add(self, rows: Tensor, origin: Tensor) -> None:
        """Take rows in, in any number."""
        self.rows_seen += len(rows)
        while len(rows):
            room = len(self.chunk) - self.filled
            part, rows = rows[:room], rows[room:]
            part_origin, origin = origin[:room], origin[room:]
            last = self.filled + len(part)
            self.chunk[self.filled : last] = part
            self.chunk_origin[self.filled : last] = part_origin
            self.filled = last
            if self.filled == len(self.chunk):
                self._reduce()

    def _reduce(self) -> None:
        rows = self.chunk[: self.filled]
        size = max(1, round(self.keep * len(rows)))
        chosen = greedy_coreset(rows, size)
        picks = torch.from_numpy(np.sort(chosen.indices))
        self.kept.append(rows[picks])
        self.kept_origin.append(self.chunk_origin[picks])
        self.chunk_radius = max(self.chunk_radius, chosen.radius)
        self.filled = 0

    def finish(self, size: int, *, progress: Progress = silent) -> tuple[Tensor, Tensor, float]:
        """The final coreset: rows (size, D), origins (size, 3), and the radius bound."""
        if self.filled:
            self._reduce()
        if not self.kept:
            raise DataError("The regions of interest leave no patch to learn from.")
        self.chunk = self.chunk[:0].clone()  # its memory is needed for the final choice
        rows, origin = torch.cat(self.kept), torch.cat(self.kept_origin)
        self.kept.clear()
        self.kept_origin.clear()
        chosen: Coreset = greedy_coreset(rows, min(size, len(rows)), progress=progress)
        picks = torch.from_numpy(chosen.indices)
        return rows[picks], origin[picks], self.chunk_radius + chosen.radius
