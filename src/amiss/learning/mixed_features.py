"""What a flow goes over once there are defects: normal images, known defects, and made ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amiss.data.defects import Generator
from amiss.learning.flow_data import (
    ANOMALOUS_CELL,
    LEFT_OUT,
    NORMAL_CELL,
    FlowBatch,
    NormalFeatures,
)
from amiss.learning.known_defects import KnownDefects
from amiss.learning.processes import rank_and_size
from amiss.learning.training_images import TaughtImages
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.flow_levels import FlowLevels, features_of
from amiss.types import Bool, Int64, Record, UInt8

_SAMPLED = 64  # normal images to cut patches from, or to compare with
_PIXELS = 1 << 14  # of each of them to compare with
# What is taken for a defect where nobody says: shares of normal pixels, and of the image.
_UNUSUAL, _LEAST, _MOST = 0.001, 0.002, 0.1


class MixedFeatures:
    """Batches of normal images, known defects and made ones, which are made anew for each batch.

    `share`: of the images of a batch, those with a defect; `made`: of these, those that `generator`
    makes of normal images. Without known defects all are made, without a generator none.
    """

    def __init__(
        self, images: TaughtImages, defects: KnownDefects | None, generator: Generator | None,
        extractor: FeatureExtractor, *, share: float, made: float,
    ) -> None:  # fmt: skip
        self.normals = NormalFeatures(images)
        self.defects, self.generator = defects, generator
        self.share = share
        self.made = 0.0 if generator is None else 1.0 if not defects else made
        self.known: tuple[Tensor, ...] | None = None
        if defects is not None:
            self.labels = torch.from_numpy(_labels(defects))
            self.rois = None if defects.rois.all() else torch.from_numpy(defects.rois)
            self.pictures = _tensor(defects.images)
            if images.kept is not None or images.half is not None:
                with torch.no_grad():
                    self.known = features_of(extractor, self.pictures)

    def __len__(self) -> int:
        return len(self.normals)

    @property
    def records(self) -> list[Record]:
        return [*self.normals.records, *(self.defects.records if self.defects else ())]

    def reading(self) -> dict[str, str]:
        return self.normals.reading()

    def normals_of(self, batch_size: int) -> int:
        """How many images of a batch are normal: of several processes, as many in each."""
        size = rank_and_size()[1]
        wanted = max(1, min(batch_size - 1, batch_size - round(self.share * batch_size)))
        return wanted if size == 1 else max(2 * size, wanted - wanted % size)

    def at(self, places: Int64) -> FlowBatch:
        """The normal images at places (b,), and defects by chance, in proportion."""
        kept, images, labels, rois = self.normals.at(places)
        count = max(1, round(len(places) * self.share / (1 - self.share)))
        is_made = torch.rand(count) < self.made
        all_labels, all_rois = [labels], [rois]
        number = int((~is_made).sum())
        if number:
            assert self.defects is not None
            chosen = torch.randint(len(self.defects), (number,))
            all_labels.append(self.labels[chosen])
            all_rois.append(None if self.rois is None else self.rois[chosen])
            if kept is not None and self.known is not None:
                kept = tuple(
                    torch.cat([a, b[chosen]]) for a, b in zip(kept, self.known, strict=True)
                )
            else:
                images = torch.cat([images, self.pictures[chosen]])
        if count > number:
            made, where, inside = self._make(count - number)
            images = torch.cat([images, made])
            all_labels.append(where)
            all_rois.append(inside)
        return FlowBatch(kept, images, torch.cat(all_labels), _joined(all_labels, all_rois))

    def _make(self, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (count, 3, H, W) uint8 with made defects, their labels (count, H, W), and the
        regions of interest or None."""
        assert self.generator is not None
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        normals = self.normals.images.at(torch.randint(len(self), (count,)).numpy())
        images, labels = [], []
        for number, levels in enumerate(normals.images):
            roi = None if normals.rois is None else normals.rois[number].numpy()
            ground = levels.permute(1, 2, 0).numpy()
            made = self.generator(without_surroundings(ground, roi), rng, roi)
            images.append(np.where(made.mask[:, :, None], made.image, ground))
            labels.append(np.where(made.mask, ANOMALOUS_CELL, NORMAL_CELL).astype(np.int8))
        return _tensor(np.stack(images)), torch.from_numpy(np.stack(labels)), normals.rois


def _joined(labels: Sequence[Tensor], rois: Sequence[Tensor | None]) -> Tensor | None:
    """The regions of all parts of a batch, or None where they are everywhere."""
    if all(roi is None for roi in rois):
        return None
    return torch.cat(
        [
            torch.ones_like(label, dtype=torch.bool) if roi is None else roi
            for label, roi in zip(labels, rois, strict=True)
        ]
    )


def without_surroundings(image: UInt8, roi: Bool | None) -> UInt8:
    """(H, W, 3) with what lies outside of the region (H, W) painted in its mean colour: defects are
    made of what is looked at alone."""
    if roi is None:
        return image
    mean = image[roi].mean(axis=0).round().astype(np.uint8)
    return np.where(roi[:, :, None], image, mean)


def patch_sources(images: TaughtImages) -> list[UInt8]:
    """Some normal images (H, W, 3), evenly spread, to cut patches from."""
    found = []
    for place in _spread(len(images)):
        batch = images.at(place[None])
        roi = None if batch.rois is None else batch.rois[0].numpy()
        found.append(without_surroundings(batch.images[0].permute(1, 2, 0).numpy(), roi))
    return found


def propose_masks(
    flows: FlowLevels, extractor: FeatureExtractor, defects: KnownDefects, images: TaughtImages
) -> None:
    """Say of the defects without a mask where they may be: what is less likely to the flows so far
    than all but a thousandth of the pixels of training images; of what is looked at at least a
    five-hundredth, as each image has a defect, and at most a tenth."""
    with torch.no_grad():
        usual = _usual_unlikeliness(flows, extractor, images)
        for number, mask in enumerate(defects.masks):
            if mask is not None:
                continue
            inside = defects.rois[number]
            picture = _tensor(defects.images[number : number + 1])
            roi = torch.from_numpy(inside)[None]
            found = flows.unlikeliness(features_of(extractor, picture), roi)
            height = np.where(inside, found[0].numpy(), -np.inf)
            lowest, highest = np.quantile(height[inside], [1 - _MOST, 1 - _LEAST])
            defects.propose(number, height >= np.clip(usual, lowest, highest))


def _usual_unlikeliness(
    flows: FlowLevels, extractor: FeatureExtractor, images: TaughtImages
) -> float:
    """What all but a thousandth of the pixels of some training images do not reach."""
    rng = np.random.default_rng(0)
    found = []
    for place in _spread(len(images)):
        batch = images.at(place[None])
        features = batch.targets or features_of(extractor, batch.images)
        map_ = flows.unlikeliness(features, batch.rois)
        inside = (map_ if batch.rois is None else map_[batch.rois]).flatten()
        found.append(rng.permutation(inside.numpy())[:_PIXELS])
    return float(np.quantile(np.concatenate(found), 1 - _UNUSUAL))


def _spread(n: int) -> Int64:
    """The numbers of some of n images, evenly spread."""
    return np.unique(np.linspace(0, n - 1, _SAMPLED).round().astype(np.int64))


def _labels(defects: KnownDefects) -> UInt8:
    """(A, H, W) int8: of a proposed mask, what lies outside is not called normal."""
    labels = []
    for mask, is_proposed in zip(defects.masks, defects.is_proposed, strict=True):
        assert mask is not None
        labels.append(np.where(mask, ANOMALOUS_CELL, LEFT_OUT if is_proposed else NORMAL_CELL))
    return np.stack(labels).astype(np.int8)


def _tensor(images: UInt8) -> Tensor:
    """(n, H, W, 3) -> (n, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
