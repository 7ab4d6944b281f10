"""`KnownDefects`: the anomalous images that a method learns from beside the normal ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amiss.data.defects import Defect
from amiss.data.images import read_framed_mask
from amiss.data.stream import ImageStream
from amiss.types import Bool, Record, UInt8


class KnownDefects:
    """Anomalous images, read at once, in the frame of the network.

    `images` (A, H, W, 3) uint8; `rois` (A, H, W) bool; `masks`: of each image (H, W) bool, where
    its defect is, or None where nobody has said so yet; `is_proposed`: of which nobody had;
    `digests` (A, 8) uint8.

    Raises:
        ImageError: a file that cannot be read.
        DataError: a mask of another size than its image.
    """

    def __init__(self, stream: ImageStream) -> None:
        self.records: Sequence[Record] = stream.records
        batches = list(stream.batches(8))
        self.images: UInt8 = np.concatenate([b.images for b in batches])
        everywhere = np.ones(self.images.shape[1:3], np.bool_)
        self.rois: Bool = np.concatenate(
            [np.stack([everywhere] * len(b.images)) if b.rois is None else b.rois for b in batches]
        )
        self.digests: UInt8 = np.stack(
            [np.frombuffer(d, np.uint8) for b in batches for d in b.digests]
        )
        geometries = [g for b in batches for g in b.geometries]
        self.masks: list[Bool | None] = []
        for record, geometry in zip(self.records, geometries, strict=True):
            if record.mask is None:
                self.masks.append(None)
                continue
            small = read_framed_mask(record.mask, geometry, record.crop)
            # An empty mask says no more than none: the image is anomalous all the same.
            self.masks.append(small if small.any() else None)
        self.is_proposed = [mask is None for mask in self.masks]

    def propose(self, number: int, mask: Bool) -> None:
        """Take (H, W) for the place of a defect that nobody has said the place of."""
        self.masks[number] = mask

    def __len__(self) -> int:
        return len(self.images)

    def sources(self) -> list[Defect]:
        """Those whose place was given, to be pasted onto normal images: a proposed place may hold
        what is normal."""
        found = []
        for number, mask in enumerate(self.masks):
            if mask is not None and not self.is_proposed[number]:
                inside = mask & self.rois[number]
                if inside.any():
                    found.append(Defect(self.images[number], inside))
        return found
