"""How methods learn the likelihood of features by a normalizing flow on every level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amiss.learning.adversarial import adam
from amiss.learning.flow_data import NORMAL_CELL, FlowBatch, on_grid
from amiss.learning.processes import rank_and_size
from amiss.learning.spread import spread, sums
from amiss.learning.trained import drawn
from amiss.learning.training_images import Batches, TaughtImages
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.boundary import LIKELIHOODS, likelihood_losses
from amiss.nn.flow_levels import FlowLevels, features_of
from amiss.nn.roi import roi_cells
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import History, Loop, Losses, Player, steps_of, train

_WARMUP = 0.08  # of the training: 2 of the 25 meta epochs of the official code
_FIRST_RATE = 0.1  # of the learning rate, where the warm-up begins
_LAST_RATE = 1e-3  # of the learning rate, where the cosine ends
_TOGETHER = 16  # images whose likelihoods are computed at once

LevelLoss = Callable[[int, Tensor, Tensor], dict[str, Tensor]]
"""(level, log p / C (B, Q), labels (B, Q) int8) -> losses by name, `loss` the one descended."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig(Config):
    """Options of all methods with a flow on every level."""

    backbone: str = option(DEFAULT_BACKBONE, "timm name of the network", paper="tf_efficientnet_b6")
    layers: tuple[str, ...] = option(
        ("4", "8", "16"), "strides or module names, shallow first", paper="4, 8, 16"
    )
    weights: str = option("auto", "auto, hub, random, or a path to a weights file")
    normalization: str = option(
        "weights",
        "input statistics: those the weights were trained with, or ImageNet's",
        choices=("weights", "imagenet"),
    )
    blocks: int = option(8, "coupling blocks of each flow", low=1, high=64, paper="8")
    epochs: int = option(
        200, "passes over the training images, each of whole batches", low=1, high=100_000,
        paper="200",
    )  # fmt: skip
    batch_size: int = option(32, "images of a batch", low=2, high=4096, paper="32")
    vectors: int = option(
        4096, "of all images of a batch that one step of the optimizer sees; the authors' code: "
        "4096", low=16, high=1 << 20,
    )  # fmt: skip
    cell_share: float = option(
        1.0, "share of the cells, drawn anew for every batch, that are learned from; below 1 an "
        "epoch takes less time", low=0.001, high=1,
    )  # fmt: skip
    learning_rate: float = option(2e-4, "of Adam, at its largest", low=1e-7, high=1, paper="2e-4")
    standardize: bool = option(
        False, "begin with features of mean 0 and deviation 1 in every channel; the flow is as "
        "free as before, and learns much sooner",
    )  # fmt: skip
    likelihood: str = option(
        "nll",
        "L_ml: nll, -log p, or logsigmoid, -log sigmoid(log p) as in the authors' code; both per "
        "channel",
        choices=LIKELIHOODS,
    )

    @property
    def labels_touched(self) -> bool:
        """Whether all cells that a defect touches are anomalous; see `on_grid`."""
        return False

    def extractor(self, seed: int) -> FeatureExtractor:
        """The frozen network."""
        return FeatureExtractor(
            self.backbone, self.layers, weights=self.weights, normalization=self.normalization,
            seed=seed,
        )  # fmt: skip

    def flows(self, extractor: FeatureExtractor, seed: int) -> FlowLevels:
        """Untrained flows on its levels."""
        return drawn(lambda: FlowLevels(extractor, self.image_size, self.blocks), seed)

    def job(self, run: Run, extractor: FeatureExtractor) -> dict[str, Any]:
        """What the result of a training depends on."""
        return self.as_dict() | {
            "seed": run.seed, "weights_sha256": extractor.facts["weights_sha256"],
        }  # fmt: skip

    def rate(self, done: float) -> float:
        """The learning rate when `done` of the training, 0 to 1, is over: a cosine, into which a
        straight line leads."""
        low = _LAST_RATE * self.learning_rate

        def cosine(x: float) -> float:
            return low + (self.learning_rate - low) * (1 + math.cos(math.pi * x)) / 2

        if done >= _WARMUP:
            return cosine(done)
        first, reached = _FIRST_RATE * self.learning_rate, cosine(_WARMUP)
        return first + (reached - first) * done / _WARMUP


def normal_cells_loss(config: FlowConfig) -> LevelLoss:
    """L_ml, the mean over the normal vectors of a step."""

    def loss_of(level: int, log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
        del level
        return {"loss": mean_likelihood_loss(log_p, labels == NORMAL_CELL, config.likelihood)}

    return loss_of


def mean_likelihood_loss(
    log_p: Tensor, is_normal: Tensor, form: str, weights: Tensor | None = None
) -> Tensor:
    """The mean L_ml of the vectors that are normal, 0 where none is."""
    losses = likelihood_losses(log_p, form) * is_normal
    if weights is not None:
        losses = losses * weights
    return losses.sum() / is_normal.sum().clamp_min(1)


class Stretch(NamedTuple):
    """Epochs `first` to `last`, the latter not among them, of a training of `of` epochs."""

    first: int
    last: int
    of: int


def players_of(flows: FlowLevels, config: FlowConfig) -> dict[str, Player]:
    """Every flow with an optimizer of its own: one for all would go on moving those that wait."""
    levels = [flows.level(number) for number in range(len(flows))]
    return {
        f"flow_{number}": Player(level, adam(level, config.rate(0), (0.9, 0.999)))
        for number, level in enumerate(levels)
    }


def train_flows(  # noqa: PLR0913 - what learns, on what, by which loss, when, and the job
    flows: FlowLevels,
    extractor: FeatureExtractor,
    players: Mapping[str, Player],
    data: Batches[FlowBatch],
    loss_of: LevelLoss,
    *,
    config: FlowConfig,
    stretch: Stretch,
    batch_size: int,
    before_epoch: Callable[[], None] | None = None,
    run: Run,
    job: dict[str, Any],
    stage: str = "training",
) -> History:
    """Descend what `loss_of` says, level after level, in steps of `config.vectors` vectors.

    A step sees the cells of some places in all images of the batch: what the flows add for a place
    is computed once for all of them.
    """
    per_epoch = steps_of(len(data), 1, batch_size)

    def step(loop: Loop, batch: FlowBatch) -> Losses:
        epoch = stretch.first + loop.step / per_epoch
        if before_epoch is not None and loop.step % per_epoch == 0:
            before_epoch()
        for player in players.values():
            player.optimizer.param_groups[0]["lr"] = config.rate(epoch / stretch.of)
        features = _features(flows, extractor, batch, loop)
        told: dict[str, Tensor] = {}
        for number, name in enumerate(players):
            y = features[number]
            labels = on_grid(
                batch.labels, flows.grids[number], batch.rois, touched=config.labels_touched
            )  # fmt: skip
            parts = _parts(y, config)
            for places in parts:
                log_p = loop.networks[name](y[:, places], flows.code(number).to(y.device)[places])
                losses = loss_of(number, log_p.float(), labels[:, places])
                loop.backward(losses["loss"])
                loop.update(name)
                for key, value in losses.items():
                    told[key] = told.get(key, torch.zeros(())) + value.detach() / len(parts)
        return {key: total / len(players) for key, total in told.items()}

    return train(
        players, data, step, epochs=stretch.last - stretch.first, batch_size=batch_size, run=run,
        job=job, stage=stage,
    )  # fmt: skip


def _features(
    flows: FlowLevels, extractor: FeatureExtractor, batch: FlowBatch, loop: Loop
) -> list[Tensor]:
    """(B, h * w, C) of each level: the kept ones, then those that are computed now."""
    if not len(batch.images):
        assert batch.kept is not None
        return list(batch.kept)
    extractor.to(loop.fabric.device)
    with torch.no_grad():
        more = features_of(extractor, batch.images)
    if batch.kept is None:
        return list(more)
    return [torch.cat(pair) for pair in zip(batch.kept, more, strict=True)]


def _parts(y: Tensor, config: FlowConfig) -> tuple[Tensor, ...]:
    """The numbers of the cells of each step, drawn at random, about as many in each. What a step
    sees counts in all processes together."""
    B, P = len(y) * rank_and_size()[1], y.shape[1]
    chosen = torch.randperm(P, device=y.device)[: max(1, round(config.cell_share * P))]
    return chosen.tensor_split(max(1, round(B * len(chosen) / config.vectors)))


def normal_log_likelihoods(
    flows: FlowLevels, extractor: FeatureExtractor, images: TaughtImages, most: int
) -> list[Tensor]:
    """log p / C of about `most` vectors of normal images on each level, the same ones at every
    call; those outside of the regions of interest are left out."""
    n, numbers = len(images), range(len(flows))
    dice = [torch.Generator().manual_seed(number) for number in numbers]
    found: list[list[Tensor]] = [[] for _ in numbers]
    device = flows.level(0).ceiling.device
    with torch.no_grad():
        for start in range(0, n, _TOGETHER):
            batch = images.at(np.arange(start, min(n, start + _TOGETHER)))
            features = batch.targets or features_of(extractor.to(device), batch.images.to(device))
            for number in numbers:
                y, code = features[number], flows.code(number)
                each = min(len(code), max(1, most // n))
                places = torch.randperm(len(code), generator=dice[number])[:each]
                log_p = flows.level(number)(y[:, places].to(device), code[places].to(device)).cpu()
                if batch.rois is None:
                    found[number].append(log_p.flatten())
                else:
                    inside = roi_cells(batch.rois, flows.grids[number])[:, places]
                    found[number].append(log_p[inside])
    return [torch.cat(parts) for parts in found]


def _one_by_one(
    extractor: FeatureExtractor, images: TaughtImages
) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
    """The features of each image, (1, h * w, C) of each level, and its region or None."""
    for place in range(len(images)):
        batch = images.at(np.array([place]))
        yield batch.targets or features_of(extractor, batch.images), batch.rois


def standardize(flows: FlowLevels, extractor: FeatureExtractor, images: TaughtImages) -> None:
    """Take mean and deviation of every channel from the cells of the training images."""
    total: list[Tensor] = [torch.zeros(())] * len(flows)
    with torch.no_grad():
        for features, rois in _one_by_one(extractor, images):
            for number, (y, grid) in enumerate(zip(features, flows.grids, strict=True)):
                inside = None if rois is None else roi_cells(rois, grid)[0]
                total[number] = total[number] + sums(y[0].T.unflatten(1, grid), inside)
    for number, found in enumerate(total):
        level = flows.level(number)
        mean, deviation = spread(found).unbind(-1)
        level.mean.copy_(mean)
        level.deviation.copy_(deviation)


def finish(flows: FlowLevels, extractor: FeatureExtractor, images: TaughtImages) -> None:
    """After a training."""
    flows.cpu().eval().requires_grad_(False)
    take_ceilings(flows, extractor, images)


def take_ceilings(flows: FlowLevels, extractor: FeatureExtractor, images: TaughtImages) -> None:
    """Keep for each level the largest log-likelihood of the training images."""
    extractor.cpu()
    flows.forget_terms()
    highest = torch.full((len(flows),), -torch.inf)
    with torch.no_grad():
        for features, rois in _one_by_one(extractor, images):
            for level, log_p in enumerate(flows.log_likelihoods(features)):
                inside = log_p if rois is None else log_p[roi_cells(rois, flows.grids[level])]
                highest[level] = torch.maximum(highest[level], inside.max())
    for level in range(len(flows)):
        flows.level(level).ceiling.copy_(highest[level])


# --- storing -----------------------------------------------------------------------------------


def stored_flows(
    extractor: FeatureExtractor, flows: FlowLevels, facts: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """See `Detector.artifact`."""
    tensors = {f"backbone.{k}": v for k, v in extractor.network.state_dict().items()}
    tensors |= {f"flows.{k}": v for k, v in flows.state_dict().items()}
    return {"backbone": extractor.facts_for_manifest(), "learned": facts}, tensors


def restored_flows(
    config: FlowConfig, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[FeatureExtractor, FlowLevels, dict[str, Any]]:
    """The reverse of `stored_flows`."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    extractor = FeatureExtractor.from_manifest(facts["backbone"], under("backbone."))
    flows = config.flows(extractor, 0)
    flows.load_state_dict(under("flows."))
    return extractor, flows.requires_grad_(False).eval(), dict(facts["learned"])
