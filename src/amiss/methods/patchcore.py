"""PatchCore: the distance of each patch to a coreset of normal patches.

Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler, "Towards Total Recall in Industrial Anomaly
Detection", CVPR 2022, arXiv 2106.08265. What the paper leaves open, and where the authors' code
differs, is listed in docs/methods/patchcore.md; each difference is an option here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from amiss.errors import OptionError
from amiss.learning.bank_learner import BankLearner
from amiss.learning.held_out import (
    HeldOut,
)
from amiss.learning.normals import Normals
from amiss.memory.bank import Bank, MemoryBank
from amiss.memory.neighbors import distances_to
from amiss.memory.selection import Selection
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.patches import embed_adaptive, embed_concat
from amiss.nn.roi import roi_cells
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction


@dataclass(frozen=True, kw_only=True)
class PatchCoreConfig(Config):
    """Options of PatchCore."""

    backbone: str = option(DEFAULT_BACKBONE, "timm name of the network", paper="wide_resnet50_2")
    layers: tuple[str, ...] = option(
        ("8", "16"), "strides or module names, shallow first", paper="layer2, layer3"
    )
    weights: str = option("auto", "auto, hub, random, or a path to a weights file")
    normalization: str = option(
        "weights",
        "input statistics: those the weights were trained with, or ImageNet's",
        choices=("weights", "imagenet"),
    )
    embedding: str = option(
        "concat",
        "concat: 3x3 mean, bilinear, concatenate; adaptive: the authors' two-step pooling",
        choices=("concat", "adaptive"),
        paper="adaptive average pooling to a preset dimension",
    )
    neighborhood: int = option(
        3, "side p of the patch neighbourhood, odd", low=1, high=31, paper="3"
    )
    stride: int = option(1, "stride s of the patch grid", low=1, high=32, paper="1")
    layer_dim: int = option(
        1024, "adaptive: dimension of each layer before merging", low=1, high=65536
    )
    target_dim: int = option(1024, "adaptive: dimension of the embedding", low=1, high=65536)
    coreset_ratio: float = option(
        0.01, "share of the patches kept in the bank", low=1e-6, high=1, paper="0.25, 0.1, 0.01"
    )
    coreset_size: int | None = option(
        None, "number of patches kept, instead of the share", low=1, high=10_000_000
    )
    coreset: str = option(
        "greedy", "greedy k-centre, or random as a baseline", choices=("greedy", "random")
    )
    projection_dim: int = option(
        0, "choose the coreset in a random projection to this dimension; 0: in the full space",
        low=0, high=65536, paper="a random projection, dimension not stated",
    )  # fmt: skip
    num_neighbors: int = option(
        9, "b: bank neighbours in the image score's re-weighting; 1 turns it off",
        low=1, high=1000, paper="not stated",
    )  # fmt: skip
    search: str = option(
        "auto",
        "exact, approximate, or auto: approximate from 50,000 bank rows on",
        choices=("auto", "exact", "approximate"),
        paper="approximate (faiss)",
    )
    distance: str = option(
        "euclidean",
        "euclidean, or squared as in the authors' code",
        choices=("euclidean", "squared"),
        paper="euclidean",
    )
    blur_sigma: float = option(
        4.0, "Gaussian blur of the map, in pixels of the input", low=0, high=64, paper="4"
    )
    folds: int = option(
        0, "calibrate over this many folds; 0: leave out one image at a time", low=0, high=1000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighborhood % 2 == 0:
            raise OptionError(
                f"neighborhood={self.neighborhood} has no centre cell.", hint="Use an odd number."
            )
        if self.folds == 1:
            raise OptionError("folds=1 leaves nothing to learn from.", hint="Use 0, or 2 and more.")


class PatchCore(Detector):
    """PatchCore: locally aware patch features, greedy k-centre coreset, nearest-neighbour scores.

    Options as in `PatchCoreConfig`, same names and defaults.
    """

    id: ClassVar[str] = "patchcore"
    paper: ClassVar[str] = "Roth et al., CVPR 2022, arXiv 2106.08265"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    config_type: ClassVar[type[Config]] = PatchCoreConfig
    config: PatchCoreConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = PatchCoreConfig.image_size,
        resize: str = PatchCoreConfig.resize,
        backbone: str = PatchCoreConfig.backbone,
        layers: tuple[str, ...] = PatchCoreConfig.layers,
        weights: str = PatchCoreConfig.weights,
        normalization: str = PatchCoreConfig.normalization,
        embedding: str = PatchCoreConfig.embedding,
        neighborhood: int = PatchCoreConfig.neighborhood,
        stride: int = PatchCoreConfig.stride,
        layer_dim: int = PatchCoreConfig.layer_dim,
        target_dim: int = PatchCoreConfig.target_dim,
        coreset_ratio: float = PatchCoreConfig.coreset_ratio,
        coreset_size: int | None = PatchCoreConfig.coreset_size,
        coreset: str = PatchCoreConfig.coreset,
        projection_dim: int = PatchCoreConfig.projection_dim,
        num_neighbors: int = PatchCoreConfig.num_neighbors,
        search: str = PatchCoreConfig.search,
        distance: str = PatchCoreConfig.distance,
        blur_sigma: float = PatchCoreConfig.blur_sigma,
        folds: int = PatchCoreConfig.folds,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(PatchCoreConfig(**options))
        self.extractor: FeatureExtractor | None = None
        self.bank: MemoryBank | None = None
        self.facts: dict[str, Any] = {}
        self._grid_size: tuple[int, int, int] | None = None
        self._upsamplers: dict[tuple[int, int], MapUpsampler] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cfg = self.config
        self._grid_size = None
        self._upsamplers = {}
        self.extractor = FeatureExtractor(
            cfg.backbone, cfg.layers, weights=cfg.weights,
            normalization=cfg.normalization, seed=run.seed,
        )  # fmt: skip
        weights = self.extractor.facts["weights_sha256"]
        learner = BankLearner(
            embed=self._embedding,
            score=self._score,
            grid=self._grid(),
            selection=Selection(
                cfg.coreset, cfg.coreset_ratio, cfg.coreset_size, cfg.projection_dim, run.seed
            ),
            num_neighbors=cfg.num_neighbors,
            search=cfg.search,
            folds=cfg.folds,
            job=cfg.as_dict() | {"seed": run.seed, "weights_sha256": weights},
        )
        self.bank, self.facts, held_out = learner.learn(images, run)
        return held_out

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.bank is not None
        patches = self._embedding(images).flatten(2).transpose(1, 2)  # (B, P, D)
        return self._score(self.bank, patches, roi)

    def _embedding(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D, h, w), equation 2 of the paper."""
        cfg = self.config
        assert self.extractor is not None
        maps = self.extractor(images)
        if cfg.embedding == "concat":
            return embed_concat(maps, neighborhood=cfg.neighborhood, stride=cfg.stride)
        return embed_adaptive(
            maps, neighborhood=cfg.neighborhood, stride=cfg.stride,
            layer_dim=cfg.layer_dim, target_dim=cfg.target_dim,
        )  # fmt: skip

    def _score(self, bank: Bank, patches: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        """patches (B, P, D), roi (B, H, W) bool or None -> scores and maps."""
        B, P, D = patches.shape
        _, height, width = self._grid()
        distance, nearest = bank.nearest(patches.reshape(B * P, D))
        distance, nearest = distance.view(B, P), nearest.view(B, P)
        cells = None if roi is None else roi_cells(roi, (height, width))
        looked_at = distance if cells is None else distance.masked_fill(~cells, -1.0)
        s, worst = looked_at.max(dim=1)  # s* and the patch m^test,* that has it
        query = patches[torch.arange(B), worst]  # (B, D)
        s = s * self._weight(bank, query, nearest[torch.arange(B), worst])
        if self.config.distance == "squared":
            s, distance = s.square(), distance.square()
        upsample = self._upsampler()
        grid = distance.view(B, height, width)
        if cells is None:
            return Prediction(s, upsample(grid))
        maps = upsample(grid, cells.view(B, height, width))
        return Prediction(s, maps * roi)

    def _weight(self, bank: Bank, query: Tensor, nearest: Tensor) -> Tensor:
        """w = 1 - exp(d*) / sum over N_b(m*) of exp(d), equation 7; (B,).

        softmax subtracts the maximum, so distances of any size are safe. b = 1 is no weighting.
        """
        neighborhood = bank.neighborhood(nearest)  # (B, b, D), m* first
        if neighborhood.shape[1] == 1:
            return query.new_ones(len(query))
        distances = distances_to(query[:, None], neighborhood)  # (B, b)
        return 1 - torch.softmax(distances, dim=1)[:, 0]

    def export_obstacle(self) -> str | None:
        if self.bank is not None and self.bank.index is not None:
            return (
                f"its bank of {len(self.bank)} rows is searched approximately, and a graph "
                "searches exactly; fit it with search='exact', or with a smaller coreset_ratio"
            )
        return super().export_obstacle()

    def summary(self) -> str:
        facts = self.facts
        return (
            f"bank: {facts['rows']} of {facts['patches_seen']} patches; every patch lies within "
            f"{facts['covering_radius']:.4g} of one"
        )

    def evidence(self, images: Tensor, roi: Tensor | None = None) -> list[dict[str, Any]] | None:
        self.require_fitted()
        assert self.bank is not None
        B = len(images)
        _, height, width = self._grid()
        patches = self._embedding(images).flatten(2).transpose(1, 2)
        distance, nearest = self.bank.nearest(patches.flatten(0, 1))
        distance, nearest = distance.view(B, -1), nearest.view(B, -1)
        if roi is not None:
            distance = distance.masked_fill(~roi_cells(roi, (height, width)), -1.0)
        s, worst = distance.max(dim=1)
        found = []
        for i in range(B):
            image, row, column = self.bank.origin[nearest[i, worst[i]]].tolist()
            found.append(
                {
                    "image": image,
                    "box": _cell_box(row, column, height, width),
                    "query_box": _cell_box(*divmod(int(worst[i]), width), height, width),
                    "distance": float(s[i]),
                }
            )
        return found

    # --- sizes -----------------------------------------------------------------------------

    def _grid(self) -> tuple[int, int, int]:
        """(D, h, w) of the patch grid, measured once by a black image."""
        if self._grid_size is None:
            with torch.inference_mode():
                blank = torch.zeros((1, 3, *self.image_size), dtype=torch.uint8)
                _, D, h, w = self._embedding(blank).shape
            self._grid_size = (D, h, w)
        return self._grid_size

    def _upsampler(self) -> MapUpsampler:
        grid = self._grid()[1:]
        if grid not in self._upsamplers:  # a table: several threads may make it at once
            self._upsamplers[grid] = MapUpsampler(grid, self.image_size, self.config.blur_sigma)
        return self._upsamplers[grid]

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.bank is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.bank is not None and self.extractor is not None
        tensors = {f"bank.{k}": v for k, v in self.bank.tensors().items()}
        tensors |= {f"backbone.{k}": v for k, v in self.extractor.network.state_dict().items()}
        return {"backbone": self.extractor.facts_for_manifest(), "bank": self.facts}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.extractor = FeatureExtractor.from_manifest(facts["backbone"], under("backbone."))
        self.bank = MemoryBank.from_tensors(under("bank."))
        self.facts = dict(facts["bank"])
        dim = self._grid()[0]
        if self.bank.rows.shape[1] != dim:
            raise KeyError(f"bank rows of {dim} values")


def _cell_box(row: int, column: int, height: int, width: int) -> list[float]:
    """(top, left, bottom, right) of a grid cell as shares of the image's height and width."""
    return [row / height, column / width, (row + 1) / height, (column + 1) / width]
