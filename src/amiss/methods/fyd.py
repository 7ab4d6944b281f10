"""FYD: images and features are aligned before a Gaussian is learned at each cell.

Zheng et al., "Focus Your Distribution: Coarse-to-Fine Non-Contrastive Learning for Anomaly
Detection and Localization", ICME 2022, arXiv 2110.04538. There is no code of the authors, and not
all of the paper's settings are known to us: docs/methods/fyd.md says what is theirs and what ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.errors import DataError, OptionError, TrainingWarning
from amiss.learning.gaussian_learner import GaussianLearner
from amiss.learning.held_out import HeldOut, hold_out, score_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.alignment import AlignmentNetwork, move_back, move_mask
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.mahalanobis import GaussianGrid
from amiss.nn.roi import roi_cells
from amiss.options import Config, option
from amiss.run import Run, warn
from amiss.training import Loop, Losses, Player, require_device, train
from amiss.types import Int64, Prediction

_COLLAPSED = 0.5  # of the healthy spread of directions


@dataclass(frozen=True, kw_only=True)
class FYDConfig(Config):
    """Options of FYD."""

    backbone: str = option(DEFAULT_BACKBONE, "timm name of the network", paper="a ResNet")
    layers: tuple[str, ...] = option(
        ("4", "8", "16"), "strides or module names, shallow first", paper="stages 1, 2, 3"
    )
    weights: str = option("auto", "auto, hub, random, or a path to a weights file")
    normalization: str = option(
        "weights",
        "input statistics: those the weights were trained with, or ImageNet's",
        choices=("weights", "imagenet"),
    )
    align: str = option(
        "both",
        "what has a transformer: the image (ICA) and each stage (FCA), one of them, or none, for "
        "textures and symmetric objects without a pose of their own",
        choices=("both", "image", "features", "none"),
        paper="both",
    )
    max_degrees: float = option(20.0, "largest rotation of a transformer", low=0.1, high=180)
    max_shift: float = option(
        0.1, "largest translation of a transformer, share of height and width", low=0.001, high=0.5
    )
    feature_share: float = option(
        0.25, "of both bounds, for the transformers after the stages", low=0.01, high=1
    )
    ica_weight: float = option(1.0, "of the image-level loss beside the fine one", low=0, high=1e3)
    drift_weight: float = option(
        10.0, "of moving all images alike, which is of no use", low=0, high=1e4
    )
    head_dim: int = option(256, "channels of projector and predictor", low=8, high=4096)
    epochs: int = option(
        12,
        "passes over the training images, each of whole batches; 0 trains nothing",
        low=0,
        high=10_000,
    )
    batch_size: int = option(16, "images of a step", low=2, high=4096)
    parts: int = option(
        1, "parts that a batch is learned in, one after the other: less memory; K processes do the "
        "same as K parts", low=1, high=4096,
    )  # fmt: skip
    learning_rate: float = option(1e-3, "of Adam", low=1e-7, high=1)
    reduction: str = option(
        "random",
        "random: a random choice of channels for the Gaussians; none: all",
        choices=("random", "none"),
    )
    dim: int = option(100, "channels kept; all where there are fewer", low=1, high=65536)
    epsilon: float = option(0.01, "added to the diagonal of every covariance", low=1e-6, high=1e3)
    blur_sigma: float = option(
        4.0, "Gaussian blur of the map, in pixels of the input", low=0, high=64
    )


class FYD(Detector):
    """FYD: spatial transformers align images and features, then a Gaussian per cell.

    Options as in `FYDConfig`, same names and defaults.
    """

    id: ClassVar[str] = "fyd"
    paper: ClassVar[str] = "Zheng et al., ICME 2022, arXiv 2110.04538"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = FYDConfig
    config: FYDConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = FYDConfig.image_size,
        resize: str = FYDConfig.resize,
        backbone: str = FYDConfig.backbone,
        layers: tuple[str, ...] = FYDConfig.layers,
        weights: str = FYDConfig.weights,
        normalization: str = FYDConfig.normalization,
        align: str = FYDConfig.align,
        max_degrees: float = FYDConfig.max_degrees,
        max_shift: float = FYDConfig.max_shift,
        feature_share: float = FYDConfig.feature_share,
        ica_weight: float = FYDConfig.ica_weight,
        drift_weight: float = FYDConfig.drift_weight,
        head_dim: int = FYDConfig.head_dim,
        epochs: int = FYDConfig.epochs,
        batch_size: int = FYDConfig.batch_size,
        parts: int = FYDConfig.parts,
        learning_rate: float = FYDConfig.learning_rate,
        reduction: str = FYDConfig.reduction,
        dim: int = FYDConfig.dim,
        epsilon: float = FYDConfig.epsilon,
        blur_sigma: float = FYDConfig.blur_sigma,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(FYDConfig(**options))
        self.alignment: AlignmentNetwork | None = None
        self.channels: Tensor | None = None  # (d,) int64, which of the C channels are used
        self.gaussians: GaussianGrid | None = None
        self.facts: dict[str, Any] = {}
        self._upsamplers: dict[tuple[int, int], MapUpsampler] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cfg = self.config
        require_device(run)
        extractor = FeatureExtractor(
            cfg.backbone, cfg.layers, weights=cfg.weights,
            normalization=cfg.normalization, seed=run.seed,
        )  # fmt: skip
        if not extractor.facts["folded"]:
            raise OptionError(
                f"{cfg.backbone} is of a kind that cannot be taken apart after its stages.",
                hint="Choose a convolutional network such as resnet18.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.alignment = self._network(extractor)
        self._upsamplers = {}
        C = sum(extractor.channels)
        self.channels = None
        if cfg.reduction == "random" and cfg.dim < C:
            generator = torch.Generator().manual_seed(run.seed)
            self.channels = torch.randperm(C, generator=generator)[: cfg.dim].sort().values
        dim = C if self.channels is None else cfg.dim
        learner = GaussianLearner(
            self._features, self._score_unmoved, (dim, *self._grid()), cfg.epsilon, self._move_roi
        )
        if cfg.epochs == 0 or cfg.align == "none":  # nothing is trained: every image may be judged
            self.alignment.settle()
            self.gaussians, self.facts, held_out = learner.learn(images, run)
            return held_out
        apart = hold_out(images, run.seed)
        mine = np.setdiff1d(np.arange(len(images)), apart)
        if len(mine) < 2:
            raise DataError(
                f"{len(mine)} images cannot be aligned with one another.",
                hint="Give at least three normal images, or use padim.",
            )
        training = self._train(images, mine, run)
        self.gaussians = learner.learn_from(images, mine, run)
        height, width = self._grid()
        self.facts = {"images": len(mine), "cells": [height, width], "dim": dim, **training}
        self.eval()
        how = told_held_out(apart, images)
        return score_held_out(self.forward, images, apart, run, how)

    def _network(self, extractor: FeatureExtractor) -> AlignmentNetwork:
        cfg = self.config
        return AlignmentNetwork(
            extractor, image_level=cfg.align in ("both", "image"),
            feature_level=cfg.align in ("both", "features"), max_degrees=cfg.max_degrees,
            max_shift=cfg.max_shift, feature_share=cfg.feature_share, head_dim=cfg.head_dim,
            ica_weight=cfg.ica_weight, drift_weight=cfg.drift_weight,
        )  # fmt: skip

    def _train(self, images: Normals, numbers: Int64, run: Run) -> dict[str, Any]:
        """Coarse and fine alignment together; the facts of the training."""
        cfg, network = self.config, self.alignment
        assert network is not None
        learning = [p for p in network.parameters() if p.requires_grad]
        player = Player(network, torch.optim.Adam(learning, lr=cfg.learning_rate), clip_norm=1.0)

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            x = batch.images
            reported: dict[str, Tensor] = {}
            count = max(1, min(cfg.parts, len(x) // 2))
            parts = [x[i::count] for i in range(count)]  # as processes share a batch
            for part in parts:
                losses = loop.networks["network"](part)
                loop.backward(losses["loss"] / len(parts))
                for name, value in losses.items():
                    reported[name] = reported.get(name, 0.0) + value.detach() / len(parts)
            loop.update("network")
            return reported

        weights = network.extractor.facts["weights_sha256"]
        history = train(
            {"network": player}, TrainingImages(images, numbers, run), step, epochs=cfg.epochs,
            batch_size=cfg.batch_size, run=run,
            job=cfg.as_dict() | {"seed": run.seed, "weights_sha256": weights},
        )  # fmt: skip
        last = history.last()
        if last["spread"] < _COLLAPSED:
            warn(
                run,
                f"The fine alignment has collapsed: the projections spread by {last['spread']:.2f} "
                "of what is healthy. Lower learning_rate, or raise batch_size.",
                TrainingWarning,
            )
        network.settle()
        return history.facts()

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.gaussians is not None
        features, theta = self._aligned(images)
        return self._score(self.gaussians(features), theta, roi)

    def _features(self, images: Tensor) -> Tensor:
        return self._aligned(images)[0]

    def _aligned(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) uint8 -> (B, P, D), as PaDiM describes its cells, and where these lie in
        the input."""
        network = self.alignment
        assert network is not None
        if not network.is_moving:
            maps, theta = network.extractor(images), None  # the identity: nothing is interpolated
        else:
            maps, _, theta, _ = network.align(images)
        grid = maps[0].shape[2:]
        joined = torch.cat([F.interpolate(m, size=grid, mode="nearest") for m in maps], dim=1)
        if self.channels is not None:
            joined = joined[:, self.channels]
        return joined.flatten(2).transpose(1, 2).contiguous(), theta

    def _move_roi(self, images: Tensor, roi: Tensor) -> Tensor:
        return move_mask(roi, self._aligned(images)[1])

    def _score_unmoved(self, distances: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        return self._score(distances, None, roi)

    def _score(
        self, distances: Tensor, theta: Tensor | None, roi: Tensor | None
    ) -> Prediction[Tensor]:
        """distances (B, P) in the aligned frame, roi (B, H, W) bool in that of the input."""
        grid = self._grid()
        if grid not in self._upsamplers:  # a table: several threads may make it at once
            self._upsamplers[grid] = MapUpsampler(
                grid, self.image_size, self.config.blur_sigma, "bicubic"
            )
        upsample = self._upsamplers[grid]
        # Moved back first: the score comes from a place that the map shows.
        on_grid = move_back(distances.unflatten(1, grid), theta)
        if roi is None:
            return Prediction(on_grid.flatten(1).amax(dim=1), upsample(on_grid))
        cells = roi_cells(roi, grid).unflatten(1, grid)
        on_grid = on_grid * cells
        return Prediction(on_grid.flatten(1).amax(dim=1), upsample(on_grid, cells) * roi)

    def _grid(self) -> tuple[int, int]:
        """(h, w) of the first layer."""
        assert self.alignment is not None
        height, width = self.image_size
        stride = self.alignment.extractor.strides[0]
        return -(-height // stride), -(-width // stride)

    def summary(self) -> str:
        height, width = self.facts["cells"]
        return (
            f"Gaussians: {height} x {width} cells of {self.facts['dim']} dimensions from "
            f"{self.facts['images']} aligned images"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.gaussians is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.gaussians is not None and self.alignment is not None
        extractor = self.alignment.extractor
        tensors = {f"gaussians.{k}": v for k, v in self.gaussians.tensors().items()}
        tensors |= {f"backbone.{k}": v for k, v in extractor.network.state_dict().items()}
        tensors |= {f"alignment.{k}": v for k, v in self._transformers().items()}
        if self.channels is not None:
            tensors["channels"] = self.channels
        return {"backbone": extractor.facts_for_manifest(), "gaussians": self.facts}, tensors

    def _transformers(self) -> dict[str, Tensor]:
        """The weights that are of use after the training: not those of the heads."""
        assert self.alignment is not None
        return {
            k: v for k, v in self.alignment.state_dict().items()
            if k.startswith(("image_stn.", "feature_stns."))
        }  # fmt: skip

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        extractor = FeatureExtractor.from_manifest(facts["backbone"], under("backbone."))
        with torch.random.fork_rng(devices=[]):
            network = self._network(extractor)
        stored = under("alignment.")
        self.alignment = network
        missing = set(self._transformers()) ^ set(stored)
        if missing:
            raise KeyError(f"alignment.{min(missing)}")
        network.load_state_dict(stored, strict=False)
        network.settle()
        self.channels = tensors.get("channels")
        self.gaussians = GaussianGrid.from_tensors(under("gaussians."))
        self.facts = dict(facts["gaussians"])
        height, width = self._grid()
        if len(self.gaussians.mean) != height * width:
            raise KeyError(f"Gaussians for {height} x {width} cells")
