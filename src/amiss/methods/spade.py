"""SPADE: the nearest normal images, and in them the nearest patches.

Cohen, Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", arXiv 2005.02357.
What the paper leaves open, and where the well-known code differs, is listed in
docs/methods/spade.md; each difference is an option here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from amiss.errors import MemoryLimitError
from amiss.learning.embedding import embedded
from amiss.learning.held_out import HeldOut, leave_one_out
from amiss.learning.normals import Normals
from amiss.memory.gallery import Gallery, join_layers
from amiss.memory.plan import ceiling_mib, resident_mib
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.roi import RoiStore, roi_cells
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Int64, Prediction


@dataclass(frozen=True, kw_only=True)
class SPADEConfig(Config):
    """Options of SPADE."""

    backbone: str = option(DEFAULT_BACKBONE, "timm name of the network", paper="wide_resnet50_2")
    layers: tuple[str, ...] = option(
        ("4", "8", "16"),
        "of the patches: strides or module names, shallow first",
        paper="ends of blocks 1, 2, 3",
    )
    descriptor_layer: str = option(
        "32", "of the images: its average over all positions", paper="the last convolution"
    )
    weights: str = option("auto", "auto, hub, random, or a path to a weights file")
    normalization: str = option(
        "weights",
        "input statistics: those the weights were trained with, or ImageNet's",
        choices=("weights", "imagenet"),
    )
    num_images: int = option(
        50, "K: normal images that are compared with; all where there are fewer",
        low=1, high=100_000, paper="50, and 1 for STC",
    )  # fmt: skip
    num_neighbors: int = option(
        1, "kappa: patches that the score of a pixel is the mean of", low=1, high=1000, paper="1"
    )
    patches: str = option(
        "joint",
        "joint: one search among the layers together; per_layer: one in each, averaged, as in the "
        "well-known code",
        choices=("joint", "per_layer"),
        paper="joint",
    )
    distance: str = option(
        "squared",
        "squared, or euclidean as in the well-known code",
        choices=("squared", "euclidean"),
        paper="squared",
    )
    blur_sigma: float = option(
        4.0, "Gaussian blur of the map, in pixels of the input", low=0, high=64, paper="4"
    )
    localize: str = option(
        "all",
        "make maps of all images, or only of those above the threshold; others get a map of zeros",
        choices=("all", "flagged"),
        paper="flagged is how it is meant; its pixel figures are over all images",
    )
    storage: str = option(
        "float32",
        "of the maps that are kept; float16 halves the file",
        choices=("float32", "float16"),
    )
    calibration_maps: int = option(
        100, "normal images whose maps set the pixel threshold, drawn by the seed", low=2,
        high=1_000_000,
    )  # fmt: skip


class SPADE(Detector):
    """SPADE: K nearest images by pooled features, nearest patches among theirs.

    Options as in `SPADEConfig`, same names and defaults.
    """

    id: ClassVar[str] = "spade"
    paper: ClassVar[str] = "Cohen and Hoshen, arXiv 2005.02357"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = (
        "each image is compared with other normal images than the one before, piece by piece, "
        "which a fixed graph does not hold"
    )
    learns_from_anomalies: ClassVar[bool] = False
    config_type: ClassVar[type[Config]] = SPADEConfig
    config: SPADEConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = SPADEConfig.image_size,
        resize: str = SPADEConfig.resize,
        backbone: str = SPADEConfig.backbone,
        layers: tuple[str, ...] = SPADEConfig.layers,
        descriptor_layer: str = SPADEConfig.descriptor_layer,
        weights: str = SPADEConfig.weights,
        normalization: str = SPADEConfig.normalization,
        num_images: int = SPADEConfig.num_images,
        num_neighbors: int = SPADEConfig.num_neighbors,
        patches: str = SPADEConfig.patches,
        distance: str = SPADEConfig.distance,
        blur_sigma: float = SPADEConfig.blur_sigma,
        localize: str = SPADEConfig.localize,
        storage: str = SPADEConfig.storage,
        calibration_maps: int = SPADEConfig.calibration_maps,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(SPADEConfig(**options))
        self.extractor: FeatureExtractor | None = None
        self.descriptors: Tensor | None = None  # (N, C)
        self.gallery: Gallery | None = None
        self._upsamplers: dict[tuple[int, int], MapUpsampler] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cfg = self.config
        deepest = () if cfg.descriptor_layer in cfg.layers else (cfg.descriptor_layer,)
        self.extractor = FeatureExtractor(
            cfg.backbone, (*cfg.layers, *deepest), weights=cfg.weights,
            normalization=cfg.normalization, seed=run.seed,
        )  # fmt: skip
        n = len(images)
        with torch.inference_mode():
            blank = self._layers(torch.zeros((1, 3, *self.image_size), dtype=torch.uint8))
        shapes = [tuple(m[0].permute(1, 2, 0).shape) for m in blank]  # (h, w, C)
        dtype = torch.float16 if cfg.storage == "float16" else torch.float32
        _require_room(sum(m.numel() for m in blank[:-1]) * n * dtype.itemsize, run)
        maps = [torch.empty(n, *shape, dtype=dtype) for shape in shapes[:-1]]
        descriptors = torch.empty(n, shapes[-1][2])
        rois = RoiStore(n, images.stream.size)

        def flat(x: Tensor) -> Tensor:  # all layers of an image as one row, to travel together
            return torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in self._layers(x)], dim=1)

        sizes = [int(np.prod(shape)) for shape in shapes]
        for indices, rows, roi in embedded(flat, images, range(n), run):
            rois.put(indices, roi)
            parts = rows.split(sizes, dim=1)
            found = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
            numbers = torch.from_numpy(indices)
            for kept, new in zip(maps, found[:-1], strict=True):
                kept[numbers] = new.to(dtype)
            descriptors[numbers] = _pooled(found[-1].permute(0, 3, 1, 2), roi)
        inside = None
        if rois.packed is not None:
            inside = torch.from_numpy(rois.cells((shapes[0][0], shapes[0][1])))
        self.descriptors, self.gallery, self._upsamplers = descriptors, Gallery(maps, inside), {}
        return self._held_out(images.groups(), rois, run)

    def _held_out(self, group: Int64, rois: RoiStore, run: Run) -> HeldOut:
        """Each image compared with those of other groups; of a part of them also the map."""
        n = len(group)
        drawn = np.random.default_rng(run.seed).permutation(n)[: self.config.calibration_maps]
        with_map = set(drawn.tolist())

        def judge(i: int) -> tuple[Prediction[Tensor], Tensor | None]:
            assert self.gallery is not None and self.descriptors is not None
            roi = rois.get(i)
            others = torch.from_numpy(group != group[i])
            score, nearest = self._nearest_images(self.descriptors[i], others)
            if i not in with_map:
                return Prediction(score[None], None), roi
            maps = self.gallery.image(i)
            return Prediction(score[None], self._map(maps, nearest, roi)[None]), roi

        return leave_one_out(group, judge, run)

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        *maps, last = self._layers(images)
        maps = [self._stored(m) for m in maps]
        scores, found = [], []
        for i, descriptor in enumerate(_pooled(last, roi)):
            score, nearest = self._nearest_images(descriptor)
            scores.append(score)
            if self._is_worth_a_map(float(score)):
                one = None if roi is None else roi[i : i + 1]
                found.append(self._map([m[i : i + 1] for m in maps], nearest, one))
            else:
                found.append(torch.zeros(self.image_size))
        return Prediction(torch.stack(scores), torch.stack(found))

    def _layers(self, images: Tensor) -> list[Tensor]:
        """The maps of `layers` and, after them, that of `descriptor_layer`."""
        cfg = self.config
        assert self.extractor is not None
        maps: list[Tensor] = self.extractor(images)
        if cfg.descriptor_layer in cfg.layers:
            maps.append(maps[cfg.layers.index(cfg.descriptor_layer)])
        return maps

    def _stored(self, maps: Tensor) -> Tensor:
        """As the gallery was rounded: what is alike stays alike."""
        return maps.half().float() if self.config.storage == "float16" else maps

    def _is_worth_a_map(self, score: float) -> bool:
        if self.config.localize == "all" or self.calibration is None:
            return True
        return score > self.calibration.threshold

    def _nearest_images(
        self, descriptor: Tensor, among: Tensor | None = None
    ) -> tuple[Tensor, Int64]:
        """The image score, section 3.2: the mean of the squared distances of a descriptor (C,) to
        its K nearest; and the numbers of these, the nearest first."""
        assert self.descriptors is not None
        squared = (self.descriptors - descriptor).square().sum(dim=1)
        if among is not None:
            squared = squared.masked_fill(~among, torch.inf)
        count = len(squared) if among is None else int(among.sum())
        found = squared.topk(min(self.config.num_images, count), largest=False)
        values = found.values if self.config.distance == "squared" else found.values.sqrt()
        return values.mean(), found.indices.numpy()

    def _map(self, maps: Sequence[Tensor], images: Int64, roi: Tensor | None) -> Tensor:
        """(1, C_l, h_l, w_l) per layer, numbers of images, roi (1, H, W) -> map (H, W)."""
        if self.config.patches == "joint":
            grid = (maps[0].shape[2], maps[0].shape[3])
            found = self._spread(self._distances(join_layers(maps)[0], images, grid, roi), roi)
        else:
            each = []
            for layer, m in enumerate(maps):
                grid = (m.shape[2], m.shape[3])
                queries = m[0].permute(1, 2, 0).flatten(0, 1)
                each.append(self._spread(self._distances(queries, images, grid, roi, layer), roi))
            found = torch.stack(each).mean(dim=0)
        return found if roi is None else found * roi[0]

    def _distances(
        self,
        queries: Tensor,
        images: Int64,
        grid: tuple[int, int],
        roi: Tensor | None,
        layer: int | None = None,
    ) -> Tensor:
        """Section 3.3: each query's mean distance to its kappa nearest patches, (1, h, w)."""
        assert self.gallery is not None
        cells = None if roi is None else roi_cells(roi, grid)[0].nonzero()[:, 0]
        wanted = queries if cells is None else queries[cells]
        root, count = self.config.distance == "euclidean", self.config.num_neighbors
        if count == 1:
            found = self.gallery.nearest(wanted, images, layer)[0]
            found = found.sqrt() if root else found
        else:
            found = self.gallery.mean_of_nearest(wanted, images, count, layer, root=root)
        if cells is not None:
            found = queries.new_zeros(len(queries)).index_put_((cells,), found)
        return found.view(1, *grid)

    def _spread(self, distances: Tensor, roi: Tensor | None) -> Tensor:
        """Distances (1, h, w) -> blurred map (H, W)."""
        grid = (distances.shape[1], distances.shape[2])
        if grid not in self._upsamplers:
            self._upsamplers[grid] = MapUpsampler(grid, self.image_size, self.config.blur_sigma)
        cells = None if roi is None else roi_cells(roi, grid).view(1, *grid)
        found: Tensor = self._upsamplers[grid](distances, cells)
        return found[0]

    def evidence(self, images: Tensor, roi: Tensor | None = None) -> list[dict[str, Any]] | None:
        self.require_fitted()
        assert self.gallery is not None
        *maps, last = self._layers(images)
        height, width = maps[0].shape[2:]
        found = []
        for i, descriptor in enumerate(_pooled(last, roi)):
            _, nearest = self._nearest_images(descriptor)
            queries = join_layers([self._stored(m[i : i + 1]) for m in maps])[0]
            squared, image, cell = self.gallery.nearest(queries, nearest)
            if roi is not None:
                squared = squared.masked_fill(~roi_cells(roi[i : i + 1], (height, width))[0], -1.0)
            worst = int(squared.argmax())
            found.append(
                {
                    "image": int(image[worst]),
                    "box": _cell_box(int(cell[worst]), height, width),
                    "query_box": _cell_box(worst, height, width),
                    "distance": float(squared[worst].sqrt()),
                }
            )
        return found

    def summary(self) -> str:
        assert self.gallery is not None
        asked = min(self.config.num_images, len(self.gallery))
        return f"gallery: {len(self.gallery)} images, of which the {asked} most alike are asked"

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.gallery is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.gallery is not None and self.extractor is not None
        assert self.descriptors is not None
        tensors = {f"gallery.{i}": m for i, m in enumerate(self.gallery.maps)}
        if self.gallery.inside is not None:
            tensors["inside"] = self.gallery.inside
        tensors["descriptors"] = self.descriptors
        tensors |= {f"backbone.{k}": v for k, v in self.extractor.network.state_dict().items()}
        return {"backbone": self.extractor.facts_for_manifest()}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        prefix = "backbone."
        network = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.extractor = FeatureExtractor.from_manifest(facts["backbone"], network)
        maps = [tensors[f"gallery.{i}"] for i in range(len(self.config.layers))]
        self.descriptors = tensors["descriptors"]
        self.gallery = Gallery(maps, tensors.get("inside"))
        self._upsamplers = {}
        if any(len(m) != len(self.descriptors) for m in maps):
            raise KeyError("as many maps as descriptors")


def _pooled(last: Tensor, roi: Tensor | None) -> Tensor:
    """(B, C, h, w) -> (B, C): the mean over the positions that are looked at."""
    if roi is None:
        return last.mean(dim=(2, 3))
    cells = roi_cells(roi, (last.shape[2], last.shape[3])).to(last.dtype)  # (B, P)
    return (last.flatten(2) * cells[:, None]).sum(dim=2) / cells.sum(dim=1)[:, None]


def _cell_box(cell: int, height: int, width: int) -> list[float]:
    """(top, left, bottom, right) of a grid cell as shares of the image's height and width."""
    row, column = divmod(cell, width)
    return [row / height, column / width, (row + 1) / height, (column + 1) / width]


def _require_room(size: int, run: Run) -> None:
    """Say how much memory the gallery takes; raise MemoryLimitError where there is not enough."""
    searches = 128 * torch.get_num_threads()  # measured, an image per thread
    need = resident_mib() + size / (1 << 20) + searches
    ceiling = ceiling_mib(run.max_memory_mib)
    run.say(f"memory: about {round(need)} MiB at the peak")
    if ceiling is not None and need > ceiling:
        raise MemoryLimitError(
            f"The feature maps of all images take about {round(need)} MiB, and {round(ceiling)} "
            "MiB are granted.",
            hint="Set storage=float16, give fewer images, or raise max_memory.",
        )
