"""BGAD: flows that learned normal features, and are shown a few defects beyond a boundary.

Yao, Li, Zhang, Sun, Zhang, "Explicit Boundary Guided Semi-Push-Pull Contrastive Learning for
Supervised Anomaly Detection", CVPR 2023, arXiv 2207.01463. What the paper leaves open, and where
the authors' code differs, is listed in docs/methods/bgad.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from amiss.data.defects import Generator
from amiss.data.synthesis import CutPaste, Perlin, Rpag
from amiss.errors import DataError, OptionError
from amiss.learning.flow_data import ANOMALOUS_CELL, NORMAL_CELL, NormalFeatures, Parts, split
from amiss.learning.flows import (
    FlowConfig,
    Stretch,
    finish,
    mean_likelihood_loss,
    normal_cells_loss,
    normal_log_likelihoods,
    players_of,
    restored_flows,
    standardize,
    stored_flows,
    take_ceilings,
    train_flows,
)
from amiss.learning.held_out import HeldOut
from amiss.learning.known_defects import KnownDefects
from amiss.learning.mixed_features import MixedFeatures, patch_sources, propose_masks
from amiss.learning.normals import Normals
from amiss.learning.processes import rank_and_size
from amiss.methods.base import Detector
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.boundary import REDUCTIONS, boundary_of, focal_weights, semi_push_pull
from amiss.nn.flow_levels import FlowLevels, features_of
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction

_ASKED = 1 << 15  # normal vectors of a level that a boundary follows from


@dataclass(frozen=True, kw_only=True)
class BGADConfig(FlowConfig):
    """Options of BGAD."""

    normal_epochs: int = option(
        8, "of the epochs, the first ones, on normal images alone; the authors' code: 8",
        low=1, high=100_000,
    )  # fmt: skip
    anomalous_share: float = option(
        1 / 3, "of the images of a batch, after these", low=0.01, high=0.9, paper="1/3"
    )
    beta: float = option(
        0.01, "share of the normal vectors below the boundary", low=0, high=0.5, paper="1 %"
    )
    margin: float = option(
        0.1, "tau: how far beyond the boundary anomalous vectors belong", low=0, high=100,
        paper="0.1",
    )  # fmt: skip
    normalizer: float = option(
        10.0, "what log-likelihoods per channel are divided by for the boundary", low=1e-3,
        high=1e3, paper="10",
    )  # fmt: skip
    boundary_weight: float = option(1.0, "lambda: of L_bg-spp", low=0, high=1e6, paper="1")
    boundary: str = option(
        "global",
        "b_n follows from normal vectors of all images, anew in each epoch (global), or from those "
        "of each step, as in the authors' code (batch)",
        choices=("global", "batch"),
        paper="global",
    )
    reduction: str = option(
        "sum", "of L_bg-spp: sum, or mean over what violates the boundary, as in the authors' code",
        choices=REDUCTIONS, paper="sum",
    )  # fmt: skip
    cells: str = option(
        "nearest",
        "of a defect: those whose nearest pixel is in its mask (nearest), as in the authors' code, "
        "or all that it touches, and those beside these count neither way (touched)",
        choices=("nearest", "touched"),
    )  # fmt: skip
    focal: bool = option(
        False, "count those vectors more that are on the wrong side, as the authors' command does"
    )
    synthesis: str = option(
        "rpag", "how defects are made beside the known ones: rpag, which pastes known ones; perlin "
        "and cut_paste, which need none; or none",
        choices=("rpag", "perlin", "cut_paste", "none"), paper="rpag",
    )  # fmt: skip
    synthetic_share: float = option(
        0.5, "of the anomalous images of a batch, those that are made; the authors' code: 0.5",
        low=0.01, high=1,
    )  # fmt: skip
    transforms: int = option(
        3, "S: transforms of a defect before rpag pastes it", low=0, high=9, paper="3"
    )
    placement: str = option(
        "random", "of rpag: at a random place of the foreground, or in_place where it lies there "
        "already, as in the authors' code", choices=("random", "in_place"), paper="random",
    )  # fmt: skip
    foreground: str = option(
        "auto", "where defects are made: otsu finds the object; all; auto is all for perlin, and "
        "the object for the others, as their papers have it", choices=("auto", "otsu", "all"),
        paper="gray-level binarization",
    )  # fmt: skip

    @property
    def labels_touched(self) -> bool:
        return self.cells == "touched"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normal_epochs >= self.epochs:
            raise OptionError(
                f"normal_epochs={self.normal_epochs} of epochs={self.epochs} leave none for the "
                "defects.",
                hint="Lower normal_epochs, or raise epochs.",
            )
        if self.synthesis != "rpag":
            self.refuse_unused(("transforms", "placement"), f"synthesis is {self.synthesis}")
        if self.synthesis == "none":
            self.refuse_unused(("synthetic_share", "foreground"), "synthesis is none")


class BGAD(Detector):
    """BGAD: L = L_ml + lambda L_bg-spp after a first stretch of L_ml; the map is NFAD's.

    Options as in `BGADConfig`, same names and defaults.
    """

    id: ClassVar[str] = "bgad"
    paper: ClassVar[str] = "Yao et al., CVPR 2023, arXiv 2207.01463"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = BGADConfig
    config: BGADConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = BGADConfig.image_size,
        resize: str = BGADConfig.resize,
        backbone: str = BGADConfig.backbone,
        layers: tuple[str, ...] = BGADConfig.layers,
        weights: str = BGADConfig.weights,
        normalization: str = BGADConfig.normalization,
        blocks: int = BGADConfig.blocks,
        epochs: int = BGADConfig.epochs,
        normal_epochs: int = BGADConfig.normal_epochs,
        batch_size: int = BGADConfig.batch_size,
        anomalous_share: float = BGADConfig.anomalous_share,
        vectors: int = BGADConfig.vectors,
        cell_share: float = BGADConfig.cell_share,
        learning_rate: float = BGADConfig.learning_rate,
        standardize: bool = BGADConfig.standardize,
        likelihood: str = BGADConfig.likelihood,
        beta: float = BGADConfig.beta,
        margin: float = BGADConfig.margin,
        normalizer: float = BGADConfig.normalizer,
        boundary_weight: float = BGADConfig.boundary_weight,
        boundary: str = BGADConfig.boundary,
        reduction: str = BGADConfig.reduction,
        cells: str = BGADConfig.cells,
        focal: bool = BGADConfig.focal,
        synthesis: str = BGADConfig.synthesis,
        synthetic_share: float = BGADConfig.synthetic_share,
        transforms: int = BGADConfig.transforms,
        placement: str = BGADConfig.placement,
        foreground: str = BGADConfig.foreground,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(BGADConfig(**options))
        self.extractor: FeatureExtractor | None = None
        self.flows: FlowLevels | None = None
        self.facts: dict[str, Any] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        return self.learn_with(images, None, run)

    def learn_with(self, images: Normals, defects: KnownDefects | None, run: Run) -> HeldOut:
        cfg = self.config
        self._require_something_to_learn(defects)
        self.extractor = cfg.extractor(run.seed)
        parts = split(images, self.extractor, run)
        self.flows = flows = cfg.flows(self.extractor, run.seed)
        if cfg.standardize:
            standardize(flows, self.extractor, parts.data)
        job = cfg.job(run, self.extractor)
        players = players_of(flows, cfg)
        first = train_flows(
            flows, self.extractor, players, NormalFeatures(parts.data), normal_cells_loss(cfg),
            config=cfg, stretch=Stretch(0, cfg.normal_epochs, cfg.epochs),
            batch_size=cfg.batch_size, run=run.stage("normals"), job=job | {"stage": "normals"},
            stage="normal features",
        )  # fmt: skip
        mixed, unmasked = self._mixed(parts, defects, run)
        second = train_flows(
            flows, self.extractor, players, mixed, self._loss,
            config=cfg, stretch=Stretch(cfg.normal_epochs, cfg.epochs, cfg.epochs),
            batch_size=mixed.normals_of(cfg.batch_size),
            before_epoch=lambda: self._draw_boundaries(parts), run=run,
            job=job | {"stage": "boundary", "defects": _digest(defects)}, stage="boundary",
        )  # fmt: skip
        finish(flows, self.extractor, parts.data)
        self.facts = {
            "images": len(parts.data),
            "defects": 0 if defects is None else len(defects),
            "unmasked_defects": unmasked,
            "first_losses": first.facts()["losses"],
            **second.facts(),
        }
        return parts.judged_by(self.forward, run)

    def _require_something_to_learn(self, defects: KnownDefects | None) -> None:
        needs = self.config.synthesis in ("rpag", "none")
        if needs and not defects:
            raise DataError(
                "BGAD learns from known defects, and there is none.",
                hint="Give some (anomalous=FOLDER, --anomalous FOLDER), choose synthesis=perlin or "
                "cut_paste, which make defects of normal images, or use nfad.",
            )

    def _mixed(
        self, parts: Parts, defects: KnownDefects | None, run: Run
    ) -> tuple[MixedFeatures, int]:
        """What the second stretch goes over, and of how many defects nobody had said where they
        are: it is then taken from the map of the flows so far."""
        cfg, flows, extractor = self.config, self.flows, self.extractor
        assert flows is not None and extractor is not None
        given = [] if defects is None else [mask is not None for mask in defects.masks]
        unmasked = given.count(False)
        if defects is not None and unmasked:
            take_ceilings(flows, extractor, parts.data)
            propose_masks(flows, extractor, defects, parts.data)
            bare = defects.records[given.index(False)].path.name
            run.say(
                f"{unmasked} of {len(defects)} defects have no mask, or an empty one, such as "
                f"{bare}: what the flows find less likely so far than nearly all of the normal "
                "images is taken for the defect, the rest of these images is left out."
            )
        mixed = MixedFeatures(
            parts.data, defects, self._generator(parts, defects, run), extractor,
            share=cfg.anomalous_share, made=cfg.synthetic_share,
        )  # fmt: skip
        return mixed, unmasked

    def _generator(self, parts: Parts, defects: KnownDefects | None, run: Run) -> Generator | None:
        cfg = self.config
        by_paper = "all" if cfg.synthesis == "perlin" else "otsu"
        foreground = by_paper if cfg.foreground == "auto" else cfg.foreground
        if cfg.synthesis == "rpag":
            assert defects is not None
            sources = defects.sources()
            if not sources:
                run.say("none of the defects has a mask, so that rpag has nothing to paste")
                return None
            return Rpag(
                sources, count=cfg.transforms,
                placement="in_place" if cfg.placement == "in_place" else "random",
                foreground=foreground,
            )  # fmt: skip
        if cfg.synthesis == "perlin":
            return Perlin(foreground=foreground)
        if cfg.synthesis == "cut_paste":
            return CutPaste(patch_sources(parts.data), foreground=foreground)
        return None

    def _draw_boundaries(self, parts: Parts) -> None:
        """b_n of each level, from normal vectors of all images."""
        cfg, flows, extractor = self.config, self.flows, self.extractor
        assert flows is not None and extractor is not None
        if cfg.boundary == "batch":
            return
        found = normal_log_likelihoods(flows, extractor, parts.data, _ASKED)
        for number, log_p in enumerate(found):
            flows.level(number).boundary.copy_(boundary_of(log_p / cfg.normalizer, cfg.beta))

    def _loss(self, level: int, log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """L_ml + lambda L_bg-spp of a step's vectors (B, Q)."""
        cfg = self.config
        assert self.flows is not None
        scaled = log_p / cfg.normalizer
        is_normal = labels == NORMAL_CELL
        normal, anomalous = scaled[is_normal], scaled[labels == ANOMALOUS_CELL]
        weights, per_vector = None, None
        if cfg.focal:
            weights = focal_weights(normal, anomalous)
            per_vector = torch.ones_like(scaled).masked_scatter(is_normal, weights[0])
        likelihood = mean_likelihood_loss(log_p, is_normal, cfg.likelihood, per_vector)
        # By steps, the authors' code has no such loss in a step without anomalous vectors.
        if not normal.numel() or (cfg.boundary == "batch" and not anomalous.numel()):
            return {"loss": likelihood, "likelihood": likelihood, "beyond": likelihood * 0}
        boundary = self.flows.level(level).boundary
        if cfg.boundary == "batch":
            boundary = boundary_of(normal, cfg.beta)
        beyond = semi_push_pull(
            normal, anomalous, boundary, margin=cfg.margin, reduction=cfg.reduction,
            weights=weights,
        )  # fmt: skip
        if cfg.reduction == "sum":  # over the vectors of all processes, whose mean is descended
            beyond = beyond * rank_and_size()[1]
        loss = likelihood + cfg.boundary_weight * beyond
        return {"loss": loss, "likelihood": likelihood, "beyond": beyond}

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.extractor is not None and self.flows is not None
        return self.flows.judge(features_of(self.extractor, images), roi)

    def summary(self) -> str:
        assert self.flows is not None
        return f"{self.flows.summary(self.facts['images'])} and {self.facts['defects']} defects"

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.flows is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.extractor is not None and self.flows is not None
        return stored_flows(self.extractor, self.flows, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.extractor, self.flows, self.facts = restored_flows(self.config, facts, tensors)


def _digest(defects: KnownDefects | None) -> str:
    """A name for what the known defects are and where."""
    sha = hashlib.sha256()
    if defects is not None:
        for image, mask in zip(defects.digests, defects.masks, strict=True):
            sha.update(image.tobytes() + (b"" if mask is None else mask.tobytes()))
    return sha.hexdigest()
