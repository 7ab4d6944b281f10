"""A frozen network with a flow on every level of its features: likelihoods, and a map of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from amiss.nn.backbone import FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.flow import ConditionalFlow, position_code
from amiss.nn.roi import roi_cells
from amiss.types import Prediction

_CODE = 128  # channels of the code of a place


class FlowLevel(nn.Module):
    """The flow of one level, and what is known of the log-likelihoods of normal images there."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.flow = ConditionalFlow(channels, blocks=blocks, condition=_CODE)
        self.boundary: Tensor  # b_n, in the units of the losses
        self.ceiling: Tensor  # the largest log p / C of the training images
        self.mean: Tensor  # (C,) and
        self.deviation: Tensor  # (C,): what features are standardized by, or 0 and 1
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_buffer("boundary", torch.zeros(()))
        self.register_buffer("ceiling", torch.zeros(()))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """See `ConditionalFlow.forward`."""
        return self.from_terms(x, self.flow.place_terms(code))

    def from_terms(self, x: Tensor, terms: list[Tensor]) -> Tensor:
        """As `forward`, from what the codes add in the flow's blocks."""
        log_p = self.flow.from_terms((x - self.mean) / self.deviation, terms)
        return log_p - self.deviation.log().mean()


class FlowLevels(nn.Module):
    """The flows of all levels of `extractor`, for images of `size` (H, W).

    The state holds the flows alone; the frozen network is kept by whoever made it.
    """

    def __init__(self, extractor: FeatureExtractor, size: tuple[int, int], blocks: int) -> None:
        super().__init__()
        self.grids = [(-(-size[0] // s), -(-size[1] // s)) for s in extractor.strides]
        self.levels = nn.ModuleList(FlowLevel(C, blocks) for C in extractor.channels)
        for number, grid in enumerate(self.grids):
            code = position_code(grid, _CODE)
            self.register_buffer(f"code_{number}", code, persistent=False)
        # In tables: several threads may make them at once, and none of it is learned.
        self._upsamplers = {
            grid: MapUpsampler(grid, size, 0.0, "corners") for grid in set(self.grids)
        }
        self._terms: list[list[Tensor]] = []

    def __len__(self) -> int:
        return len(self.levels)

    def level(self, number: int) -> FlowLevel:
        """One of the levels, shallow first."""
        level = self.levels[number]
        assert isinstance(level, FlowLevel)
        return level

    def code(self, number: int) -> Tensor:
        """(h * w, P): the codes of the cells of a level."""
        code: Tensor = getattr(self, f"code_{number}")
        return code

    def summary(self, images: int) -> str:
        """One sentence on what was learned."""
        size = sum(w.numel() for w in self.parameters())
        grids = ", ".join(f"{h} x {w}" for h, w in self.grids)
        return f"flows of {size:,} weights over {grids} cells, from {images} images"

    def forget_terms(self) -> None:
        """The weights have changed since the last call of `log_likelihoods`."""
        self._terms = []

    def log_likelihoods(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features (B, h * w, C) of each level -> log p / C of every cell, (B, h * w) each."""
        numbers = range(len(self))
        if torch.compiler.is_compiling():
            terms = [self.level(i).flow.place_terms(self.code(i)) for i in numbers]
        else:  # the same for all images, and most of the arithmetic
            self._terms = self._terms or [
                [term.detach() for term in self.level(i).flow.place_terms(self.code(i))]
                for i in numbers
            ]
            terms = self._terms
        return [self.level(i).from_terms(features[i], terms[i]) for i in numbers]

    def judge(self, features: Sequence[Tensor], roi: Tensor | None) -> Prediction[Tensor]:
        """M = sum over the levels of the upsampled 1 - exp(log p / C - ceiling), whose maximum is
        the score. roi (B, H, W) bool or None."""
        below = self._below_ceiling(features)
        total = self._upsampled([1 - (-amount).exp() for amount in below], roi)
        if roi is None:
            return Prediction(total.flatten(1).amax(1), total)
        # The map may lie below 0, where an image is likelier than all of the training.
        score = total.masked_fill(~roi, -torch.inf).flatten(1).amax(1)
        return Prediction(score, total * roi)

    def unlikeliness(self, features: Sequence[Tensor], roi: Tensor | None) -> Tensor:
        """(B, H, W): the sum over the levels of the upsampled ceiling - log p / C, which has no end
        that much of an image could reach."""
        return self._upsampled(self._below_ceiling(features), roi)

    def _below_ceiling(self, features: Sequence[Tensor]) -> list[Tensor]:
        found = self.log_likelihoods(features)
        return [self.level(number).ceiling - log_p for number, log_p in enumerate(found)]

    def _upsampled(self, amounts: Sequence[Tensor], roi: Tensor | None) -> Tensor:
        """The sum of what the levels say (B, h * w) each, over the pixels (B, H, W)."""
        maps = []
        for amount, grid in zip(amounts, self.grids, strict=True):
            cells = None if roi is None else roi_cells(roi, grid).unflatten(1, grid)
            maps.append(self._upsamplers[grid](amount.unflatten(1, grid), cells))
        return torch.stack(maps).sum(0)


def features_of(extractor: FeatureExtractor, images: Tensor) -> tuple[Tensor, ...]:
    """(B, 3, H, W) uint8 -> the features of each level, (B, h * w, C), one image at a time."""
    return tuple(y.permute(0, 2, 3, 1).flatten(1, 2).contiguous() for y in extractor(images))
