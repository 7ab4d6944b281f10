"""PaDiM: Mahalanobis' distance of each cell's features to the Gaussian of that cell.

Defard, Setkov, Loesch, Audigier, "PaDiM: a Patch Distribution Modeling Framework for Anomaly
Detection and Localization", ICPR 2020 workshops, arXiv 2011.08785. What the paper leaves open, and
where the well-known code differs, is listed in docs/methods/padim.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.errors import OptionError
from amiss.learning.embedding import embedded
from amiss.learning.gaussian_learner import GaussianLearner
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals, fingerprint
from amiss.learning.processes import merged, share
from amiss.memory.gaussians import Moments
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.mahalanobis import GaussianGrid
from amiss.nn.roi import roi_cells
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction


@dataclass(frozen=True, kw_only=True)
class PaDiMConfig(Config):
    """Options of PaDiM."""

    backbone: str = option(
        DEFAULT_BACKBONE, "timm name of the network", paper="resnet18, wide_resnet50_2"
    )
    layers: tuple[str, ...] = option(
        ("4", "8", "16"), "strides or module names, shallow first", paper="layer1, layer2, layer3"
    )
    weights: str = option("auto", "auto, hub, random, or a path to a weights file")
    normalization: str = option(
        "weights",
        "input statistics: those the weights were trained with, or ImageNet's",
        choices=("weights", "imagenet"),
    )
    reduction: str = option(
        "random",
        "random: a random choice of channels; pca: principal components, which the paper shows to "
        "be worse; none: all channels",
        choices=("random", "pca", "none"),
        paper="random",
    )
    dim: int = option(
        100, "d: channels or components kept; all where there are fewer",
        low=1, high=65536, paper="100 for resnet18, 550 for wide_resnet50_2",
    )  # fmt: skip
    epsilon: float = option(
        0.01, "added to the diagonal of every covariance", low=1e-6, high=1e3, paper="0.01"
    )
    upsampling: str = option(
        "bicubic",
        "of the map: bicubic, or bilinear as in the well-known code",
        choices=("bicubic", "bilinear"),
        paper="bicubic",
    )
    blur_sigma: float = option(
        4.0, "Gaussian blur of the map, in pixels of the input", low=0, high=64, paper="4"
    )
    score_from: str = option(
        "grid",
        "the image score is the largest distance on the grid, or the largest value of the map, "
        "upsampled and blurred, as in the well-known code",
        choices=("grid", "map"),
        paper="the maximum of the anomaly map",
    )


class PaDiM(Detector):
    """PaDiM: a Gaussian per cell of the feature grid, Mahalanobis' distance as the score.

    Options as in `PaDiMConfig`, same names and defaults.
    """

    id: ClassVar[str] = "padim"
    paper: ClassVar[str] = "Defard et al., ICPR 2020 workshops, arXiv 2011.08785"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    config_type: ClassVar[type[Config]] = PaDiMConfig
    config: PaDiMConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = PaDiMConfig.image_size,
        resize: str = PaDiMConfig.resize,
        backbone: str = PaDiMConfig.backbone,
        layers: tuple[str, ...] = PaDiMConfig.layers,
        weights: str = PaDiMConfig.weights,
        normalization: str = PaDiMConfig.normalization,
        reduction: str = PaDiMConfig.reduction,
        dim: int = PaDiMConfig.dim,
        epsilon: float = PaDiMConfig.epsilon,
        upsampling: str = PaDiMConfig.upsampling,
        blur_sigma: float = PaDiMConfig.blur_sigma,
        score_from: str = PaDiMConfig.score_from,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(PaDiMConfig(**options))
        self.extractor: FeatureExtractor | None = None
        self.channels: Tensor | None = None  # (d,) int64, which of the C channels are used
        self.components: Tensor | None = None  # (C, d), the principal directions
        self.gaussians: GaussianGrid | None = None
        self.facts: dict[str, Any] = {}
        self._per_layer: list[Tensor] = []
        self._upsamplers: dict[tuple[int, int], MapUpsampler] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cfg = self.config
        self.extractor = FeatureExtractor(
            cfg.backbone, cfg.layers, weights=cfg.weights,
            normalization=cfg.normalization, seed=run.seed,
        )  # fmt: skip
        self.channels = self.components = None
        self._upsamplers = {}
        self._per_layer = []
        C = sum(self.extractor.channels)
        if cfg.reduction == "random" and cfg.dim < C:
            generator = torch.Generator().manual_seed(run.seed)
            self.channels = torch.randperm(C, generator=generator)[: cfg.dim].sort().values
        elif cfg.reduction == "pca" and cfg.dim < C:
            self.components = self._principal(images, run)
        dim = C if cfg.reduction == "none" else min(cfg.dim, C)
        learner = GaussianLearner(self._features, self._score, (dim, *self._grid()), cfg.epsilon)
        self.gaussians, self.facts, held_out = learner.learn(images, run)
        return held_out

    def _principal(self, images: Normals, run: Run) -> Tensor:
        """(C, d): the directions of largest variance over all cells of all images."""
        assert self.extractor is not None
        moments = Moments(1, sum(self.extractor.channels))
        for _, features, roi in embedded(
            self._features, images, share(len(images)), run, stage="components"
        ):
            inside = slice(None) if roi is None else roi_cells(roi, self._grid()).flatten()
            moments.add(features.flatten(0, 1)[inside, None])
        covariance = merged(moments).covariance(slice(0, 1), 0.0)[0]
        _, vectors = torch.linalg.eigh(covariance)  # ascending
        directions: Tensor = vectors[:, -self.config.dim :].flip(1).float()
        return directions.contiguous()

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.gaussians is not None
        return self._score(self.gaussians(self._features(images)), roi)

    def _features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, P, D): section III-A, deeper maps at the cells of the first.

        Each cell of a deeper map is repeated over the cells of the first map that it covers.
        """
        assert self.extractor is not None
        maps = self.extractor(images)
        grid = maps[0].shape[2:]
        if self.channels is not None:  # chosen before they are repeated: there is less to repeat
            self._per_layer = self._per_layer or self._split(self.channels)
            maps = [_chosen(m, c) for m, c in zip(maps, self._per_layer, strict=True) if len(c)]
        maps = [F.interpolate(m, size=grid, mode="nearest") for m in maps]
        x = torch.cat(maps, dim=1).permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # (B, P, C)
        return x if self.components is None else x @ self.components

    def _split(self, channels: Tensor) -> list[Tensor]:
        """For each layer the chosen ones of its own channels."""
        assert self.extractor is not None
        chosen, first = [], 0
        for size in self.extractor.channels:
            chosen.append(channels[(channels >= first) & (channels < first + size)] - first)
            first += size
        return chosen

    def _score(self, distances: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        """distances (B, P), roi (B, H, W) bool or None -> scores and maps."""
        cfg, grid = self.config, self._grid()
        # In a table, not as a module: several threads may make it at once.
        if grid not in self._upsamplers:
            self._upsamplers[grid] = MapUpsampler(
                grid, self.image_size, cfg.blur_sigma, cfg.upsampling
            )
        upsample = self._upsamplers[grid]
        cells = None if roi is None else roi_cells(roi, grid)
        looked_at = distances if cells is None else distances * cells
        score = looked_at.amax(dim=1)
        on_grid = looked_at.unflatten(1, grid)
        if cells is None:
            maps = upsample(on_grid)
        else:
            maps = upsample(on_grid, cells.unflatten(1, grid)) * roi
        if cfg.score_from == "map":
            score = maps.flatten(1).amax(dim=1)
        return Prediction(score, maps)

    def _grid(self) -> tuple[int, int]:
        """(h, w) of the first layer."""
        assert self.extractor is not None
        height, width = self.image_size
        stride = self.extractor.strides[0]
        return -(-height // stride), -(-width // stride)

    def summary(self) -> str:
        height, width = self.facts["cells"]
        return (
            f"Gaussians: {height} x {width} cells of {self.facts['dim']} dimensions from "
            f"{self.facts['images']} images"
        )

    # --- merging ---------------------------------------------------------------------------

    def merge(self, *others: Self) -> Self:
        """A detector that has learned from the images of all: the same, to float32's precision, as
        one fit over all of them with the same options and seed.

        What is kept in float32 is enough where the largest variance is at most some ten thousand
        times epsilon. It has no threshold, as no image of one part was held out from the others:
        `recalibrate(detector, normals=FOLDER)` of `amiss.recalibrate` sets one on other normal
        images, and so does `amiss calibrate FILE --normals FOLDER`.

        Raises:
            NotFittedError: one of them has learned nothing.
            OptionError: nothing, or no PaDiM, to merge with; other options, backbone weights,
                channels, region of interest or intensity window; images in common; or too small an
                epsilon.
        """
        strange = [type(part).__name__ for part in others if not isinstance(part, PaDiM)]
        if strange or not others:
            raise OptionError(
                f"PaDiM.merge was given {', '.join(strange) or 'nothing'}.",
                hint="Give other fitted PaDiM detectors: first.merge(second, third).",
            )
        for part in (self, *others):
            part.require_fitted()
        made = self.blank()
        made.extractor, made.channels, made.components = (
            self.extractor, self.channels, self.components,
        )  # fmt: skip
        made.training_digests = self.training_digests
        assert self.gaussians is not None
        moments = self.gaussians.moments(self.config.epsilon)
        for other in others:
            self._require_alike(other)
            seen = {bytes(row) for row in made.training_digests}
            if any(bytes(row) in seen for row in other.training_digests):
                raise OptionError(
                    "Some images were learned by more than one part, and would count twice.",
                    hint="Fit the parts on images of their own.",
                )
            made.training_digests = np.concatenate([made.training_digests, other.training_digests])
            assert other.gaussians is not None
            moments.merge(other.gaussians.moments(self.config.epsilon))
        try:
            made.gaussians = GaussianGrid.from_moments(moments, self.config.epsilon)
        except RuntimeError as error:  # LAPACK: no longer positive definite
            raise OptionError(
                f"epsilon={self.config.epsilon:g} is too small to merge what was kept in float32.",
                hint="Fit once over all images, or fit the parts with a larger epsilon.",
            ) from error
        parts = [self, *others]
        made.facts = self.facts | {"images": sum(part.facts["images"] for part in parts)}
        made.roi = self.roi
        facts = [part.training_facts for part in parts]
        made.training_facts = self.training_facts | {
            "name": " + ".join(str(f["name"]) for f in facts),
            "layout": "merged", "root": None, "files": [], "least_normal": [],
            "n_normal": len(made.training_digests),
            "fingerprint": fingerprint(made.training_digests),
            "notes": [], "fit_seconds": round(sum(f["fit_seconds"] for f in facts), 3),
            "merged": [f["fingerprint"] for f in facts],
        }  # fmt: skip
        return made

    def _require_alike(self, other: Self) -> None:
        assert self.extractor is not None and other.extractor is not None

        def same(a: Tensor | None, b: Tensor | None) -> bool:
            return (a is None and b is None) or (
                a is not None and b is not None and torch.equal(a, b)
            )

        if self.config != other.config:
            what = "options"
        elif self.extractor.facts["weights_sha256"] != other.extractor.facts["weights_sha256"]:
            what = "backbone weights"
        elif not same(self.channels, other.channels) or not same(self.components, other.components):
            what = "channels"
        elif not same(self.roi, other.roi):
            what = "region of interest"
        elif self.training_facts["window"] != other.training_facts["window"]:
            what = "intensity window"
        else:
            return
        raise OptionError(
            f"Only detectors with the same {what} can be merged.",
            hint="Fit the parts with the same options and seed; pca finds other components in "
            "other images, and cannot be merged.",
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.gaussians is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.gaussians is not None and self.extractor is not None
        tensors = {f"gaussians.{k}": v for k, v in self.gaussians.tensors().items()}
        tensors |= {f"backbone.{k}": v for k, v in self.extractor.network.state_dict().items()}
        if self.channels is not None:
            tensors["channels"] = self.channels
        if self.components is not None:
            tensors["components"] = self.components
        return {"backbone": self.extractor.facts_for_manifest(), "gaussians": self.facts}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.extractor = FeatureExtractor.from_manifest(facts["backbone"], under("backbone."))
        self.channels, self.components = tensors.get("channels"), tensors.get("components")
        self.gaussians = GaussianGrid.from_tensors(under("gaussians."))
        self.facts = dict(facts["gaussians"])
        height, width = self._grid()
        if len(self.gaussians.mean) != height * width:
            raise KeyError(f"Gaussians for {height} x {width} cells")


def _chosen(x: Tensor, channels: Tensor) -> Tensor:
    """Some channels of (B, C, H, W), channels last in memory as before: a third of the time."""
    return x.permute(0, 2, 3, 1)[..., channels].permute(0, 3, 1, 2)
