"""One Gaussian per cell of a feature grid: moments in one pass, distances, leaving images out.

Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
1979: moments of two parts are merged through the difference of their means, so nothing cancels as
it does in sum(x x^T) - n mean mean^T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from amiss.nn.parallel import ImageWorkers

CELLS = 64
"""Cells worked on at a time: what one block of them takes in float64 stays near the caches."""


class Moments:
    """Count, mean and scatter sum((x - mean)(x - mean)^T) of the vectors seen at each of P cells.

    `count` (P,), `mean` (P, D) and `scatter` (P, D, D) are float64; of `scatter` the lower triangle
    counts, and without it the moments can only be read.
    """

    def __init__(self, cells: int, dim: int, *, with_scatter: bool = True) -> None:
        self.count = torch.zeros(cells, dtype=torch.float64)
        self.mean = torch.zeros(cells, dim, dtype=torch.float64)
        self.scatter = torch.zeros(cells if with_scatter else 0, dim, dim, dtype=torch.float64)

    @property
    def cells(self) -> int:
        return len(self.count)

    def add(self, x: Tensor, inside: Tensor | None = None) -> None:
        """Take in vectors (n, P, D); where `inside` (n, P) is False they do not count."""
        for block in blocks(self.cells):
            rows, count, mean = _centred(x[:, block], None if inside is None else inside[:, block])
            bridge = self._meet(block, count, mean)
            self.scatter[block].baddbmm_(rows.mT, rows)
            self.scatter[block].baddbmm_(bridge[:, :, None], bridge[:, None])

    def merge(self, other: Moments) -> None:
        """Become the moments of both parts together."""
        for block in blocks(self.cells):
            bridge = self._meet(block, other.count[block], other.mean[block])
            self.scatter[block] += other.scatter[block]
            self.scatter[block].baddbmm_(bridge[:, :, None], bridge[:, None])

    def _meet(self, block: slice, count: Tensor, mean: Tensor) -> Tensor:
        """Move count and mean; return the vector whose square joins the scatters of both parts."""
        both = self.count[block] + count
        share = count / both.clamp_min(1)
        delta = mean - self.mean[block]
        bridge = (self.count[block] * share).sqrt()[:, None] * delta
        self.mean[block] += share[:, None] * delta
        self.count[block] = both
        return bridge

    def covariance(self, block: slice, epsilon: float, *, without: int = 0) -> Tensor:
        """(b, D, D) float64: scatter / (n - 1 - without) + epsilon I, PaDiM's equation 1.

        `without` images fewer count in the divisor, at least 1 does.
        """
        return _covariance(self.scatter[block], self.count[block] - 1 - without, epsilon)


def _covariance(scatter: Tensor, divisor: Tensor, epsilon: float) -> Tensor:
    covariance = scatter / divisor.clamp_min(1)[:, None, None]
    covariance.diagonal(dim1=1, dim2=2).add_(epsilon)
    return covariance


def _centred(x: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors (n, b, D) and which of them count (n, b) -> what they differ by from their mean
    (b, n, D) float64, 0 where they do not count; how many count (b,); the mean (b, D)."""
    rows = x.transpose(0, 1).to(torch.float64, copy=True)
    if inside is None:
        count = torch.full((len(rows),), float(len(x)), dtype=torch.float64)
        mean = rows.mean(dim=1)
        return rows.sub_(mean[:, None]), count, mean
    weight = inside.T.double()  # (b, n)
    count = weight.sum(dim=1)
    mean = (weight[:, None] @ rows)[:, 0] / count.clamp_min(1)[:, None]
    return rows.sub_(mean[:, None]).mul_(weight[:, :, None]), count, mean


def blocks(cells: int) -> Iterator[slice]:
    """The cells in slices of at most `CELLS`."""
    for first in range(0, cells, CELLS):
        yield slice(first, min(first + CELLS, cells))


def whitening(covariance: Tensor) -> Tensor:
    """(b, D, D) covariances -> lower triangular F with F^T F the inverse of each.

    By Cholesky and a triangular solve: no inverse is formed, and |F (x - mean)| is Mahalanobis'
    distance without anything that could cancel.
    """
    factor: Tensor = torch.linalg.cholesky(covariance)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype).expand_as(factor)
    solved: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return solved.tril_()


def mahalanobis(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """x (B, P, D), mean (P, D), factor (P, D, D) of `whitening` -> (B, P) distances.

    sqrt((x - mean)^T covariance^-1 (x - mean)), PaDiM's equation 2, as one batched product.
    """
    centred = (x - mean).permute(1, 2, 0)  # (P, D, B)
    white = torch.bmm(factor, centred)
    return white.square().sum(dim=1).sqrt().T


def leave_one_out(moments: Moments, x: Tensor, lower: Tensor) -> Tensor:
    """(n, P) float64 distances of vectors x (n, P, D) that are among `moments`, each to the
    Gaussians of all other images.

    `lower` (P, D, D) is `left_out_cholesky(moments, epsilon, 1)`. With v = x - mean, leaving x out
    moves the mean to mean - v / (n - 1) and takes n / (n - 1) v v^T from the scatter, so by Sherman
    and Morrison, with q = |lower^-1 v|^2,

        distance^2 = (n / (n - 1))^2 q / (1 - n / ((n - 1) (n - 2)) q).

    Exact: the same as learning again without x. A cell that no other image shows has no distance
    (0).
    """
    distances = torch.empty(x.shape[:2], dtype=torch.float64)
    for block in blocks(moments.cells):
        rows = x[:, block].transpose(0, 1).double() - moments.mean[block][:, None]  # (b, n, D)
        distances[:, block] = _left_out(rows, moments.count[block], lower[block])
    return distances


def _left_out(rows: Tensor, n: Tensor, lower: Tensor) -> Tensor:
    """The formula of `leave_one_out` for rows (b, m, D) of x - mean: (m, b)."""
    white = torch.linalg.solve_triangular(lower, rows.mT, upper=False)  # (b, D, m)
    q = torch.linalg.vecdot(white, white, dim=1)
    grow = (n / (n - 1).clamp_min(1))[:, None]
    left = 1 - grow / (n - 2).clamp_min(1)[:, None] * q
    distances = grow * (q / left.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    found: Tensor = distances.masked_fill((n < 2)[:, None], 0.0)
    return found.T


def leave_group_out(
    moments: Moments, x: Tensor, inside: Tensor, lowers: dict[int, Tensor]
) -> Tensor:
    """As `leave_one_out`, for the images (g, P, D) of one group, left out all at once.

    `inside` (g, P) says which of them are among the moments of a cell; `lowers` holds
    `left_out_cholesky(moments, epsilon, k)` for every number k of them that occurs at a cell. With
    V the k rows x - mean, K = I + 1 1^T / (n - k) and nu = n - k - 1, the scatter without them is
    S - V^T K V, and Woodbury's identity leaves systems of k unknowns.
    """
    g = len(x)
    distances = torch.zeros(x.shape[:2], dtype=torch.float64)
    eye, ones = torch.eye(g, dtype=torch.float64), torch.ones(g, g, dtype=torch.float64)
    for block in blocks(moments.cells):
        weight = inside[:, block].T.double()  # (b, g)
        k, n = weight.sum(dim=1), moments.count[block]
        rows = x[:, block].transpose(0, 1).double() - moments.mean[block][:, None]
        rows *= weight[:, :, None]
        among = weight[:, :, None] * weight[:, None]  # (b, g, g)
        for number, lower in lowers.items():
            white = torch.linalg.solve_triangular(lower[block], rows.mT, upper=False)
            gram = torch.bmm(white.mT, white)  # (b, g, g)
            others = (n - number).clamp_min(1)[:, None, None]
            nu = (n - number - 1).clamp_min(1)[:, None, None]
            # The square root of K, which acts on all ones alone: (1 + c k)^2 = 1 + k / (n - k).
            root = among * (eye + ((1 + number / others).sqrt() - 1) / number * ones)
            inner = nu * eye - root @ gram @ root
            step = eye + ones / others  # x - mean of the others = step applied to the rows
            cross = root @ gram @ step
            square = (step @ gram @ step + cross.mT @ torch.linalg.solve(inner, cross)).diagonal(
                dim1=1, dim2=2
            )
            counts = ((k == number) & (n > number))[:, None] & (weight > 0)
            found = torch.where(counts, square.clamp_min(0).sqrt(), 0.0)
            distances[:, block] += found.T
    return distances


def left_out_cholesky(moments: Moments, epsilon: float, number: int) -> Tensor:
    """(P, D, D) float64 Cholesky factors of scatter / (n - 1 - number) + epsilon I: the common part
    of what leaving out `number` images needs."""
    lower = torch.empty_like(moments.scatter)

    def work(block: slice) -> None:
        covariance = moments.covariance(block, epsilon, without=number)
        lower[block] = torch.linalg.cholesky(covariance)

    _on_all_cores(work, moments.cells)
    return lower


def whiten(moments: Moments, epsilon: float) -> Tensor:
    """(P, D, D) float32 `whitening` of every cell's covariance, made in float64."""
    factor = torch.empty(moments.scatter.shape)

    def work(block: slice) -> None:
        factor[block] = whitening(moments.covariance(block, epsilon))

    _on_all_cores(work, moments.cells)
    return factor


def learn_at_once(
    x: Tensor, inside: Tensor | None, epsilon: float
) -> tuple[Moments, Tensor, Tensor]:
    """Everything about vectors (n, P, D) that lie in memory, cell by cell, so that scatters and
    factors of all cells never exist at once.

    `inside` is (n, P) bool or None. Returns the moments without their scatter; the `whitening`
    (P, D, D) float32; and (n, P) float32, the distances that leaving out each image gives, 0 where
    it is not inside.
    """
    n, P, D = x.shape
    found = Moments(P, D, with_scatter=False)
    factor, left_out = torch.empty(P, D, D), torch.empty(n, P)

    def work(block: slice) -> None:
        mask = None if inside is None else inside[:, block]
        rows, count, mean = _centred(x[:, block], mask)
        scatter = torch.bmm(rows.mT, rows)
        factor[block] = whitening(_covariance(scatter, count - 1, epsilon))
        lower = torch.linalg.cholesky(_covariance(scatter, count - 2, epsilon))
        distances = _left_out(rows, count, lower)
        left_out[:, block] = distances if mask is None else distances.where(mask, 0.0)
        found.count[block], found.mean[block] = count, mean

    _on_all_cores(work, P)
    return found, factor, left_out


def _on_all_cores(work: Callable[[slice], None], cells: int) -> None:
    """LAPACK works on one small matrix after another, so each core gets cells of its own."""
    with ImageWorkers() as workers:
        workers.map(work, blocks(cells))
