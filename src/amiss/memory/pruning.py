"""Lower bounds on distances in a few directions, so that few rows need to be compared in full.

Let V (D, k) be orthonormal, c any point, and x_r what remains of x - c outside the span of V. Then

    |q - m|^2 >= |V^T (q - m)|^2 + (|q_r| - |m_r|)^2        (Cauchy and Schwarz)
               = |q - c|^2 + |m - c|^2 - 2 [V^T (q - c), |q_r|] . [V^T (m - c), |m_r|],

one product of k + 1 columns instead of D. Neighbouring patch features are alike: 48 of 152
directions hold 97 % of the variance of a bank, and the bound leaves two to six of 2,000 rows to be
compared in full. The answer is exact whatever V is; a bad one only leaves more rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.memory.packed import PackedLinear

GROUP = 64  # rows among which a first minimum is taken; four vectors of AVX-512
FAR = 3e38  # the rank of padding: farther than any row

_STEP = 16  # k + 1 is a multiple of this: a whole vector of AVX-512
_ENERGY = 0.97  # share of the variance that the directions must hold
_OVERSAMPLING = 8


class LowerBounds:
    """The bounds of a fixed set of rows (N, D) float32.

    Made by `lower_bounds`, which returns None where they would not pay.
    """

    def __init__(self, rows: Tensor, center: Tensor, directions: Tensor) -> None:
        centered = (rows - center).double()
        inside = centered @ directions.double()  # (N, k)
        norms = centered.square().sum(1)
        outside = (norms - inside.square().sum(1)).clamp_min(0).sqrt()
        padding = -len(rows) % GROUP
        weight = -2 * torch.cat([inside, outside[:, None]], dim=1).float()  # (N, k + 1)
        self.rows, self.center = rows, center
        self.bounds = PackedLinear(
            F.pad(weight, (0, 0, 0, padding)), F.pad(norms.float(), (0, padding), value=FAR)
        )
        self.project = PackedLinear(directions.T.contiguous(), torch.zeros(directions.shape[1]))
        self.reach = float(norms.max().sqrt())  # the longest m - c
        self.rounding = rows.shape[1] * 2.0**-23  # of float32 sums of D terms, relative

    def nearest(
        self, queries: Tensor, at_most: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Squared distances (Q,) to, and numbers (Q,) int64 of, the nearest rows, the first of
        equals; None where the bounds leave too much to compare.

        queries: (Q, D). Where it computes in float32, rounding is given to the bounds as slack.
        `at_most` (Q,) are squared distances beyond which nothing is looked for: the answer is then
        infinite, or some distance above it.
        """
        Q = len(queries)
        q = queries - self.center
        norm = q.square().sum(1)
        inside = self.project(q)
        outside = norm * (1 + self.rounding) - inside.square().sum(1)
        outside = (outside.clamp_min_(0) + self.rounding * norm).sqrt_()
        lower = self.bounds(torch.cat([inside, outside[:, None]], dim=1))  # less |q - c|^2
        groups = lower.view(Q, -1, GROUP)
        smallest = groups.amin(2)  # (Q, groups)
        # Some row near the query: its distance is an upper bound of the smallest.
        group = smallest.argmin(1)
        # index_select copies whole rows, several times as fast as an index in brackets.
        flat, first = groups.flatten(0, 1), torch.arange(Q) * groups.shape[1]
        near = group * GROUP + flat.index_select(0, first + group).argmin(1)
        slack = self.rounding * self.reach * (2 * norm.sqrt() + self.reach)
        upper = (queries - self.rows.index_select(0, near)).square_().sum(1) - norm + slack
        if at_most is not None:
            upper = torch.minimum(upper, at_most - norm + slack)
        # Groups, then rows, whose lower bound does not exceed it, as pairs with their query.
        query, group = (smallest <= upper[:, None]).nonzero(as_tuple=True)
        if len(query) * GROUP > lower.numel() // 2:
            return None
        left = flat.index_select(0, first[query] + group)
        pair, place = (left <= upper[query, None]).nonzero(as_tuple=True)
        query, row = query[pair], group[pair] * GROUP + place
        squared = queries.index_select(0, query).sub_(self.rows.index_select(0, row))
        squared = squared.square_().sum(1)
        return _smallest_of_each(squared, query, row, Q)


def _smallest_of_each(values: Tensor, query: Tensor, row: Tensor, Q: int) -> tuple[Tensor, Tensor]:
    """values, query, row (C,) -> for each of Q queries its smallest value and the first row that
    has it; infinity, and no row, for a query that does not occur."""
    best = values.new_full((Q,), torch.inf).scatter_reduce_(0, query, values, "amin")
    winners = (values == best[query]).nonzero()[:, 0]
    query, row = query[winners], row[winners]
    last = torch.iinfo(torch.int64).max
    first = row.new_full((Q,), last).scatter_reduce_(0, query, row, "amin")
    return best, first


def lower_bounds(rows: Tensor, center: Tensor) -> LowerBounds | None:
    """Bounds for rows (N, D) in as few directions as hold enough of their variance; None where
    these are more than half of all, or the rows so few that a plain product is quicker."""
    directions = choose_directions(rows, center)
    return None if directions is None else LowerBounds(rows, center, directions)


def choose_directions(rows: Tensor, center: Tensor) -> Tensor | None:
    """(D, k) orthonormal: the few that hold enough of the variance of rows (N, D); None as for
    `lower_bounds`."""
    N, D = rows.shape
    most = D // 2 // _STEP * _STEP - 1
    if N < 1024 or most < 1:
        return None
    directions, energy = _principal(rows - center, min(most, N))
    enough = (energy >= _ENERGY).nonzero()
    if not len(enough):
        return None
    k = (int(enough[0]) + 2 + _STEP - 1) // _STEP * _STEP - 1
    return directions[:, :k].contiguous()


def _principal(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """About the first `count` principal directions (D, count) of rows (N, D), and the share of the
    variance (count,) that the first 1, 2, ... of them hold.

    By subspace iteration from a fixed start: quick in any dimension, and the same every time.
    """
    N, D = rows.shape
    width = min(count + _OVERSAMPLING, N, D)
    start = torch.randn(D, width, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start)[0]
    for _ in range(2):
        basis = torch.linalg.qr(rows.T @ (rows @ basis))[0]
    basis = torch.linalg.qr(basis.double())[0]
    projected = rows.double() @ basis
    variance, turn = torch.linalg.eigh(projected.T @ projected)  # ascending
    variance, turn = variance.flip(0)[:count], turn.flip(1)[:, :count]
    return (basis @ turn).float(), variance.cumsum(0) / rows.double().square().sum()
