"""What methods with flows learn from: features of images, and which of their cells are normal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.learning.held_out import HeldOut, parted, score_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.training_images import TaughtImages
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.flow_levels import features_of
from amiss.nn.roi import roi_cells
from amiss.run import Run
from amiss.training import require_device
from amiss.types import Int64, Prediction, Record

NORMAL_CELL, ANOMALOUS_CELL, LEFT_OUT = 0, 1, -1


class Parts(NamedTuple):
    """The images to train on, and the numbers of a fifth of all that set the threshold."""

    data: TaughtImages
    images: Normals
    apart: Int64

    def judged_by(
        self, model: Callable[[Tensor, Tensor | None], Prediction[Tensor]], run: Run
    ) -> HeldOut:
        """What the images held apart score, one by one."""
        told = told_held_out(self.apart, self.images)
        return score_held_out(model, self.images, self.apart, run, told)


def split(images: Normals, extractor: FeatureExtractor, run: Run) -> Parts:
    """Hold a fifth apart, and compute the features of the others where there is room for them.

    Raises:
        OptionError: the run's device is not there.
        DataError: too few images to hold some apart.
    """
    require_device(run)
    mine, apart = parted(images, run.seed)
    data = TaughtImages(images, mine, run, lambda x: features_of(extractor, x), on_disk=True)
    return Parts(data, images, apart)


class FlowBatch(NamedTuple):
    """What a step learns from: features (b, h * w, C) of each level that are kept, or None; further
    images (k, 3, H, W) uint8 whose features are not; labels of all pixels (b + k, H, W) int8;
    regions of interest (b + k, H, W) bool, or None for everywhere."""

    kept: tuple[Tensor, ...] | None
    images: Tensor
    labels: Tensor
    rois: Tensor | None


class NormalFeatures:
    """The features of normal images, kept where there is room."""

    def __init__(self, images: TaughtImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def records(self) -> list[Record]:
        return self.images.records

    def reading(self) -> dict[str, str]:
        return self.images.reading()

    def at(self, places: Int64) -> FlowBatch:
        """Those at places (b,)."""
        found = self.images.at(places)
        labels = torch.full(found.images[:, 0].shape, NORMAL_CELL, dtype=torch.int8)
        if found.targets is None:
            return FlowBatch(None, found.images, labels, found.rois)
        return FlowBatch(found.targets, found.images[:0], labels, found.rois)


def on_grid(
    labels: Tensor, grid: tuple[int, int], rois: Tensor | None = None, *, touched: bool = False
) -> Tensor:
    """Labels of pixels (B, H, W) -> of the cells (B, h * w), each that of the nearest pixel; cells
    outside of `rois` (B, H, W) are left out, just those that are not judged.

    touched: a normal cell with an anomalous pixel in it is anomalous, and one beside such a cell is
    left out. Features of both have seen the defect; to call them normal would teach that it is.
    What was left out already, as around a proposed place, stays so: such places are ragged, and
    widened they would be everywhere.
    """
    (H, W), (h, w) = labels.shape[1:], grid
    rows = torch.arange(h, device=labels.device) * H // h
    columns = torch.arange(w, device=labels.device) * W // w
    found = labels[:, rows][:, :, columns].flatten(1)
    if touched:
        share = F.adaptive_max_pool2d((labels == ANOMALOUS_CELL).float()[:, None], grid)
        beside = F.max_pool2d(share, 3, stride=1, padding=1)
        is_normal = found == NORMAL_CELL
        found = found.masked_fill(is_normal & (beside.flatten(1) > 0), LEFT_OUT)
        found = found.masked_fill(is_normal & (share.flatten(1) > 0), ANOMALOUS_CELL)
    return found if rois is None else found.masked_fill(~roi_cells(rois, grid), LEFT_OUT)
