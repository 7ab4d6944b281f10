"""Which patches teachers are taught on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amiss.data.pictures import Pictures
from amiss.errors import DataError
from amiss.learning.distillation import Lessons, crop_side, patches_of, teach
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
