"""NFAD: how likely the features of each cell are, by normalizing flows that learned normal ones.

The unsupervised baseline of BGAD: Yao, Li, Zhang, Sun, Zhang, "Explicit Boundary Guided
Semi-Push-Pull Contrastive Learning for Supervised Anomaly Detection", CVPR 2023, arXiv 2207.01463.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from amiss.learning.flow_data import NormalFeatures, split
from amiss.learning.flows import (
    FlowConfig,
    Stretch,
    finish,
    normal_cells_loss,
    players_of,
    restored_flows,
    standardize,
    stored_flows,
    train_flows,
)
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.methods.base import Detector
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.flow_levels import FlowLevels, features_of
from amiss.options import Config
from amiss.run import Run
from amiss.types import Prediction


@dataclass(frozen=True, kw_only=True)
class NFADConfig(FlowConfig):
    """Options of NFAD."""


class NFAD(Detector):
    """NFAD: M = sum over the levels of 1 - exp(log p(y) / C - its largest in training).

    Options as in `NFADConfig`, same names and defaults.
    """

    id: ClassVar[str] = "nfad"
    paper: ClassVar[str] = "Yao et al., CVPR 2023, arXiv 2207.01463 (the baseline in it)"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = NFADConfig
    config: NFADConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = NFADConfig.image_size,
        resize: str = NFADConfig.resize,
        backbone: str = NFADConfig.backbone,
        layers: tuple[str, ...] = NFADConfig.layers,
        weights: str = NFADConfig.weights,
        normalization: str = NFADConfig.normalization,
        blocks: int = NFADConfig.blocks,
        epochs: int = NFADConfig.epochs,
        batch_size: int = NFADConfig.batch_size,
        vectors: int = NFADConfig.vectors,
        cell_share: float = NFADConfig.cell_share,
        learning_rate: float = NFADConfig.learning_rate,
        standardize: bool = NFADConfig.standardize,
        likelihood: str = NFADConfig.likelihood,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(NFADConfig(**options))
        self.extractor: FeatureExtractor | None = None
        self.flows: FlowLevels | None = None
        self.facts: dict[str, Any] = {}

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cfg = self.config
        self.extractor = cfg.extractor(run.seed)
        parts = split(images, self.extractor, run)
        self.flows = flows = cfg.flows(self.extractor, run.seed)
        if cfg.standardize:
            standardize(flows, self.extractor, parts.data)
        history = train_flows(
            flows, self.extractor, players_of(flows, cfg), NormalFeatures(parts.data),
            normal_cells_loss(cfg), config=cfg, stretch=Stretch(0, cfg.epochs, cfg.epochs),
            batch_size=cfg.batch_size, run=run, job=cfg.job(run, self.extractor),
        )  # fmt: skip
        finish(flows, self.extractor, parts.data)
        self.facts = {"images": len(parts.data), **history.facts()}
        return parts.judged_by(self.forward, run)

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.extractor is not None and self.flows is not None
        return self.flows.judge(features_of(self.extractor, images), roi)

    def summary(self) -> str:
        assert self.flows is not None
        return self.flows.summary(self.facts["images"])

    @property
    def is_fitted(self) -> bool:
        return self.flows is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.extractor is not None and self.flows is not None
        return stored_flows(self.extractor, self.flows, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.extractor, self.flows, self.facts = restored_flows(self.config, facts, tensors)
