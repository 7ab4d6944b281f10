"""A grid of Gaussians as a module: distances of feature vectors, in float32, ready for export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amiss.memory.gaussians import Moments, blocks, mahalanobis, whiten


class GaussianGrid(nn.Module):
    """(B, P, D) feature vectors -> (B, P) Mahalanobis' distances to the Gaussian of each cell.

    `count` (P,) is the number of images that a cell was learned from; a cell without any has the
    distance 0, as nothing can be said of it.
    """

    def __init__(self, count: Tensor, mean: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.count: Tensor
        self.mean: Tensor
        self.factor: Tensor
        self.register_buffer("count", count)
        self.register_buffer("mean", mean)
        self.register_buffer("factor", factor)
        self.is_whole = bool((count > 0).all())

    @classmethod
    def from_moments(cls, moments: Moments, epsilon: float) -> GaussianGrid:
        """Whitened in float64, kept in float32."""
        return cls(moments.count.float(), moments.mean.float(), whiten(moments, epsilon))

    def moments(self, epsilon: float) -> Moments:
        """What it was made from, to float32's precision."""
        P, D = self.mean.shape
        found = Moments(P, D)
        found.count, found.mean = self.count.double(), self.mean.double()
        identity = torch.eye(D, dtype=torch.float64)
        for block in blocks(P):
            factor = self.factor[block].double()
            lower = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
            scatter = lower @ lower.mT
            scatter.diagonal(dim1=1, dim2=2).sub_(epsilon)
            found.scatter[block] = scatter * (found.count[block] - 1).clamp_min(1)[:, None, None]
        return found

    def forward(self, x: Tensor) -> Tensor:
        distances = mahalanobis(x, self.mean, self.factor)
        return distances if self.is_whole else distances * (self.count > 0)

    # --- storing ---------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` needs; of the factor only its lower triangle."""
        rows, columns = torch.tril_indices(*self.factor.shape[1:])
        packed = self.factor[:, rows, columns]
        return {"count": self.count, "mean": self.mean, "factor": packed}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> GaussianGrid:
        """The reverse of `tensors`; raises KeyError or ValueError where they do not fit."""
        count, mean, packed = tensors["count"], tensors["mean"], tensors["factor"]
        P, D = mean.shape
        if count.shape != (P,) or packed.shape != (P, D * (D + 1) // 2):
            raise ValueError(f"Gaussians of shapes {tuple(count.shape)}, {tuple(packed.shape)}")
        factor = torch.zeros(P, D, D)
        rows, columns = torch.tril_indices(D, D)
        factor[:, rows, columns] = packed
        return cls(count, mean, factor)
