"""Exact nearest neighbours as one matrix product per block, the norms riding in it."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_BLOCK = 1 << 22  # ranks held at once: 16 MiB


class _Scratch(threading.local):
    """Memory for ranks, one piece per thread: taking it anew costs more than the product itself,
    because the system hands out every page of it with a fault."""

    memory = torch.empty(0)

    def take(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) float32 of any content, valid until the thread asks again."""
        if self.memory.numel() < rows * columns:
            self.memory = torch.empty(rows * columns)
        return self.memory[: rows * columns].view(rows, columns)


_scratch = _Scratch()


class Rows:
    """Rows (N, D) float32 made ready to be searched.

    |q - m|^2 differs from |m - c|^2 - 2 (q - c).m only by what all m share, so the latter ranks
    rows by distance. It is one product of [q - c, 1] with [-2 m, |m - c|^2]. Any c will do; the
    mean of the rows loses the least to rounding where they lie far from the origin.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.center = rows.mean(0)
        norms = (rows - self.center).square().sum(1, keepdim=True)
        self.ranking = torch.cat([-2 * rows, norms], dim=1)  # (N, D + 1)

    def ranks(self, queries: Tensor) -> Tensor:
        """(Q, D) -> (Q, N), ascending with the distance within each row of the result.

        In inference the result lies in memory that the thread's next call takes again.
        """
        q = torch.cat([queries - self.center, queries.new_ones(len(queries), 1)], dim=1)
        if not torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
            return q @ self.ranking.T
        out = _scratch.take(len(q), len(self.ranking))
        return torch.mm(q, self.ranking.T, out=out)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Euclidean distances (Q,) float32 to, and numbers (Q,) int64 of, the nearest rows.

        The distance is taken from the difference, so a row that equals the query is at exactly 0.
        """
        step = max(1, _BLOCK // max(1, len(self.rows)))
        found = [self.ranks(block).min(dim=1).indices for block in queries.split(step)]
        indices = found[0] if len(found) == 1 else torch.cat(found)
        return distances_to(queries, self.rows[indices]), indices

    def neighborhoods(self, indices: Tensor, count: int) -> Tensor:
        """(B,) row numbers -> (B, count) int64: the `count` nearest rows to each, itself first,
        whatever duplicates it may have."""
        found = []
        for own in indices.split(max(1, _BLOCK // max(1, len(self.rows)))):
            ranks = self.ranks(self.rows[own])
            ranks[torch.arange(len(own)), own] = -torch.inf
            found.append(ranks.topk(count, largest=False, sorted=True).indices)
        return torch.cat(found)


def distances_to(queries: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances between (..., D) and (..., D), from the difference, not from norms."""
    return (queries - others).square().sum(-1).sqrt()
