"""`Sound`, a small detector that passes every check; for each check, one that it must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.learning.held_out import HeldOut, map_statistics
from amiss.learning.normals import Normals, to_tensors
from amiss.methods.base import Detector
from amiss.nn.roi import roi_cells
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction


@dataclass(frozen=True, kw_only=True)
class SoundConfig(Config):
    """Options of `Sound`."""

    cell: int = option(4, "side of the squares whose mean colour is compared, pixels", low=1)
    floor: float = option(1.0, "added to the spread of the normal colours, levels", low=1e-3)


class Sound(Detector):
    """How far the mean colour of a square lies from that of normal squares, in their spreads."""

    id: ClassVar[str] = "sound"
    paper: ClassVar[str] = "made for the tests"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    config_type: ClassVar[type[Config]] = SoundConfig
    config: SoundConfig

    def __init__(
        self,
        *,
        image_size: tuple[int, int] = SoundConfig.image_size,
        resize: str = SoundConfig.resize,
        cell: int = SoundConfig.cell,
        floor: float = SoundConfig.floor,
    ) -> None:
        config = self.config_type(image_size=image_size, resize=resize, cell=cell, floor=floor)  # type: ignore[call-arg]
        super().__init__(config)
        self.normal: Tensor | None = None  # (2, 3): mean and spread of the normal colours

    def learn(self, images: Normals, run: Run) -> HeldOut:
        cells, rois = [], []
        for batch in images.batches(run.batch_size):
            x, roi = to_tensors(batch.images, batch.rois)
            for i in range(len(x)):
                mask = None if roi is None else roi[i : i + 1]
                cells.append(self._inside(self._cells(x[i : i + 1]), mask))
                rois.append(mask)
        self.normal = self._summary(cells)
        return self._held_out(images, cells, run)

    def _held_out(self, images: Normals, cells: list[Tensor], run: Run) -> HeldOut:
        """Leave one out: each image against the colours of the others."""
        scores, peaks, middles = [], [], []
        for batch in images.batches(run.batch_size):
            x, roi = to_tensors(batch.images, batch.rois)
            for row, i in enumerate(batch.indices):
                normal = self._summary([c for j, c in enumerate(cells) if j != i])
                mask = None if roi is None else roi[row : row + 1]
                score, maps = self._score(x[row : row + 1], mask, normal)
                assert maps is not None
                peak, middle = map_statistics(maps, mask)
                scores.append(float(score))
                peaks.append(float(peak))
                middles.append(float(middle))
        order = np.arange(len(cells))
        return HeldOut(
            order, np.array(scores), np.array(peaks), np.array(middles), "leaving one out"
        )

    def _cells(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float(), self.config.cell)  # (B, 3, h, w)

    def _inside(self, cells: Tensor, roi: Tensor | None) -> Tensor:
        """(3, N): the squares that lie inside."""
        flat = cells.flatten(2)[0]
        return flat if roi is None else flat[:, self._looked_at(cells, roi)[0]]

    def _looked_at(self, cells: Tensor, roi: Tensor) -> Tensor:
        h, w = cells.shape[2:]
        side = self.config.cell
        return roi_cells(roi[:, : h * side, : w * side], (h, w))

    def _summary(self, cells: list[Tensor]) -> Tensor:
        values = torch.cat(cells, dim=1).double()
        spread = values.std(dim=1) + self.config.floor
        return torch.stack([values.mean(dim=1), spread]).float()

    def _score(self, images: Tensor, roi: Tensor | None, normal: Tensor) -> Prediction[Tensor]:
        cells = self._cells(images)
        mean, spread = normal[:, None, :, None, None]
        distance = ((cells - mean).abs() / spread).mean(dim=1)  # (B, h, w)
        maps = F.interpolate(distance[:, None], size=images.shape[2:], mode="nearest")[:, 0]
        flat = distance.flatten(1)
        if roi is None:
            return Prediction(flat.amax(1), maps)
        looked_at = self._looked_at(cells, roi)
        return Prediction(flat.masked_fill(~looked_at, 0).amax(1), maps * roi)

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        assert self.normal is not None
        return self._score(images, roi, self.normal)

    @property
    def is_fitted(self) -> bool:
        return self.normal is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.normal is not None
        return {"channels": 3}, {"normal": self.normal}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.normal = tensors["normal"]


BROKEN: list[tuple[str, str]] = []
"""(name of a check, name of a class here that it must catch)"""


def breaks(*checks: str) -> Callable[[type[Sound]], type[Sound]]:
    """Register a class as broken in just what these checks look at."""

    def register(kind: type[Sound]) -> type[Sound]:
        BROKEN.extend((check, kind.__name__) for check in checks)
        return kind

    return register


# --- what a class declares -------------------------------------------------------------------


@breaks("capabilities_are_declared")
class NamesNoPaper(Sound):
    paper = " "


@breaks("capabilities_are_declared")
class GivesNoReason(Sound):
    exportable = False


@breaks("capabilities_are_declared")
class HasAnotherId(Sound):
    id = "another"


@breaks("a_page_of_the_docs_exists")
class HasNoPage(Sound):
    """Its subject looks for the page in an empty folder."""


@breaks("the_constructor_mirrors_the_config")
class HasAnotherDefault(Sound):
    def __init__(
        self,
        *,
        image_size: tuple[int, int] = SoundConfig.image_size,
        resize: str = SoundConfig.resize,
        cell: int = 7,
        floor: float = SoundConfig.floor,
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, cell=cell, floor=floor)


@breaks("the_constructor_mirrors_the_config")
class ForgetsAnOption(Sound):
    def __init__(
        self,
        *,
        image_size: tuple[int, int] = SoundConfig.image_size,
        cell: int = SoundConfig.cell,
        floor: float = SoundConfig.floor,
    ) -> None:
        super().__init__(image_size=image_size, cell=cell, floor=floor)


@dataclass(frozen=True, kw_only=True)
class SilentConfig(SoundConfig):
    cell: int = option(4, " ", low=1)


@breaks("every_option_says_what_it_is")
class ExplainsNothing(Sound):
    config_type = SilentConfig


# --- fit -------------------------------------------------------------------------------------


@breaks("fit_returns_self")
class ReturnsNothing(Sound):
    def fit(self, data: Any, **options: Any) -> Any:
        super().fit(data, **options)


@breaks("fit_returns_self")
class StaysInTraining(Sound):
    def eval(self) -> Any:
        return self.train()


@breaks("fit_leaves_the_config_alone")
class ChangesItsConfig(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        self.config = dataclasses.replace(self.config, floor=2.0)
        return super().learn(images, run)


@breaks("the_same_seed_gives_the_same_scores", "the_same_seed_gives_the_same_bytes")
class IgnoresTheSeed(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        found = super().learn(images, run)
        assert self.normal is not None
        self.normal = self.normal + 0.1 * torch.rand_like(self.normal)
        return found


@breaks("the_same_seed_gives_the_same_bytes")
class StoresNoise(Sound):
    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, tensors = super().artifact()
        return facts, tensors | {"noise": torch.rand(3)}


@breaks("fit_leaves_the_global_random_state_alone")
class SeedsEverybody(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        torch.manual_seed(run.seed)
        return super().learn(images, run)


@breaks("fit_leaves_the_global_random_state_alone")
class DrawsFromTheGlobalState(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        np.random.permutation(len(images))  # noqa: NPY002 - this is what is broken
        return super().learn(images, run)


@breaks("a_second_fit_equals_a_fresh_one")
class RemembersTheFirstFit(Sound):
    before: ClassVar[Tensor | None] = None  # of the class: a fit begins with a blank detector

    def learn(self, images: Normals, run: Run) -> HeldOut:
        found = super().learn(images, run)
        assert self.normal is not None
        if RemembersTheFirstFit.before is not None:
            self.normal = (self.normal + RemembersTheFirstFit.before) / 2
        RemembersTheFirstFit.before = self.normal
        return found


@breaks("fitting_in_other_batches_gives_the_same")
class LearnsOfTheFirstBatchOnly(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        found = super().learn(images, run)
        batch = next(images.batches(run.batch_size))
        x, _ = to_tensors(batch.images, None)
        self.normal = self._summary([self._inside(self._cells(x[:1]), None) * len(x)])
        return found


@breaks("held_out_scores_are_complete")
class ForgetsTheMaps(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        return super().learn(images, run)._replace(map_maxima=None)


@breaks("held_out_scores_are_complete")
class CountsAnImageTwice(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        found = super().learn(images, run)
        return found._replace(indices=np.zeros_like(found.indices))


@breaks("held_out_scores_belong_to_their_images")
class MixesItsImagesUp(Sound):
    def learn(self, images: Normals, run: Run) -> HeldOut:
        found = super().learn(images, run)
        return found._replace(indices=np.roll(found.indices, 1))


# --- forward ---------------------------------------------------------------------------------


@breaks("forward_before_fit_is_a_named_error")
class ScoresWithoutLearning(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        if self.normal is None:
            return Prediction(torch.zeros(len(images)), torch.zeros_like(images[:, 0]).float())
        return super().forward(images, roi)


@breaks("shapes_are_as_declared")
class KeepsAnAxisOfTheScore(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return found._replace(score=found.score[:, None])


@breaks("shapes_are_as_declared")
class DropsTheBatchOfOne(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return Prediction(found.score.squeeze(), found.anomaly_map)


@breaks("shapes_are_as_declared")
class SwapsHeightAndWidth(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        assert found.anomaly_map is not None
        return found._replace(anomaly_map=found.anomaly_map.transpose(1, 2))


@breaks("shapes_are_as_declared")
class LocalizesInSecret(Sound):
    localizes = False


@breaks("types_are_float32")
class ScoresInDouble(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return found._replace(score=found.score.double())


@breaks("any_image_has_finite_scores")
class DividesByTheBrightness(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        assert found.anomaly_map is not None
        brightness = images.float().mean((1, 2, 3))
        return found._replace(anomaly_map=found.anomaly_map / brightness[:, None, None])


@breaks("forward_leaves_its_input_alone")
class WritesIntoItsInput(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        images.zero_()
        return found


@breaks("scores_do_not_depend_on_batch_mates")
class ComparesWithItsBatch(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return found._replace(score=found.score - 0.01 * found.score.mean())


@breaks("scores_do_not_depend_on_batch_mates")
class TakesTheFirstRoiForAll(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        return super().forward(images, None if roi is None else roi[:1].expand_as(roi))


@breaks("predict_does_not_depend_on_batch_size_or_order")
class RemembersWhatItSaw(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.calls = getattr(self, "calls", 0) + 1
        found = super().forward(images, roi)
        return found._replace(score=found.score + 0.01 * self.calls)


@breaks("a_planted_defect_scores_above_its_clean_twin")
class ScoresUpsideDown(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return found._replace(score=-found.score)


@breaks("the_peak_of_the_map_lies_in_the_defect")
class DrawsTheMapMirrored(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        assert found.anomaly_map is not None
        return found._replace(anomaly_map=found.anomaly_map.flip(2))


# --- region of interest ----------------------------------------------------------------------


@breaks("a_roi_of_everything_changes_nothing")
class DampsWhereARoiIs(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return found if roi is None else found._replace(score=0.9 * found.score)


@breaks("the_map_is_zero_outside_the_roi")
class DrawsOutsideTheRoi(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        whole = super().forward(images).anomaly_map
        return super().forward(images, roi)._replace(anomaly_map=whole)


@breaks("a_defect_outside_the_roi_hardly_counts")
class JudgesOutsideTheRoi(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        return super().forward(images, roi)._replace(score=super().forward(images).score)


@breaks("what_lies_outside_the_roi_is_not_learned")
class LearnsOutsideTheRoi(Sound):
    def _inside(self, cells: Tensor, roi: Tensor | None) -> Tensor:
        return super()._inside(cells, None)


@breaks("the_roi_of_the_fit_holds_in_predict")
class ForgetsTheRoi(Sound):
    def keep_roi(self, path: Any) -> None:
        self.roi = None


# --- storing ---------------------------------------------------------------------------------


@breaks("a_fresh_process_scores_bit_for_bit_alike")
class StoresHalfPrecision(Sound):
    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, tensors = super().artifact()
        return facts, {k: v.half() for k, v in tensors.items()}

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().restore(facts, {k: v.float() for k, v in tensors.items()})


@breaks("a_fresh_process_scores_bit_for_bit_alike")
class StoresTooLittle(Sound):
    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, _ = super().artifact()
        return facts, {}


@breaks("facts_are_plain_json")
class StoresATuple(Sound):
    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, tensors = super().artifact()
        return facts | {"size": (1, 2)}, tensors


@breaks("facts_are_plain_json")
class StoresANumpyNumber(Sound):
    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts, tensors = super().artifact()
        return facts | {"size": np.float32(1)}, tensors


# --- options ---------------------------------------------------------------------------------


@breaks("every_option_has_an_effect")
class IgnoresAnOption(Sound):
    """`floor` is overwritten, so that it is a dead knob."""

    def _summary(self, cells: list[Tensor]) -> Tensor:
        values = torch.cat(cells, dim=1).double()
        return torch.stack([values.mean(dim=1), values.std(dim=1) + 1]).float()


@breaks("every_option_has_an_effect")
class IgnoresTheResizing(Sound):
    """`resize` reaches nothing: the frame is always squashed."""

    def fit(self, data: Any, **options: Any) -> Any:
        if self.config.resize != "squash":
            self.config = dataclasses.replace(self.config, resize="squash")
        return super().fit(data, **options)


@breaks("the_registry_says_what_the_class_says")
class NamesAnotherPaper(Sound):
    paper: ClassVar[str] = "made for something else"


# --- leaving torch ---------------------------------------------------------------------------


@breaks("an_export_agrees_or_the_reason_is_given")
class SaysSomethingElseInAGraph(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        if torch.compiler.is_compiling():
            return found._replace(score=1.001 * found.score)
        return found


@breaks("an_export_agrees_or_the_reason_is_given")
class FixesTheBatchInAGraph(Sound):
    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        found = super().forward(images, roi)
        return found._replace(score=found.score[: int(images.shape[0])] + 0)
