"""Parts of methods that judge an image by what an autoencoder makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amiss.learning.adversarial import adam
from amiss.learning.settling import settle_on_images
from amiss.learning.trained import TrainedConfig
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.nn.memory_module import entropy
from amiss.nn.roi import inside
from amiss.options import option
from amiss.run import Run
from amiss.training import History, Loop, Losses, Player, train

FLIPS = ("none", "horizontal", "vertical", "both")

WATCHED = 4
"""Batches that a finished memory is watched on."""

LossOf = Callable[[nn.Module, Tensor, Tensor | None], dict[str, Tensor]]
"""(network to call, x (B, C, H, W), regions (B, H, W) or None) -> losses by name, `loss` the one
that is descended."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(TrainedConfig):
    """Options of all methods whose networks make images again."""

    width: int = option(32, "channels of the first scale", low=2, high=512)
    epochs: int = option(
        200, "passes over the training images, each of whole batches", low=1, high=100_000
    )
    batch_size: int = option(8, "images of a step", low=2, high=4096)
    learning_rate: float = option(1e-4, "of Adam", low=1e-7, high=1)
    flips: str = option(
        "none",
        "mirror training images at random, where a mirrored image is a normal one: horizontal "
        "(left and right), vertical, both, or none",
        choices=FLIPS,
    )

    @property
    def rate(self) -> float:
        """Of Adam."""
        return self.learning_rate


def flipped(batch: ImageBatch, flips: str) -> ImageBatch:
    """Images, and their regions with them, mirrored or not by chance, each by itself."""
    images, rois = batch
    for name, dim in (("horizontal", -1), ("vertical", -2)):
        if flips in (name, "both"):
            chosen = torch.rand(len(images), 1, 1, device=images.device) < 0.5
            images = torch.where(chosen[:, None], images.flip(dim), images)
            if rois is not None:
                rois = torch.where(chosen, rois.flip(dim), rois)
    return ImageBatch(images, rois)


def train_reconstructor(
    network: nn.Module, loss_of: LossOf, config: ReconstructionConfig, data: TrainingImages,
    run: Run, job: dict[str, Any],
) -> History:  # fmt: skip
    """Train one network by Adam on what `loss_of` says, then settle its batch norms."""

    def step(loop: Loop, batch: ImageBatch) -> Losses:
        batch = flipped(batch, config.flips)
        x = config.prepared(batch)
        losses = loss_of(loop.networks["network"], x, batch.rois)
        loop.backward(losses["loss"])
        loop.update("network")
        return {name: value.detach() for name, value in losses.items()}

    player = Player(network, adam(network, config.rate, (0.9, 0.999)))
    history = train(
        {"network": player}, data, step, epochs=config.epochs, batch_size=config.batch_size,
        run=run, job=job,
    )  # fmt: skip
    settle_on_images(network, data, config.prepared, config.batch_size, run)
    return history


def error_map(x: Tensor, made: Tensor, roi: Tensor | None) -> Tensor:
    """(x - xh)^2, the mean over the channels, 0 outside of the regions: (B, H, W)."""
    found: Tensor = (x - inside(made, roi)).float().square().mean(1)
    return found


def mean_inside(maps: Tensor, roi: Tensor | None) -> Tensor:
    """The mean of each map (B, H, W) over its region: (B,)."""
    if roi is None:
        return maps.mean((1, 2))
    return (maps * roi).sum((1, 2)) / roi.sum((1, 2)).clamp_min(1)


class Evenness:
    """The mean entropy of weights (K, N) that come in parts, as a share of log N: 0 where each
    query is answered by one item, 1 where all are by the mean of all items."""

    def __init__(self) -> None:
        self.total, self.count, self.most = 0.0, 0, 1.0

    def add(self, weights: Tensor) -> None:
        """Take in the weights of some queries."""
        self.total += float(entropy(weights.float()).sum())
        self.count += len(weights)
        self.most = math.log(max(2, weights.shape[1]))

    def share(self) -> float:
        """Of all so far."""
        return round(self.total / max(1, self.count) / self.most, 4)
