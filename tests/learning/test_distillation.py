"""Which patches teachers are taught on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.data.pictures import Pictures
from amiss.errors import DataError
from amiss.learning.distillation import (
    Lessons,
    _losses,
    crop_side,
    patches_of,
    source_descriptors,
    teach,
)
from amiss.nn.backbone import FeatureExtractor
from amiss.nn.patch_network import PatchNetwork
from amiss.run import Run
from amiss.types import Record, UInt8
from made_images import textures

LESSONS: dict[str, Any] = {
    "steps": 30, "batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.0,
    "distill_weight": 1.0, "triplet_weight": 1.0, "compactness_weight": 1.0, "margin": 1.0,
    "grid": 1, "crop_low": 1.0, "crop_high": 2.0,
}  # fmt: skip


class Watched(Pictures):
    """Remembers of which pictures crops were taken."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__(records)
        self.taken: list[int] = []

    def crop(self, number: int, side: int, low: int, high: int, dice: Any) -> UInt8:
        self.taken.append(number)
        return super().crop(number, side, low, high, dice)


def _taught(folder: Path, count: int, **change: Any) -> Watched:
    pictures = Watched([Record(p) for p in sorted(textures(folder, count, seed=3).iterdir())])
    source = FeatureExtractor("test_efficientnet", ("32",), weights="random")
    lessons = Lessons(**LESSONS | change)
    facts = teach([PatchNetwork(17, 0.05)], source, pictures, lessons, Run(), {})
    assert facts["steps"] == lessons.steps
    return pictures


def test_every_picture_is_seen_and_no_two_neighbours_are_of_one(tmp_path: Path) -> None:
    pictures = _taught(tmp_path, 20, batch_size=6)
    taken = np.array(pictures.taken).reshape(30, 6)
    assert set(taken.flat) == set(range(20))
    assert (taken[:, 1:] != taken[:, :-1]).all()


@pytest.mark.parametrize("steps", [7, 101, 150])
def test_teachers_take_as_many_steps_as_asked(tmp_path: Path, steps: int) -> None:
    pictures = _taught(tmp_path, 3, steps=steps)
    assert len(pictures.taken) == 2 * steps


def test_triplets_of_one_picture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one picture only"):
        _taught(tmp_path, 1)
    _taught(tmp_path, 1, triplet_weight=0.0)


def test_a_crop_holds_its_patches_and_what_a_positive_moves_by() -> None:
    assert crop_side(17, Lessons(**LESSONS)) == 17 + 2 * 4
    assert (
        crop_side(33, Lessons(**LESSONS | {"triplet_weight": 0.0, "grid": 3, "batch_size": 9}))
        == 33 + 16
    )
    crops = torch.arange(25 * 25).view(1, 1, 25, 25).expand(2, 3, 25, 25)
    patches = patches_of(crops, 17)
    assert patches.shape == (8, 3, 17, 17)
    assert torch.equal(patches[1, 0], crops[0, 0, :17, 8:25])
    assert torch.equal(patches[4], patches[0])


class _Mean(nn.Module):
    """Describes a crop by the mean and the deviation of its levels; both times decoded by 3."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        self.given.append(crops)
        levels = crops.flatten(1)
        descriptors = torch.stack([levels.mean(1), levels.std(1)], dim=1)
        return descriptors, 3 * descriptors


class _Source(nn.Module):
    """Says of a patch its mean level and the brightest, at two cells."""

    def at_once(self, shown: Tensor) -> tuple[Tensor, ...]:
        assert shown.shape[1:] == (3, 64, 64)
        mean = shown.mean((1, 2, 3))
        cells = torch.stack([mean - 1, mean + 1], dim=1)[:, None]  # (N, 1, 2)
        bright = shown.amax((1, 2, 3))[:, None, None].expand(-1, 1, 2)
        return shown, torch.cat([cells, bright], dim=1)[:, :, None]


def test_the_source_describes_a_patch_by_the_mean_of_its_deepest_cells() -> None:
    patches = torch.stack([torch.full((3, 17, 17), v, dtype=torch.uint8) for v in (10, 200)])
    found = source_descriptors(_Source(), patches)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([[10.0, 10.0], [200.0, 200.0]]))


def test_the_losses_are_those_of_the_pairs_that_the_paper_makes() -> None:
    lessons = Lessons(**LESSONS | {
        "batch_size": 3, "distill_weight": 2.0, "triplet_weight": 5.0, "compactness_weight": 7.0,
        "margin": 0.3,
    })  # fmt: skip
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (3, 1, 25, 25), dtype=torch.uint8).expand(3, 3, 25, 25)
    apprentice = _Mean()
    torch.manual_seed(1)
    found = _losses(apprentice, _Source(), crops, 17, lessons)  # type: ignore[arg-type]
    anchors, positives = apprentice.given
    middle = crops[:, :, 4:21, 4:21]
    torch.testing.assert_close(anchors, middle.float() / 127.5 - 1)
    # A positive is the patch moved by up to a quarter of its side, with noise of 0.1 of the range.
    for number, positive in enumerate(positives):
        left = [
            float((positive - crops[number, :, y : y + 17, x : x + 17] / 127.5 + 1).std())
            for y in range(9) for x in range(9)
        ]  # fmt: skip
        assert min(left) == pytest.approx(0.2, rel=0.1) and sorted(left)[1] > 0.5
    a, decoded = _Mean()(anchors)
    p, _ = _Mean()(positives)
    wanted = source_descriptors(_Source(), middle)  # type: ignore[arg-type]
    distillation = (decoded - wanted).square().sum(1).mean()
    torch.testing.assert_close(found["distillation"], distillation)
    n = a[[1, 0, 1]]  # the crop before; of the first, the second
    near = (a - p).square().sum(1)
    far = torch.minimum((a - n).square().sum(1), (p - n).square().sum(1))
    torch.testing.assert_close(found["triplet"], F.relu(0.3 + near - far).mean())
    total = 2 * found["distillation"] + 5 * found["triplet"] + 7 * found["compactness"]
    torch.testing.assert_close(found["loss"], total)
