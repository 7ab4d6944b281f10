"""A memory that features are read out of: what the decoder gets is put together of its items alone.

Gong et al., "Memorizing Normality to Detect Anomaly: Memory-Augmented Deep Autoencoder for
Unsupervised Anomaly Detection", ICCV 2019; Hou et al., "Divide-and-Assemble: Learning Block-wise
Memory for Unsupervised Anomaly Detection", ICCV 2021.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amiss.errors import OptionError

_LEAST = 1e-12
SIMILARITIES = ("cosine", "dot")


class Read(NamedTuple):
    """What was read for queries (K, D): values (K, D), and the weights (K, N) of the items."""

    values: Tensor
    weights: Tensor


class Memory(nn.Module):
    """N items of D values each; a query is answered by a weighted sum of them.

    `w_i = softmax_i(s(q, m_i) / temperature)`, s the cosine of the angle between query and item, or
    their dot product. With `shrinkage` l > 0, weights of l or less become 0 and the others share 1
    among them (`shrunk`). Where no weight is above l, all stay as they were.

    Args:
        items: N.
        dim: D.
        similarity: "cosine" or "dot".
        temperature: above 0; below 1 the weights prefer the nearest items more.
        shrinkage: l, from 0 (none) to below 1.
    """

    def __init__(
        self,
        items: int,
        dim: int,
        *,
        similarity: str = "cosine",
        temperature: float = 1.0,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        self.similarity, self.temperature, self.shrinkage = similarity, temperature, shrinkage
        self.items = nn.Parameter(torch.empty(items, dim))
        nn.init.uniform_(self.items, -1 / math.sqrt(dim), 1 / math.sqrt(dim))

    def forward(self, queries: Tensor) -> Read:
        weights = self.weights(queries)
        return Read(weights @ self.items, weights)

    def weights(self, queries: Tensor) -> Tensor:
        """queries (K, D) -> weights (K, N), 0 or more, of sum 1."""
        found = self.unshrunk(queries)
        return shrunk(found, self.shrinkage) if self.shrinkage > 0 else found

    def unshrunk(self, queries: Tensor) -> Tensor:
        """The weights before any is shrunk."""
        # In float32 whatever the precision: a temperature divides what was rounded as well.
        with torch.autocast(queries.device.type, enabled=False):
            queries, items = queries.float(), self.items.float()
            likeness = queries @ items.T
            if self.similarity == "cosine":
                # Of the product, not of queries and items: neither is copied.
                lengths = queries.norm(dim=1)[:, None] * items.norm(dim=1)
                likeness = likeness / lengths.clamp_min(_LEAST)
            return (likeness / self.temperature).softmax(1)


def shrunk(weights: Tensor, limit: float) -> Tensor:
    """weights (K, N) without those of `limit` l or less, of sum 1 again; where none is above it, as
    they were.

    Gong et al., equations 5 and 6, `max(w - l, 0) w / (|w - l| + 1e-12)`, but for the 1e-12: it
    moves no weight by more than a rounding, and makes the slope just above l a million times 1.
    """
    kept = torch.where(weights > limit, weights, 0.0)
    total = kept.sum(1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(_LEAST), weights)


def emptied(weights: Tensor, limit: float) -> Tensor:
    """(K,) bool: the queries none of whose weights (K, N) is above `limit`."""
    return weights.amax(1) <= limit


def entropy(weights: Tensor) -> Tensor:
    """-sum_i w_i log(w_i + 1e-12) of each query: weights (K, N) -> (K,), 0 to log N."""
    return -(weights * (weights + _LEAST).log()).sum(1)


def division(rates: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(r_h, r_w, r_c) as a map of `shape` (C, H, W) can be cut: no side into more than it has.

    Raises OptionError where a rate does not divide its side.
    """
    channels, height, width = shape
    found = (min(rates[0], height), min(rates[1], width), min(rates[2], channels))
    if any(side % rate for rate, side in zip(found, (height, width, channels), strict=True)):
        raise OptionError(
            f"division={','.join(map(str, rates))} does not divide a map of {height} x {width} "
            f"cells and {channels} channels, which one of the scales has.",
            hint="Choose an image_size that is a power of two times the rates, such as 64x64 or "
            "256x256 for 8,8,1, or rates that divide each side at every scale.",
        )
    return found


class BlockMemory(nn.Module):
    """Divides maps into blocks, reads each out of one `Memory`, and assembles what was read.

    Args:
        shape: (C, H, W) of a map.
        rates: (r_h, r_w, r_c), into how many parts height, width and channels are cut.
        items: N; further keywords are those of `Memory`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        rates: tuple[int, int, int],
        items: int,
        *,
        similarity: str = "cosine",
        temperature: float = 1.0,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        self.rates = division(rates, shape)
        self.block = (
            shape[0] // self.rates[2], shape[1] // self.rates[0], shape[2] // self.rates[1],
        )  # fmt: skip
        self.memory = Memory(
            items, math.prod(self.block), similarity=similarity, temperature=temperature,
            shrinkage=shrinkage,
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Read:
        """maps (B, C, H, W) -> values (B, C, H, W), and weights (B Q, N) of their blocks."""
        values, weights = self.memory(self.divide(maps))
        return Read(self.assemble(values), weights)

    def divide(self, maps: Tensor) -> Tensor:
        """maps (B, C, H, W) -> blocks (B Q, D), by rows, columns and channels."""
        (rows, columns, groups), (c, h, w) = self.rates, self.block
        parts = maps.reshape(-1, groups, c, rows, h, columns, w)
        return parts.permute(0, 3, 5, 1, 2, 4, 6).reshape(-1, c * h * w)

    def assemble(self, blocks: Tensor) -> Tensor:
        """The reverse of `divide`, in the order that convolutions want."""
        (rows, columns, groups), (c, h, w) = self.rates, self.block
        parts = blocks.reshape(-1, rows, columns, groups, c, h, w)
        last = parts.permute(0, 1, 5, 2, 6, 3, 4).reshape(-1, rows * h, columns * w, groups * c)
        return last.permute(0, 3, 1, 2)
