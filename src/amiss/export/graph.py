"""The form of a detector that leaves torch: uint8 images in, raw scores and maps out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amiss.export.resizing import resize_frames
from amiss.methods.base import Detector


class ExportedForm(nn.Module):
    """images (B, H, W, 3) uint8 RGB -> score (B,), and anomaly_map (B, h, w) where there is one.

    Images have the input size of the detector, or with `resizes` any size. With `takes_roi` there
    is a second input, roi (B, h, w) bool in the frame of the detector, True where to look. A region
    of interest that was given at the fit is part of the graph.
    """

    def __init__(self, detector: Detector, *, resizes: bool, takes_roi: bool) -> None:
        super().__init__()
        self.detector = detector
        self.resizes, self.takes_roi = resizes, takes_roi
        self.register_buffer("own_roi", detector.roi)
        self.own_roi: Tensor | None

    def forward(self, images: Tensor, roi: Tensor | None = None) -> tuple[Tensor, ...]:
        inside = None
        if self.resizes:
            config = self.detector.config
            frames, inside = resize_frames(images, config.image_size, config.resize_mode)
        else:
            frames = images.permute(0, 3, 1, 2)
        for mask in (inside, self.own_roi):
            if mask is not None:
                fixed = mask.expand(frames.shape[0], -1, -1)
                roi = fixed if roi is None else roi & fixed
        score, anomaly_map = self.detector(frames, roi)
        return (score,) if anomaly_map is None else (score, anomaly_map)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of the right kind to trace with."""
        height, width = self.detector.image_size
        if self.resizes:
            height, width = height + 3, width + 7
        generator = torch.Generator().manual_seed(0)
        shape = (batch, height, width, 3)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if not self.takes_roi:
            return (images,)
        return images, torch.ones((batch, *self.detector.image_size), dtype=torch.bool)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Which sizes of `example` are free."""
        batch = torch.export.Dim("batch", min=1, max=4096)
        images: dict[int, Any] = {0: batch}
        if self.resizes:
            images |= {n: torch.export.Dim(name, min=1, max=1 << 16)
                       for n, name in ((1, "height"), (2, "width"))}  # fmt: skip
        return (images, {0: batch}) if self.takes_roi else (images,)
