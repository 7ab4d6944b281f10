"""`MemoryBank`: the normal patch embeddings that a detector compares with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from amiss.memory.approximate import LARGE_BANK, InvertedFile, build_inverted_file
from amiss.memory.neighbors import Rows
from amiss.run import Say


class Bank(Protocol):
    """What scoring asks of a bank."""

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, D) -> distances (Q,) float32 to, and numbers (Q,) int64 of, the nearest rows."""

    def neighborhood(self, indices: Tensor) -> Tensor:
        """(B,) row numbers -> (B, b, D): the rows nearest to each, itself first."""


class MemoryBank(nn.Module):
    """Rows (N, D) float32, searched exactly unless an approximate `index` is set.

    Args:
        rows: (N, D) float32.
        num_neighbors: b, how many nearest bank rows form a row's neighbourhood, itself included.
        origin: (N, 3) int32, the training image and the grid row and column of each row.
        neighborhoods: (N, b) int64 table as made by `tabulate`; None finds them when asked for.
    """

    def __init__(
        self,
        rows: Tensor,
        *,
        num_neighbors: int,
        origin: Tensor,
        neighborhoods: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.rows: Tensor
        self.origin: Tensor
        self.neighborhoods: Tensor | None
        self.num_neighbors = min(num_neighbors, len(rows))
        self.register_buffer("rows", rows.contiguous())
        self.register_buffer("origin", origin)
        self.exact = Rows(self.rows)
        self.register_buffer("neighborhoods", neighborhoods)
        self.index: InvertedFile | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, D) -> Euclidean distances (Q,) float32 to, and numbers (Q,) int64 of, the nearest
        rows."""
        if self.index is not None:
            return self.index.nearest(queries)
        return self.exact.nearest(queries)

    def choose_search(self, search: str, sample: Tensor, *, seed: int, say: Say) -> None:
        """Search "exact", "approximate", or "auto": approximate for a large bank.

        The approximate index is measured on `sample` (S, D) and says what it reached.
        """
        if search == "approximate" or (search == "auto" and len(self) >= LARGE_BANK):
            self.index, measured = build_inverted_file(self.rows, sample, seed=seed)
            say(measured.describe())

    def tabulate(self) -> None:
        """Find the neighbourhood of every row once, so that a score only has to look it up."""
        every = torch.arange(len(self))
        self.neighborhoods = self.exact.neighborhoods(every, self.num_neighbors)

    def neighborhood(self, indices: Tensor) -> Tensor:
        """(B,) row numbers -> (B, b, D): the rows nearest to each, itself first (N_b(m*))."""
        if self.neighborhoods is None:
            return self.rows[self.exact.neighborhoods(indices, self.num_neighbors)]
        return self.rows[self.neighborhoods[indices]]

    def tensors(self) -> dict[str, Tensor]:
        """What has to be stored."""
        assert self.neighborhoods is not None
        stored = {
            "rows": self.rows,
            "origin": self.origin,
            "neighborhoods": self.neighborhoods.to(torch.int32),
        }
        if self.index is not None:
            stored["centroids"] = self.index.centroids
            stored["probes"] = torch.tensor([self.index.probes])
        return stored

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> MemoryBank:
        """Rebuild from `tensors`."""
        rows, origin = tensors["rows"], tensors["origin"]
        neighborhoods = tensors["neighborhoods"].long()
        N = len(rows)
        if rows.ndim != 2 or rows.dtype != torch.float32 or N == 0:
            raise ValueError(f"bank rows of shape {tuple(rows.shape)}, {rows.dtype}")
        if origin.shape != (N, 3) or origin.dtype != torch.int32 or bool((origin < 0).any()):
            raise ValueError(f"origins of shape {tuple(origin.shape)}, {origin.dtype}")
        if neighborhoods.ndim != 2 or len(neighborhoods) != N or neighborhoods.shape[1] == 0:
            raise ValueError(f"neighbourhoods of shape {tuple(neighborhoods.shape)}")
        if bool((neighborhoods < 0).any() or (neighborhoods >= N).any()):
            raise ValueError("neighbourhoods that point outside the bank")
        bank = cls(
            tensors["rows"],
            num_neighbors=neighborhoods.shape[1],
            origin=tensors["origin"],
            neighborhoods=neighborhoods,
        )
        if "centroids" in tensors:
            probes = int(tensors["probes"][0])
            bank.index = InvertedFile(bank.rows, centroids=tensors["centroids"], probes=probes)
        return bank
