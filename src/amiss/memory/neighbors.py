"""Exact nearest neighbours as one matrix product per block, the norms riding in it."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 22  # squared distances held at once: 16 MiB


def nearest_rows(queries: Tensor, rows: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `rows` (N, D) to each of `queries` (Q, D), exactly.

    `norms` (N,) are the squared norms of `rows`. Returns Euclidean distances (Q,) float32 and row
    numbers (Q,) int64. The product |m|^2 - 2 q.m only ranks; the distance of the winner is then
    taken from the difference, so a row that equals the query is at exactly 0.
    """
    step = max(1, _BLOCK // max(1, len(rows)))
    found = [
        torch.addmm(norms, block, rows.T, alpha=-2).min(dim=1).indices
        for block in queries.split(step)
    ]
    indices = found[0] if len(found) == 1 else torch.cat(found)
    return distances_to(queries, rows[indices]), indices


def distances_to(queries: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances between (..., D) and (..., D), from the difference, not from norms."""
    return (queries - others).square().sum(-1).sqrt()


def mutual_neighbors(rows: Tensor, norms: Tensor, count: int) -> Tensor:
    """(N, count) int64: for each row its `count` nearest rows, itself first.

    Duplicated rows may push a row out of its own list; it is put back in front.
    """
    N = len(rows)
    step = max(1, _BLOCK // max(1, N))
    found = []
    for first in range(0, N, step):
        block = rows[first : first + step]
        squared = torch.addmm(norms, block, rows.T, alpha=-2)
        own = torch.arange(first, first + len(block))
        squared[torch.arange(len(block)), own] = -torch.inf
        found.append(squared.topk(count, largest=False, sorted=True).indices)
    return torch.cat(found)
