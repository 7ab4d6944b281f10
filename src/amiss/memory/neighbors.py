"""Exact nearest neighbours as one matrix product per block, the norms riding in it."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 1 << 22  # squared distances held at once: 16 MiB


def nearest_rows(
    queries: Tensor, rows: Tensor, norms: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest of `rows` (N, D) to each of `queries` (Q, D), exactly.

    `norms` (N,) are the squared distances of `rows` from `center` (D,), any point; their mean loses
    the least to rounding. Returns Euclidean distances (Q,) float32 and row numbers (Q,) int64.
    |m - c|^2 - 2 (q - c).m ranks like the distance, being |q - m|^2 less what all m share; that
    of the winner is then taken from the difference, so a row that equals the query is at exactly 0.
    """
    step = max(1, _BLOCK // max(1, len(rows)))
    found = [
        torch.addmm(norms, block - center, rows.T, alpha=-2).min(dim=1).indices
        for block in queries.split(step)
    ]
    indices = found[0] if len(found) == 1 else torch.cat(found)
    return distances_to(queries, rows[indices]), indices


def distances_to(queries: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances between (..., D) and (..., D), from the difference, not from norms."""
    return (queries - others).square().sum(-1).sqrt()


def mutual_neighbors(
    indices: Tensor, rows: Tensor, norms: Tensor, center: Tensor, count: int
) -> Tensor:
    """(B,) row numbers -> (B, count) int64: the `count` nearest of `rows` (N, D) to each, itself
    first, whatever duplicates it may have."""
    found = []
    for own in indices.split(max(1, _BLOCK // max(1, len(rows)))):
        squared = torch.addmm(norms, rows[own] - center, rows.T, alpha=-2)
        squared[torch.arange(len(own)), own] = -torch.inf
        found.append(squared.topk(count, largest=False, sorted=True).indices)
    return torch.cat(found)
