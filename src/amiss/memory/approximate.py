"""An inverted-file index for banks too large to search row by row.

Rows are grouped around centroids, and a query looks only into the groups nearest to it. How many
groups it must look into is measured, not assumed: the fewest at which the true nearest row is found
for at least `RECALL` of a sample of real patches. What is stored are the centroids, a plain tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amiss.memory.neighbors import Rows, distances_to

RECALL = 0.99
LARGE_BANK = 50_000  # rows; below this an exact search of one image takes under 100 ms
_PROBES = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Measured:
    """How the approximate search did on the sample: recall@1 against the exact one, and by how much
    its distances are too large on average (a share; 0.001 is a tenth of a percent)."""

    recall: float
    excess: float
    probes: int

    def describe(self) -> str:
        """One sentence for the user."""
        return (
            f"approximate index: recall@1 {self.recall:.4f} against exact search, distances "
            f"{self.excess:.2%} too large on average, {self.probes} groups per query"
        )


class InvertedFile:
    """Approximate nearest rows; distances of what it finds are exact.

    Args:
        rows: (N, D) float32.
        centroids: (G, D) float32 as stored; None trains them.
        probes: groups per query.
    """

    def __init__(
        self, rows: Tensor, *, centroids: Tensor | None, probes: int, seed: int = 0
    ) -> None:
        import faiss

        dim = rows.shape[1]
        if centroids is None:
            groups = max(1, min(len(rows), int(4 * math.sqrt(len(rows)))))
            kmeans = faiss.Kmeans(dim, groups, niter=10, seed=seed + 1, min_points_per_centroid=1)
            kmeans.train(rows.numpy())
            centroids = torch.from_numpy(np.array(kmeans.centroids))
        self.rows, self.centroids = rows, centroids
        quantizer = faiss.IndexFlatL2(dim)
        quantizer.add(centroids.numpy())
        self.index: Any = faiss.IndexIVFFlat(quantizer, dim, len(centroids))
        self.index.own_fields = False
        self._quantizer = quantizer  # the index only points to it
        self.index.train(centroids.numpy())
        self.index.add(rows.numpy())
        self.probes = probes

    @property
    def probes(self) -> int:
        """Groups that a query looks into."""
        return int(self.index.nprobe)

    @probes.setter
    def probes(self, probes: int) -> None:
        self.index.nprobe = min(probes, len(self.centroids))

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, D) -> Euclidean distances (Q,) and row numbers (Q,) of what was found."""
        _, found = self.index.search(queries.contiguous().numpy(), 1)
        indices = torch.from_numpy(found[:, 0])
        lost = indices < 0  # only empty groups were looked into
        if bool(lost.any()):
            indices[lost] = Rows(self.rows).nearest(queries[lost])[1]
        return distances_to(queries, self.rows[indices]), indices


def build_inverted_file(
    rows: Tensor, sample: Tensor, *, seed: int
) -> tuple[InvertedFile, Measured]:
    """An index whose number of groups per query reaches RECALL on `sample` (S, D), or the most that
    is tried."""
    index = InvertedFile(rows, centroids=None, probes=1, seed=seed)
    true_distance, true_row = Rows(rows).nearest(sample)
    measured = Measured(0.0, 0.0, 0)
    for probes in _PROBES:
        index.probes = probes
        distance, row = index.nearest(sample)
        recall = float(((row == true_row) | (distance <= true_distance)).float().mean())
        excess = float((distance.sum() / true_distance.sum().clamp_min(1e-12)) - 1)
        measured = Measured(recall, excess, index.probes)
        if recall >= RECALL or index.probes < probes:
            break
    return index, measured
