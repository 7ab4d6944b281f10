"""Uninformed Students: where students that saw only normal images disagree with their teacher.

Bergmann, Fauser, Sattlegger, Steger, "Uninformed Students: Student-Teacher Anomaly Detection with
Discriminative Latent Embeddings", CVPR 2020, arXiv 1911.02357.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from amiss.errors import DataError, OptionError
from amiss.learning.distillation import Lessons, pictures_for, teach, teachers_in
from amiss.learning.embedding import embedded
from amiss.learning.held_out import HeldOut, hold_out, judge_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.spread import spread, spreads_without, sums
from amiss.learning.training_images import TaughtBatch, TaughtImages
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE, FeatureExtractor
from amiss.nn.blur import MapUpsampler
from amiss.nn.levels import as_input
from amiss.nn.patch_network import LAYERS, STRIDES, PatchNetwork
from amiss.nn.roi import roi_cells
from amiss.nn.student_ensemble import StudentEnsemble, regression_loss
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import Loop, Losses, Player, require_device, train
from amiss.types import Int64, Prediction

_OF_STUDENTS = {"students", "stride", "epochs", "batch_size", "learning_rate", "blur_sigma"}
_OF_LESSONS = (
    "distill_data", "backbone", "weights", "teacher_steps", "teacher_batch",
    "teacher_learning_rate", "crop_grid", "crop_low", "crop_high", "distill_weight",
    "triplet_weight", "compactness_weight", "margin",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UninformedStudentsConfig(Config):
    """Options of Uninformed Students."""

    patch_sizes: tuple[int, ...] = option(
        (17, 33, 65), "sides of the patches that are described, 17, 33 and 65 px or some of them",
        paper="17,33,65; each also alone",
    )  # fmt: skip
    students: int = option(3, "students of each patch size", low=1, high=100, paper="3")
    stride: int = option(
        1, "pixels between described patches, 1, 2, 4 or 8", low=1, high=8, paper="1"
    )
    width: float = option(
        1.0, "share of the channels of teachers and students", low=0.01, high=4, paper="1"
    )
    epochs: int = option(100, "passes of the students over the images", low=1, high=100_000)
    batch_size: int = option(1, "images of a step", low=1, high=4096)
    learning_rate: float = option(1e-4, "of the students' Adam", low=1e-7, high=1)
    weight_decay: float = option(1e-5, "of every Adam", low=0, high=1)
    teacher: str = option(
        "distill",
        "distill: teach the teachers first; a path to an .amiss of this method: use its teachers; "
        "random: untaught ones, for tests",
    )
    distill_data: str = option(
        "auto",
        "pictures that the teachers learn on: a folder; or auto, the training images and the "
        "pictures that come with scikit-image",
        paper="ImageNet",
    )
    backbone: str = option(
        DEFAULT_BACKBONE, "timm name of the network that the teachers learn from", paper="resnet18"
    )
    weights: str = option("auto", "of it: auto, hub, random, or a path to a weights file")
    teacher_steps: int = option(50_000, "steps of the teachers", low=1, high=10_000_000)
    teacher_batch: int = option(64, "patches of a step of the teachers", low=2, high=65536)
    teacher_learning_rate: float = option(2e-4, "of the teachers' Adam", low=1e-7, high=1)
    crop_grid: int = option(
        1, "patches along each side of a crop, 8 px apart; 1: each from a crop of its own, more is "
        "quicker", low=1, high=16, paper="1",
    )  # fmt: skip
    crop_low: float = option(4.0, "smallest side of a crop, of the patch's", low=1, high=64)
    crop_high: float = option(16.0, "largest side of a crop, of the patch's", low=1, high=64)
    distill_weight: float = option(1.0, "of the distillation loss", low=0, high=1e6)
    triplet_weight: float = option(0.0, "of the loss of metric learning", low=0, high=1e6)
    compactness_weight: float = option(1.0, "of the descriptors' correlation", low=0, high=1e6)
    margin: float = option(10.0, "of the triplets", low=0, high=1e6)
    blur_sigma: float = option(
        0.0, "Gaussian blur of the map, in pixels of the input", low=0, high=64, paper="0"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.patch_sizes) - set(LAYERS)
        if unknown or list(self.patch_sizes) != sorted(set(self.patch_sizes)):
            raise OptionError(
                f"patch_sizes={self.patch_sizes!r} is not known.",
                hint="Choose some of 17, 33, 65, in this order.",
            )
        if self.stride not in STRIDES or any(side % self.stride for side in self.image_size):
            raise OptionError(
                f"stride={self.stride} does not divide image_size={self.image_size}.",
                hint="The stride is 1, 2, 4 or 8; choose an image_size that is a multiple of it.",
            )
        if min(self.image_size) <= max(self.patch_sizes) // 2:
            raise OptionError(
                f"image_size={self.image_size} is too small for patches of "
                f"{max(self.patch_sizes)} px.",
                hint="Raise image_size, or leave out the largest of patch_sizes.",
            )
        if self.crop_low > self.crop_high:
            raise OptionError(
                f"crop_low={self.crop_low} is above crop_high={self.crop_high}.",
                hint="Both are multiples of the patch size.",
            )
        if self.teacher != "distill":
            self.refuse_unused(_OF_LESSONS, f"teacher={self.teacher} is not taught")
        if self.triplet_weight == 0:
            self.refuse_unused(("margin",), "triplet_weight is 0, so there are no triplets")
        self.lessons()  # refuses what does not go together there

    def lessons(self) -> Lessons:
        """How the teachers are taught."""
        return Lessons(
            steps=self.teacher_steps, batch_size=self.teacher_batch,
            learning_rate=self.teacher_learning_rate, weight_decay=self.weight_decay,
            distill_weight=self.distill_weight, triplet_weight=self.triplet_weight,
            compactness_weight=self.compactness_weight, margin=self.margin,
            grid=self.crop_grid, crop_low=self.crop_low, crop_high=self.crop_high,
        )  # fmt: skip


class UninformedStudents(Detector):
    """Uninformed Students: regression error and disagreement of an ensemble, patch by patch.

    Options as in `UninformedStudentsConfig`, same names and defaults.
    """

    id: ClassVar[str] = "uninformed_students"
    paper: ClassVar[str] = "Bergmann et al., CVPR 2020, arXiv 1911.02357"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = UninformedStudentsConfig
    config: UninformedStudentsConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = UninformedStudentsConfig.image_size,
        resize: str = UninformedStudentsConfig.resize,
        patch_sizes: tuple[int, ...] = UninformedStudentsConfig.patch_sizes,
        students: int = UninformedStudentsConfig.students,
        stride: int = UninformedStudentsConfig.stride,
        width: float = UninformedStudentsConfig.width,
        epochs: int = UninformedStudentsConfig.epochs,
        batch_size: int = UninformedStudentsConfig.batch_size,
        learning_rate: float = UninformedStudentsConfig.learning_rate,
        weight_decay: float = UninformedStudentsConfig.weight_decay,
        teacher: str = UninformedStudentsConfig.teacher,
        distill_data: str = UninformedStudentsConfig.distill_data,
        backbone: str = UninformedStudentsConfig.backbone,
        weights: str = UninformedStudentsConfig.weights,
        teacher_steps: int = UninformedStudentsConfig.teacher_steps,
        teacher_batch: int = UninformedStudentsConfig.teacher_batch,
        teacher_learning_rate: float = UninformedStudentsConfig.teacher_learning_rate,
        crop_grid: int = UninformedStudentsConfig.crop_grid,
        crop_low: float = UninformedStudentsConfig.crop_low,
        crop_high: float = UninformedStudentsConfig.crop_high,
        distill_weight: float = UninformedStudentsConfig.distill_weight,
        triplet_weight: float = UninformedStudentsConfig.triplet_weight,
        compactness_weight: float = UninformedStudentsConfig.compactness_weight,
        margin: float = UninformedStudentsConfig.margin,
        blur_sigma: float = UninformedStudentsConfig.blur_sigma,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(UninformedStudentsConfig(**options))
        self.ensemble: StudentEnsemble | None = None
        self.spread: Tensor | None = None  # (L, 2, 2): of error and variance, mean and deviation
        self.facts: dict[str, Any] = {}
        self._upsamplers: dict[tuple[int, int], MapUpsampler] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        require_device(run)
        groups = images.groups()
        # Of two, each is scaled by the statistics of the other.
        apart = hold_out(images, run.seed, least=2)
        mine = np.setdiff1d(np.arange(len(images)), apart)
        if not len(apart):
            raise DataError(
                "One image cannot be trained on and kept apart as well.",
                hint="Give at least two different normal images.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.ensemble = ensemble = self._untaught()
        self.facts = {"images": len(mine), "teacher": self._teach(ensemble, images, mine, run)}
        data = TaughtImages(images, mine, run, ensemble.taught)
        ensemble.scales.copy_(self._scales(data, ensemble))
        self.facts |= self._train(data, ensemble, run)
        self.eval()
        return self._measure(images, groups, apart, run)

    def _untaught(self) -> StudentEnsemble:
        cfg = self.config
        return StudentEnsemble(cfg.patch_sizes, cfg.students, cfg.width, cfg.stride)

    def _teach(
        self, ensemble: StudentEnsemble, images: Normals, mine: Int64, run: Run
    ) -> dict[str, Any]:
        """Make the teachers what they stay; where they come from."""
        cfg = self.config
        networks = [cast(PatchNetwork, teacher) for teacher in ensemble.teachers]
        if cfg.teacher == "random":
            facts: dict[str, Any] = {"from": "random weights"}
        elif cfg.teacher == "distill":
            facts = self._distilled(networks, images, mine, run)
        elif not Path(cfg.teacher).is_file():
            raise OptionError(
                f"teacher={cfg.teacher} is no file.",
                hint="Choose distill or random, or the path of an .amiss of uninformed_students.",
            )
        else:
            facts = teachers_in(Path(cfg.teacher), networks)
        ensemble.teachers.eval().requires_grad_(False)
        return facts

    def _distilled(
        self, networks: list[PatchNetwork], images: Normals, mine: Int64, run: Run
    ) -> dict[str, Any]:
        cfg = self.config
        source = FeatureExtractor(cfg.backbone, ("32",), weights=cfg.weights, seed=run.seed)
        pictures, said = pictures_for(cfg.distill_data, images, mine, run)
        run.say(f"teachers: distilled from {cfg.backbone} on {said}")
        job = {"stage": "teachers", "seed": run.seed, **cfg.as_dict()}
        job = {k: v for k, v in job.items() if k not in _OF_STUDENTS}
        job["weights_sha256"] = source.facts["weights_sha256"]
        taught = teach(networks, source, pictures, cfg.lessons(), run.stage("teachers"), job)
        return {
            "from": f"{cfg.backbone}, {source.facts['weights_origin']}",
            "source_weights_sha256": source.facts["weights_sha256"],
            "pictures": said,
            **taught,
        }

    def _scales(self, data: TaughtImages, ensemble: StudentEnsemble) -> Tensor:
        """Mean and deviation of each entry that the teachers give, over the cells of all training
        images that count: (L, D, 2)."""
        total = torch.zeros(*ensemble.scales.shape[:2], 3, dtype=torch.float64)
        for place in range(len(data)):
            batch = data.at(np.array([place]))
            with torch.no_grad():
                said = batch.targets or ensemble.taught(batch.images)
            total += torch.stack([sums(y[0], self._cells(batch.rois)) for y in said])
        return spread(total)

    def _cells(self, roi: Tensor | None) -> Tensor | None:
        """(B, h, w) bool: the cells that lie inside."""
        return None if roi is None else roi_cells(roi, self._grid()).unflatten(1, self._grid())

    def _train(self, data: TaughtImages, ensemble: StudentEnsemble, run: Run) -> dict[str, Any]:
        """Each student by itself, with an optimizer of its own; the facts of it."""
        cfg = self.config
        places = [(level, i) for level in range(len(cfg.patch_sizes)) for i in range(cfg.students)]
        players = {
            f"student_{cfg.patch_sizes[level]}_{i}": Player(
                student,
                torch.optim.Adam(
                    student.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay
                ),
            )
            for (level, i), student in zip(places, ensemble.students, strict=True)
        }

        def step(loop: Loop, batch: TaughtBatch) -> Losses:
            x = as_input(batch.images)
            if batch.targets is None:
                ensemble.teachers.to(loop.fabric.device)
            with torch.no_grad():
                said = batch.targets or ensemble.taught(batch.images)
                targets = [ensemble.scaled(level, y) for level, y in enumerate(said)]
            cells = self._cells(batch.rois)
            reported: dict[str, Tensor] = {}
            for (level, _), name in zip(places, players, strict=True):
                loss = regression_loss(loop.networks[name](x), targets[level], cells)
                loop.backward(loss)
                loop.update(name)
                key = f"loss_{cfg.patch_sizes[level]}"
                reported[key] = reported.get(key, 0.0) + loss.detach() / cfg.students
            return reported

        # How long the teachers took differs when they are read back after an interruption.
        teacher = {k: v for k, v in self.facts["teacher"].items() if k != "seconds"}
        history = train(
            players, data, step, epochs=cfg.epochs, batch_size=cfg.batch_size, run=run,
            job={**cfg.as_dict(), "seed": run.seed, "teacher": teacher}, stage="students",
        )  # fmt: skip
        ensemble.cpu().requires_grad_(False)
        return history.facts()

    def _measure(self, images: Normals, groups: Int64, apart: Int64, run: Run) -> HeldOut:
        """The spread of error and variance on images held out, and what those score."""
        assert self.ensemble is not None
        maps: dict[int, Tensor] = {}
        rois: dict[int, Tensor | None] = {}
        by_group: dict[int, Tensor] = {}
        for numbers, found, roi in embedded(
            self.ensemble, images, apart.tolist(), run, stage="held out"
        ):
            for i, number in enumerate(numbers.tolist()):
                maps[number] = found[i : i + 1].clone()
                rois[number] = None if roi is None else roi[i : i + 1]
                own = sums(maps[number][0], self._cells(rois[number]))
                group = int(groups[number])
                by_group[group] = by_group.get(group, torch.zeros_like(own)) + own
        self.spread, without = spreads_without(by_group)

        def judge(number: int) -> tuple[Prediction[Tensor], Tensor | None]:
            roi = rois[number]
            return self._score(maps[number], without[int(groups[number])], roi), roi

        how = told_held_out(apart, images)
        if len(by_group) == 1:
            how += ", scaled by its own statistics, as it is the only one"
        return judge_held_out(judge, apart, run, how)

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.ensemble is not None and self.spread is not None
        # One by one: less memory, and no score depends on batch-mates in its last bit. An exported
        # graph must not ask for the size of its batch.
        if torch.compiler.is_compiling():
            found = self.ensemble(images)
        else:
            found = torch.cat([self.ensemble(image) for image in images.split(1)])
        return self._score(found, self.spread, roi)

    def _score(
        self, disagreements: Tensor, spread: Tensor, roi: Tensor | None
    ) -> Prediction[Tensor]:
        """(B, L, 2, h, w) -> the scores: the mean over patch sizes of what e and v add up to."""
        mean, deviation = spread[:, :, 0], spread[:, :, 1]  # (L, 2)
        terms = (disagreements - mean[:, :, None, None]) / deviation[:, :, None, None]
        if self.config.students == 1:  # one alone agrees with itself
            terms = terms[:, :, :1]
        on_grid = terms.sum(2).mean(1)  # (B, h, w)
        grid = self._grid()
        if grid not in self._upsamplers:  # a table: several threads may make it at once
            self._upsamplers[grid] = MapUpsampler(grid, self.image_size, self.config.blur_sigma)
        upsample = self._upsamplers[grid]
        if roi is None:
            return Prediction(on_grid.flatten(1).amax(dim=1), upsample(on_grid))
        cells = roi_cells(roi, grid).unflatten(1, grid)
        lowest = torch.full_like(on_grid, -torch.inf)
        score = torch.where(cells, on_grid, lowest).flatten(1).amax(dim=1)
        return Prediction(score, upsample(on_grid, cells) * roi)

    def _grid(self) -> tuple[int, int]:
        height, width = self.image_size
        return height // self.config.stride, width // self.config.stride

    def summary(self) -> str:
        cfg = self.config
        sizes = " and ".join(map(str, cfg.patch_sizes))
        return (
            f"{cfg.students} students of {sizes} px patches, {cfg.stride} px apart, from "
            f"{self.facts['images']} images; teacher: {self.facts['teacher']['from']}"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.spread is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.ensemble is not None and self.spread is not None
        tensors = {f"ensemble.{k}": v for k, v in self.ensemble.state_dict().items()}
        return {"students": self.facts}, tensors | {"spread": self.spread}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        with torch.random.fork_rng(devices=[]):
            ensemble = self._untaught().requires_grad_(False)
        own = {k: v for k, v in tensors.items() if k.startswith("ensemble.")}
        ensemble.load_state_dict({k.removeprefix("ensemble."): v for k, v in own.items()})
        self.ensemble, self.spread = ensemble, tensors["spread"]
        self.facts = dict(facts["students"])
        if self.spread.shape != (len(self.config.patch_sizes), 2, 2):
            raise KeyError(f"a spread of shape {tuple(self.spread.shape)}")
