"""`Gallery`: the feature maps of normal images, of which a few images at a time are searched.

The maps are kept as the network gave them, each layer at its own size; the vectors of an image, all
layers brought to the first grid and concatenated, are made when the image is searched. So memory
grows with the maps, not with the vectors, which take four times as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.memory.neighbors import Rows
from amiss.memory.pruning import LowerBounds, choose_directions
from amiss.types import Int64

_SAMPLE = 4  # images whose vectors the directions of the lower bounds are chosen from
_QUERIES = 1024  # queries compared with one image's vectors at once: 16 MiB of distances


def join_layers(maps: Sequence[Tensor]) -> Tensor:
    """(B, C_l, h_l, w_l) per layer, shallow first -> (B, h_0 w_0, sum of C_l), the deeper ones
    bilinearly at the cells of the first. With channels last in memory, the same bits always."""
    grid = maps[0].shape[2:]
    merged = [maps[0]] + [
        F.interpolate(m, size=grid, mode="bilinear", align_corners=False) for m in maps[1:]
    ]
    return torch.cat(merged, dim=1).permute(0, 2, 3, 1).flatten(1, 2).contiguous()


class Gallery:
    """`maps` is (N, h_l, w_l, C_l) per layer, float32 or float16. `inside` (N, P) bool says which
    cells of the first grid are looked at; None is all."""

    def __init__(self, maps: Sequence[Tensor], inside: Tensor | None = None) -> None:
        self.maps = list(maps)
        self.inside = inside
        self._center: Tensor | None = None
        self._directions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.maps[0])

    def image(self, number: int) -> list[Tensor]:
        """The maps (1, C_l, h_l, w_l) float32 of one image, channels last in memory."""
        return [m[number : number + 1].float().permute(0, 3, 1, 2) for m in self.maps]

    def vectors(self, image: int, layer: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The vectors (P', D) of one image that are looked at, and which cells they are, None for
        all; of all layers joined, or of one on its own grid."""
        maps = self.image(image)
        rows = join_layers(maps if layer is None else maps[layer : layer + 1])[0]
        if self.inside is None:
            return rows, None
        kept = self.inside[image]
        if layer:  # a cell of a deeper layer counts where any cell of the first over it does
            grids = [m.shape[1:3] for m in (self.maps[0], self.maps[layer])]
            kept = F.adaptive_max_pool2d(kept.float().view(1, *grids[0]), tuple(grids[1])) > 0
        cells = kept.flatten().nonzero()[:, 0]
        return rows[cells], cells

    def nearest(
        self, queries: Tensor, images: Int64, layer: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances (Q,) of queries (Q, D) to the nearest vector of any of `images`, the
        image that has it and its cell, (Q,) int64 each. Exact.

        Images that come first should be those most alike: what they leave is the upper bound that
        spares most of the comparisons with the others.
        """
        best = queries.new_full((len(queries),), torch.inf)
        at_image = torch.full((len(queries),), -1)
        at_cell = torch.full((len(queries),), -1)
        for image in images.tolist():
            rows, cells = self.vectors(image, layer)
            if not len(rows):
                continue
            bounds = self._bounds(rows) if layer is None else None
            for first in range(0, len(queries), _QUERIES):
                part = slice(first, first + _QUERIES)
                squared, row = _nearest_row(queries[part], rows, bounds, best[part])
                closer = (squared < best[part]).nonzero()[:, 0] + first
                row = row[closer - first]
                best[closer] = squared[closer - first]
                at_image[closer] = image
                at_cell[closer] = row if cells is None else cells[row]
        return best, at_image, at_cell

    def mean_of_nearest(
        self,
        queries: Tensor,
        images: Int64,
        count: int,
        layer: int | None = None,
        *,
        root: bool = False,
    ) -> Tensor:
        """The mean (Q,) of the squared distances of queries (Q, D) to the `count` nearest vectors
        of `images`, or to all of them where there are fewer; with `root`, of the distances.

        Which are nearest is found by a matrix product, their distances are then taken from the
        differences: a vector that equals the query is at exactly 0.
        """
        found: list[Tensor] = []
        room = (1 << 24) // (count * queries.shape[1])  # differences held at once: 64 MiB
        for block in queries.split(max(1, min(_QUERIES, room))):
            smallest = block.new_empty(len(block), 0)
            for image in images.tolist():
                rows, _ = self.vectors(image, layer)
                if not len(rows):
                    continue
                ranks = Rows(rows).ranks(block)
                near = ranks.topk(min(count, len(rows)), largest=False).indices
                squared = (block[:, None] - rows[near]).square_().sum(dim=2)
                smallest = torch.cat([smallest, squared], dim=1)
                smallest = smallest.topk(min(count, smallest.shape[1]), largest=False).values
            found.append((smallest.sqrt() if root else smallest).mean(dim=1))
        return torch.cat(found)

    def _bounds(self, rows: Tensor) -> LowerBounds | None:
        """Lower bounds for these rows, in directions that all images share."""
        if self._center is None:
            sample = torch.cat([self.vectors(i)[0] for i in range(min(_SAMPLE, len(self)))])
            center = sample.mean(0)
            self._directions = choose_directions(sample, center)
            self._center = center
        if self._directions is None or len(rows) < _QUERIES:
            return None
        return LowerBounds(rows, self._center, self._directions)


def _nearest_row(
    queries: Tensor, rows: Tensor, bounds: LowerBounds | None, at_most: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared distances (Q,) to, and numbers (Q,) of, the nearest rows, exact up to `at_most`."""
    found = None if bounds is None else bounds.nearest(queries, at_most)
    if found is not None:
        return found
    distances, row = Rows(rows).nearest_by_ranks(queries)
    return distances.square_(), row
