"""Greedy k-centre selection, exact, by lazy evaluation in blocks.

The textbook loop measures every point against each new centre: N k D multiplications at the speed
of memory. Three facts make the same picks cheap:

- A point's distance to the selected set only falls. A distance measured long ago is an upper bound,
  and a point whose bound lies below the current radius cannot be picked: it is left alone.
- The points with the largest bounds are refreshed together, against all centres added since they
  were last measured. That is one matrix product per block, at the speed of arithmetic.
- Among the refreshed points, those at or above the largest bound of all the others form a pool in
  which the true order is known: many picks are settled there, against each other alone, before
  anything else must be refreshed.

Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
ICLR 2018; used by PatchCore, CVPR 2022, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from amiss.errors import OptionError
from amiss.run import Progress, silent
from amiss.types import Bool, Float32, Int64

_ROWS = 2048  # points per block of a refresh
_CENTERS = 512  # centres per block: a block of squared distances is 4 MiB, which stays in the cache
_POOL = 2048  # points whose mutual distances are known at once


@dataclass(frozen=True, slots=True)
class Coreset:
    """`indices` (size,) int64 in the order of picking; `radius`, the covering radius: no point that
    could be picked is farther than this from its nearest pick (Euclidean, units of the embedding).
    """

    indices: Int64
    radius: float


@overload
def k_center_greedy(embeddings: Float32, size: int, *, start: int = 0) -> Int64: ...
@overload
def k_center_greedy(embeddings: Tensor, size: int, *, start: int = 0) -> Tensor: ...
def k_center_greedy(embeddings: Float32 | Tensor, size: int, *, start: int = 0) -> Int64 | Tensor:
    """Pick `size` rows so that the farthest row from its nearest pick is near, greedily.

    Repeats argmax_m min_{n in picks} ||m - n||_2. `start` is the first pick and a member.

    Args:
        embeddings: (N, D) float32, finite; an array or a CPU tensor.
        size: 1 to N.

    Returns:
        (size,) int64 row numbers in the order of picking, of the kind of `embeddings`. The first
        rows of a longer selection are a shorter selection from the same start.

    Raises:
        OptionError: wrong shape, dtype, size or start; rows that are not finite.
    """
    if isinstance(embeddings, Tensor):
        return torch.from_numpy(greedy_coreset(embeddings, size, start=start).indices)
    rows = np.asarray(embeddings)
    if rows.dtype != np.float32:
        raise OptionError(f"Embeddings are {rows.dtype}.", hint="Pass float32.")
    return greedy_coreset(torch.from_numpy(_writable(rows)), size, start=start).indices


def greedy_coreset(
    embeddings: Tensor,
    size: int,
    *,
    start: int = 0,
    allowed: Bool | None = None,
    picks: list[int] | None = None,
    progress: Progress = silent,
) -> Coreset:
    """`k_center_greedy` with its covering radius, over the `allowed` rows only, resumable.

    Args:
        embeddings: (N, D) float32 CPU tensor, finite. Not copied.
        allowed: (N,) bool; rows that may be picked and must be covered. None allows all.
        picks: what an interrupted call with the same arguments had picked; grows as picks are
            made, so that whoever holds the list can go on after an interruption.

    Raises:
        OptionError: as `k_center_greedy`; also a start that is not allowed.
    """
    _validate(embeddings, size, start, allowed)
    search = _LazyGreedy(embeddings, size, allowed)
    made = [] if picks is None else picks
    assert len(set(made)) == len(made), "a row was picked twice"
    search.add(made[:size] or [start])
    while len(search.picks) < size:
        search.settle_picks(limit=size)
        made[:] = search.picks
        progress("coreset", len(search.picks), size)
    return Coreset(np.array(search.picks[:size], dtype=np.int64), search.radius())


def random_coreset(
    embeddings: Tensor, size: int, *, seed: int, allowed: Bool | None = None
) -> Coreset:
    """A uniform random subset, the baseline that the greedy selection is compared with."""
    start = int(np.flatnonzero(allowed)[0]) if allowed is not None else 0
    _validate(embeddings, size, start, allowed)
    eligible = np.flatnonzero(allowed) if allowed is not None else np.arange(len(embeddings))
    indices = np.random.default_rng(seed).choice(eligible, size, replace=False).astype(np.int64)
    return Coreset(indices, covering_radius(embeddings, indices, allowed=allowed))


def random_projection(embeddings: Tensor, dim: int, *, seed: int) -> Tensor:
    """(N, D) -> (N, dim) by a Gaussian matrix scaled so that distances are kept on average
    (Johnson-Lindenstrauss). For choosing rows only: the bank keeps the embeddings themselves."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(embeddings.shape[1], dim, generator=generator)
    return embeddings @ matrix.div_(math.sqrt(dim))


def covering_radius(embeddings: Tensor, picks: Int64, *, allowed: Bool | None = None) -> float:
    """max over (allowed) rows of the Euclidean distance to the nearest picked row."""
    search = _LazyGreedy(embeddings, len(picks), allowed)
    search.add(picks.tolist())
    return search.radius()


class _LazyGreedy:
    """Upper bounds of the squared distance to the picks, refreshed only where it matters.

    All products are taken about the mean: distances do not change, rounding errors shrink.
    """

    def __init__(self, embeddings: Tensor, size: int, allowed: Bool | None) -> None:
        N, D = embeddings.shape
        self.x = embeddings
        self.picks: list[int] = []
        self.mean = embeddings[:: max(1, N // 4096)].mean(0)
        self.bound = torch.full((N,), torch.inf)  # (N,) squared; -1: picked, or not allowed
        if allowed is not None:
            self.bound[torch.from_numpy(~allowed)] = -1
        self.seen = torch.zeros(N, dtype=torch.int64)  # (N,) how many picks `bound` accounts for
        self.n_candidates = max(8192, N // 8)
        # |x - c|^2 - |x|^2 = [x, 1] . [-2c, |c|^2]: the bias rides in the matrix product.
        self.centers = torch.empty(size, D + 1)
        self.norm = _squared_norms(embeddings, self.mean)  # (N,)
        self.gathered = torch.empty(_ROWS, D)
        self.block = torch.ones(_ROWS, D + 1)
        self.product = torch.empty(_ROWS * _CENTERS)

    def add(self, rows: list[int]) -> None:
        """Make `rows` picks."""
        first, last = len(self.picks), len(self.picks) + len(rows)
        if last > len(self.centers):
            raise OptionError(
                f"{last} picks were handed in for a selection of {len(self.centers)}."
            )
        centers = self.x[rows] - self.mean
        self.centers[first:last, :-1] = -2 * centers
        self.centers[first:last, -1] = centers.square().sum(1)
        self.bound[rows] = -1
        self.picks.extend(rows)

    def settle_picks(self, limit: int) -> None:
        """One round: refresh, form the pool, and pick in it as long as its order is certain."""
        pool, floor = self._pool()
        x = self.x[pool] - self.mean
        norm = x.square().sum(1)
        mutual = torch.addmm(norm, x, x.T, alpha=-2).add_(norm[:, None]).clamp_min_(0).numpy()
        bound = self.bound[pool].numpy()
        rows: list[int] = []
        while len(self.picks) + len(rows) < limit:
            best = int(bound.argmax())
            if bound[best] < max(floor, 0.0):  # another point may be farther, or all are picked
                break
            rows.append(best)
            np.minimum(bound, mutual[best], out=bound)
            bound[rows[-1]] = -1
        self.bound[pool] = torch.from_numpy(bound)
        self.add(pool[rows].tolist())
        self.seen[pool] = len(self.picks)

    def radius(self) -> float:
        """Distance of the point that would be picked next; 0 when every point is picked."""
        if float(self.bound.max()) < 0:
            return 0.0
        pool, _ = self._pool()
        nearest = (self.x[pool[self.bound[pool].argmax()]] - self.x[self.picks]).norm(dim=1)
        return float(nearest.min())

    def _pool(self) -> tuple[Tensor, float]:
        """Row numbers (P,), exact and sorted, and the largest bound of all other rows."""
        while True:
            rows, floor = self._candidates()
            self._refresh(rows)
            bound = self.bound[rows]
            rows, bound = rows[bound >= floor], bound[bound >= floor]
            if len(rows) == 0:
                continue  # all fell below the rest: the rest holds the next candidates
            if len(rows) > _POOL:
                bound, order = bound.topk(_POOL + 1)
                rows, floor = rows[order[:-1]], float(bound[-1])
            return rows.sort().values, floor

    def _candidates(self) -> tuple[Tensor, float]:
        """The rows with the largest bounds, and the largest bound among the others."""
        if len(self.bound) <= self.n_candidates:
            return torch.nonzero(self.bound >= 0).squeeze(1), -1.0
        bound, rows = self.bound.topk(self.n_candidates + 1, sorted=False)
        floor = float(bound.min())
        above = bound > floor
        if not above.any():  # one tie fills the block: any order of it is a greedy order
            return rows, floor
        return rows[above], floor

    def _refresh(self, rows: Tensor) -> None:
        """Bring the bounds of `rows` up to date with all picks."""
        k = len(self.picks)
        seen = self.seen[rows]
        stale, seen = rows[seen < k], seen[seen < k]
        seen, order = seen.sort()
        stale = stale[order]  # rows that missed the same picks stand together
        for first in range(0, len(stale), _ROWS):
            block = stale[first : first + _ROWS]
            nearest = self._nearest(block, int(seen[first]))
            self.bound[block] = torch.minimum(self.bound[block], nearest)
        self.seen[rows] = k

    def _nearest(self, rows: Tensor, since: int) -> Tensor:
        """(R,) squared distance of `rows` to the nearest of the picks from number `since` on."""
        R = len(rows)
        x = self.block[:R]
        torch.index_select(self.x, 0, rows, out=self.gathered[:R])
        torch.sub(self.gathered[:R], self.mean, out=x[:, :-1])
        nearest = torch.full((R,), torch.inf)
        for first in range(since, len(self.picks), _CENTERS):
            centers = self.centers[first : min(first + _CENTERS, len(self.picks))]
            product = self.product[: R * len(centers)].view(R, len(centers))
            torch.mm(x, centers.T, out=product)
            torch.minimum(nearest, product.amin(1), out=nearest)
        return nearest.add_(self.norm[rows]).clamp_min_(0)


def _squared_norms(rows: Tensor, mean: Tensor) -> Tensor:
    """(N,) squared distances from the mean, without a second copy of the rows."""
    norms = torch.empty(len(rows))
    for first in range(0, len(rows), _ROWS):
        block = rows[first : first + _ROWS] - mean
        norms[first : first + _ROWS] = torch.einsum("nd,nd->n", block, block)
    return norms


def _writable(rows: Float32) -> Float32:
    """torch wants arrays it could write to; a read-only one (memory-mapped) is copied."""
    return rows if rows.flags.writeable else rows.copy()


def _validate(embeddings: Tensor, size: int, start: int, allowed: Bool | None) -> None:
    if embeddings.ndim != 2 or embeddings.dtype != torch.float32:
        raise OptionError(
            f"Embeddings have shape {tuple(embeddings.shape)} and type {embeddings.dtype}.",
            hint="Pass (N, D) float32.",
        )
    N = len(embeddings)
    available = N if allowed is None else int(allowed.sum())
    if not 1 <= size <= available:
        raise OptionError(
            f"A coreset of {size} was asked for from {available} embeddings.",
            hint=f"Choose a size from 1 to {available}.",
        )
    if not 0 <= start < N or (allowed is not None and not allowed[start]):
        raise OptionError(
            f"Start {start} is not among the {available} embeddings to choose from.",
            hint=f"Choose a start from 0 to {N - 1}.",
        )
    if not bool(torch.isfinite(embeddings.sum())) and not bool(torch.isfinite(embeddings).all()):
        raise OptionError("Some embeddings are not finite.", hint="Check the backbone's weights.")
