"""MKD: a small network clones a large one on normal images; where it fails to, something is amiss.

Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee, "Multiresolution Knowledge Distillation for Anomaly
Detection", CVPR 2021, arXiv 2011.11108.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.errors import OptionError
from amiss.learning.held_out import HeldOut, parted, score_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.training_images import TaughtBatch, TaughtImages
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.cloner import Cloner
from amiss.nn.losses import direction_loss, value_loss
from amiss.nn.roi import roi_cells
from amiss.nn.saliency import grey_opening, guided_gradient, input_gradient, smooth_gradient
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import Loop, Losses, Player, require_device, train
from amiss.types import Prediction

_POOLINGS = ("2", "4", "8", "16", "32")  # strides of a VGG's
_ON_THE_SPOT = (
    "the map is a gradient, which is computed by running the networks backwards, and an exported "
    "graph runs forwards only"
)


@dataclass(frozen=True, kw_only=True)
class MKDConfig(Config):
    """Options of MKD."""

    image_size: tuple[int, int] = option(
        (128, 128), "height and width of the networks' input, in pixels", low=32, high=4096,
        paper="128x128",
    )  # fmt: skip
    backbone: str = option(DEFAULT_BACKBONE, "timm name of the source network", paper="vgg16")
    layers: tuple[str, ...] = option(
        ("4", "8", "16", "32"),
        "critical points: strides or module names, shallow first; of a VGG, poolings",
        paper="the last four poolings",
    )
    weights: str = option("auto", "auto, hub, random, or a path to a weights file")
    normalization: str = option(
        "weights",
        "input statistics: those the weights were trained with, ImageNet's, or none, which is "
        "levels in [0, 1]",
        choices=("weights", "imagenet", "none"),
        paper="none",
    )
    epochs: int = option(
        200, "passes over the training images, each of whole batches", low=1, high=100_000
    )
    batch_size: int = option(64, "images of a step", low=2, high=4096)
    learning_rate: float = option(1e-3, "of Adam", low=1e-7, high=1)
    value_weight: float = option(
        1.0, "of L_val; the authors' code: 0.5", low=0, high=1e6, paper="1"
    )
    direction_weight: float | None = option(
        None,
        "of L_dir; left out, both weigh the same on the untrained cloner; the authors' code: 1",
        low=0, high=1e6, paper="both weigh the same",
    )  # fmt: skip
    judged_points: int | None = option(
        None, "the deepest so many critical points judge; left out, all; the authors' code: 3",
        low=1, high=16, paper="all",
    )  # fmt: skip
    localization: str = option(
        "gradient",
        "what the map is: the gradient of the loss, its mean over noisy copies, or a guided one",
        choices=("gradient", "smoothgrad", "guided"),
        paper="gradient",
    )
    smooth_samples: int = option(50, "noisy copies of smoothgrad", low=1, high=10_000)
    smooth_noise: float = option(
        0.05, "their standard deviation, share of an image's range", low=1e-4, high=1
    )
    blur_sigma: float = option(
        4.0, "Gaussian blur of the map, in pixels of the input", low=0, high=64, paper="4"
    )
    opening: bool = option(True, "grey opening of the map, against specks", paper="yes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_weight == 0 and not self.direction_weight:
            raise OptionError(
                "value_weight=0 leaves no loss: a direction_weight that is left out is made to "
                "weigh as much.",
                hint="Give direction_weight=1 with it, for the direction alone.",
            )
        if self.localization != "smoothgrad":
            reason = f"localization is {self.localization}"
            self.refuse_unused(("smooth_samples", "smooth_noise"), reason)


class MKD(Detector):
    """MKD: the distance of a cloner from its source at several depths, in value and direction.

    Options as in `MKDConfig`, same names and defaults.
    """

    id: ClassVar[str] = "mkd"
    paper: ClassVar[str] = "Salehi et al., CVPR 2021, arXiv 2011.11108"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = _ON_THE_SPOT
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = MKDConfig
    config: MKDConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = MKDConfig.image_size,
        resize: str = MKDConfig.resize,
        backbone: str = MKDConfig.backbone,
        layers: tuple[str, ...] = MKDConfig.layers,
        weights: str = MKDConfig.weights,
        normalization: str = MKDConfig.normalization,
        epochs: int = MKDConfig.epochs,
        batch_size: int = MKDConfig.batch_size,
        learning_rate: float = MKDConfig.learning_rate,
        value_weight: float = MKDConfig.value_weight,
        direction_weight: float | None = MKDConfig.direction_weight,
        judged_points: int | None = MKDConfig.judged_points,
        localization: str = MKDConfig.localization,
        smooth_samples: int = MKDConfig.smooth_samples,
        smooth_noise: float = MKDConfig.smooth_noise,
        blur_sigma: float = MKDConfig.blur_sigma,
        opening: bool = MKDConfig.opening,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(MKDConfig(**options))
        self.extractor: FeatureExtractor | None = None  # the source
        self.cloner: Cloner | None = None
        self.facts: dict[str, Any] = {}
        self._blurs: dict[tuple[int, int], MapUpsampler] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cfg = self.config
        require_device(run)
        self.extractor = FeatureExtractor(
            cfg.backbone, self._points(), weights=cfg.weights,
            normalization=cfg.normalization, seed=run.seed,
        )  # fmt: skip
        self._require_judges(len(self.extractor.channels))
        mine, apart = parted(images, run.seed)
        data = TaughtImages(images, mine, run, self._source)
        self.cloner, shape = self._new_cloner(data, run)
        self.facts = {"images": len(mine), **shape, **self._train(data, run)}
        self.eval()
        how = told_held_out(apart, images)
        return score_held_out(self.forward, images, apart, run, how)

    def _points(self) -> tuple[str, ...]:
        """The critical points by the names that the source knows them under."""
        cfg = self.config
        if not self._pools():
            return cfg.layers
        strange = [x for x in cfg.layers if x.isdigit() and x not in _POOLINGS]
        if strange:
            raise OptionError(
                f"layers: {cfg.backbone} has no pooling of stride {strange[0]}.",
                hint=f"Choose some of {', '.join(_POOLINGS)}, shallow first.",
            )
        return tuple(str(int(x) // 2) if x.isdigit() else x for x in cfg.layers)

    def _pools(self) -> bool:
        """Whether critical points are poolings: the zoo hands out what goes into them."""
        return self.config.backbone.startswith("vgg")

    def _require_judges(self, points: int) -> None:
        wanted = self.config.judged_points
        if wanted is not None and wanted > points:
            raise OptionError(
                f"judged_points={wanted} of {points} critical points.",
                hint=f"Choose 1 to {points}, or name more layers.",
            )

    def _source(self, images: Tensor) -> tuple[Tensor, ...]:
        """The source's answers to levels (B, 3, H, W)."""
        assert self.extractor is not None
        said = self.extractor.at_once(images)
        return tuple(F.max_pool2d(y, 2, 2) if self._pools() else y for y in said)

    def _new_cloner(self, data: TaughtImages, run: Run) -> tuple[Cloner, dict[str, Any]]:
        """An untrained cloner that fits what the source says, and the facts that rebuild it."""
        assert self.extractor is not None
        first = data.at(np.arange(1))
        said = first.targets or self._source(first.images)
        H, W = self.image_size
        strides = []
        for name, y in zip(self.extractor.facts["layers"], said, strict=True):
            stride = 1 << round(np.log2(H / y.shape[2]))
            sizes = {_halved((H, W), stride, ceil) for ceil in (True, False)}
            if tuple(y.shape[2:]) not in sizes:
                raise OptionError(
                    f"Layer {name} answers with {y.shape[2]} x {y.shape[3]} cells for an image of "
                    f"{H} x {W}, which no halving leads to.",
                    hint="Make both sides of image_size multiples of 32.",
                )
            strides.append(stride)
        ceil = all(
            _halved((H, W), s, True) == tuple(y.shape[2:])
            for s, y in zip(strides, said, strict=True)
        )
        shape: dict[str, Any] = {
            "strides": strides,
            "channels": [int(y.shape[1]) for y in said],
            "signed": bool(min(float(y.min()) for y in said) < 0),
            "ceil": ceil,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            return Cloner(**shape), shape

    def _train(self, data: TaughtImages, run: Run) -> dict[str, Any]:
        cfg, cloner, extractor = self.config, self.cloner, self.extractor
        assert cloner is not None and extractor is not None
        weights = (cfg.value_weight, self._direction_weight(data))
        player = Player(cloner, torch.optim.Adam(cloner.parameters(), lr=cfg.learning_rate))

        def step(loop: Loop, batch: TaughtBatch) -> Losses:
            extractor.to(loop.fabric.device)
            with torch.no_grad():
                said = batch.targets or self._source(batch.images)
                x = extractor.normalised(batch.images)
            cloned = loop.networks["cloner"](x)
            value, direction = _terms(said, cloned, batch.rois)
            loss = (weights[0] * value + weights[1] * direction).mean()
            loop.backward(loss)
            loop.update("cloner")
            return {
                "loss": loss.detach(),
                "value": value.detach().mean(),
                "direction": direction.detach().mean(),
            }

        history = train(
            {"cloner": player}, data, step, epochs=cfg.epochs, batch_size=cfg.batch_size, run=run,
            job=cfg.as_dict() | {
                "seed": run.seed, "weights_sha256": extractor.facts["weights_sha256"],
            },
        )  # fmt: skip
        extractor.cpu()
        cloner.requires_grad_(False)
        return {"weights": list(weights), **history.facts()}

    def _direction_weight(self, data: TaughtImages) -> float:
        """lambda: given, or such that both terms are as large on the untrained cloner, over a batch
        of images, as it will begin to learn."""
        cfg, cloner, extractor = self.config, self.cloner, self.extractor
        if cfg.direction_weight is not None:
            return cfg.direction_weight
        assert cloner is not None and extractor is not None
        batch = data.at(np.arange(min(len(data), cfg.batch_size)))
        kept = {k: v.clone() for k, v in cloner.state_dict().items()}
        cloner.train()  # batch norm by the batch, as in the first step
        with torch.no_grad():
            said = batch.targets or self._source(batch.images)
            value, direction = _terms(said, cloner(extractor.normalised(batch.images)), batch.rois)
        cloner.load_state_dict(kept)
        return float(cfg.value_weight * value.mean() / direction.mean().clamp_min(1e-12))

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        cfg = self.config
        scores, maps = [], []
        # One by one: no score depends on batch-mates in its last bit.
        parts = images.split(1)
        rois = [None] * len(parts) if roi is None else roi.split(1)
        for image, inside in zip(parts, rois, strict=True):
            score, gradient = self._loss_and_gradient(image, inside)
            scores.append(score)
            maps.append(gradient.abs().sum(1))
        on_pixels = torch.cat(maps)
        size = self.image_size
        if size not in self._blurs:  # a table: several threads may make it at once
            self._blurs[size] = MapUpsampler(size, size, cfg.blur_sigma)
        smooth = self._blurs[size](on_pixels, roi)
        if cfg.opening:
            smooth = grey_opening(smooth, roi)
        return Prediction(torch.cat(scores), smooth if roi is None else smooth * roi)

    def _loss_and_gradient(self, images: Tensor, roi: Tensor | None) -> tuple[Tensor, Tensor]:
        """L_total of each image (B,) and its gradient by levels in [0, 1], (B, 3, H, W)."""
        cfg = self.config
        x = images.to(torch.float32)

        def loss_of(levels: Tensor) -> Tensor:
            return self.total_loss(levels, roi)

        if cfg.localization == "smoothgrad":
            loss, gradient = smooth_gradient(
                loss_of, x, samples=cfg.smooth_samples, noise=cfg.smooth_noise, seed=0
            )
        elif cfg.localization == "guided":
            loss, gradient = guided_gradient(loss_of, x)
        else:
            loss, gradient = input_gradient(loss_of, x)
        return loss, gradient * 255

    def total_loss(self, levels: Tensor, roi: Tensor | None = None) -> Tensor:
        """L_total = L_val + lambda L_dir of each image: levels (B, 3, H, W) 0 to 255 -> (B,)."""
        extractor, cloner = self.extractor, self.cloner
        assert extractor is not None and cloner is not None
        said = self._source(levels)
        cloned = cloner(extractor.normalised(levels))
        count = self.config.judged_points or len(said)
        value, direction = _terms(said[-count:], cloned[-count:], roi)
        weights = self.facts["weights"]
        total: Tensor = weights[0] * value + weights[1] * direction
        return total

    def summary(self) -> str:
        assert self.cloner is not None and self.extractor is not None
        size = sum(p.numel() for p in self.cloner.parameters())
        return (
            f"cloner of {size:,} weights, of {self.extractor.facts['name']} at strides "
            f"{', '.join(map(str, self.facts['strides']))}, from {self.facts['images']} images"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.cloner is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.cloner is not None and self.extractor is not None
        network = self.extractor.network
        tensors = {f"backbone.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"cloner.{k}": v for k, v in self.cloner.state_dict().items()}
        return {"backbone": self.extractor.facts_for_manifest(), "cloner": self.facts}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.extractor = FeatureExtractor.from_manifest(facts["backbone"], under("backbone."))
        self.facts = dict(facts["cloner"])
        shape = {k: self.facts[k] for k in ("strides", "channels", "signed", "ceil")}
        with torch.random.fork_rng(devices=[]):
            cloner = Cloner(**shape)
        cloner.load_state_dict(under("cloner."))
        self.cloner = cloner.requires_grad_(False).eval()


def _terms(
    said: Sequence[Tensor], cloned: Sequence[Tensor], rois: Tensor | None
) -> tuple[Tensor, Tensor]:
    """L_val and L_dir (B,), each the sum over the critical points."""
    values, directions = [], []
    for source, clone in zip(said, cloned, strict=True):
        inside = None
        if rois is not None:
            grid = (source.shape[2], source.shape[3])
            inside = roi_cells(rois, grid).unflatten(1, grid)[:, None].float()
        values.append(value_loss(source, clone, inside))
        directions.append(direction_loss(source, clone, inside))
    return torch.stack(values).sum(0), torch.stack(directions).sum(0)


def _halved(size: tuple[int, int], stride: int, ceil: bool) -> tuple[int, int]:
    """Height and width after halving as often as `stride` says."""
    height, width = size
    return (
        (-(-height // stride), -(-width // stride)) if ceil else (height // stride, width // stride)
    )
