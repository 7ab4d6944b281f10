"""`MemoryBank`: the normal patch embeddings that a detector compares with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amiss.memory.approximate import LARGE_BANK, InvertedFile, build_inverted_file
from amiss.memory.neighbors import mutual_neighbors, nearest_rows
from amiss.run import Say


class MemoryBank(nn.Module):
    """Rows (N, D) float32, searched exactly unless an approximate `index` is set.

    Args:
        rows: (N, D) float32.
        num_neighbors: how many nearest bank rows are known for each row, itself included.
        origin: (N, 3) int32, the training image and the grid row and column of each row.
        neighborhoods: (N, num_neighbors) int64 as computed here before; None computes them.
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
        self.norms: Tensor
        self.origin: Tensor
        self.neighborhoods: Tensor
        self.register_buffer("rows", rows.contiguous())
        self.register_buffer("origin", origin)
        self.register_buffer("norms", rows.square().sum(1), persistent=False)
        count = min(num_neighbors, len(rows))
        if neighborhoods is None:
            neighborhoods = mutual_neighbors(self.rows, self.norms, count)
        self.register_buffer("neighborhoods", neighborhoods)
        self.index: InvertedFile | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, D) -> Euclidean distances (Q,) float32 to, and numbers (Q,) int64 of, the nearest
        rows."""
        if self.index is not None:
            return self.index.nearest(queries)
        return nearest_rows(queries, self.rows, self.norms)

    def choose_search(self, search: str, sample: Tensor, *, seed: int, say: Say) -> None:
        """Search "exact", "approximate", or "auto": approximate for a large bank.

        The approximate index is measured on `sample` (S, D) and says what it reached.
        """
        if search == "approximate" or (search == "auto" and len(self) >= LARGE_BANK):
            self.index, measured = build_inverted_file(self.rows, sample, seed=seed)
            say(measured.describe())

    def neighborhood(self, indices: Tensor) -> Tensor:
        """(B,) row numbers -> (B, b, D): the rows nearest to each, itself first (N_b(m*))."""
        return self.rows[self.neighborhoods[indices]]

    def tensors(self) -> dict[str, Tensor]:
        """What has to be stored."""
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
        neighborhoods = tensors["neighborhoods"].long()
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
