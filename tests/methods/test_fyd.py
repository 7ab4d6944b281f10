"""FYD: what it shares with PaDiM, what training it changes, how it is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import amiss
from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.errors import DataError
from amiss.methods.fyd import FYD
from amiss.methods.padim import PaDiM
from amiss.run import Run
from made_images import textures

SHARED: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (48, 64),
    "layers": ("4", "8"),
    "dim": 20,
}
TINY: dict[str, Any] = {**SHARED, "head_dim": 16, "batch_size": 4, "epochs": 2}


@pytest.fixture(scope="module")
def images(normals: Path) -> torch.Tensor:
    """(12, 3, 48, 64) uint8."""
    (batch,) = ImageStream(index(normals).train, size=(48, 64)).batches(12)
    return torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("options", [{"epochs": 0}, {"align": "none"}])
def test_untrained_it_is_padim_to_the_bit(
    normals: Path, images: torch.Tensor, options: dict[str, Any]
) -> None:
    padim = PaDiM(**SHARED).fit(normals, max_false_alarm=0.1)
    fyd = FYD(**TINY | options).fit(normals, max_false_alarm=0.1)
    with torch.inference_mode():
        one, other = padim(images.flip(2)), fyd(images.flip(2))
    assert torch.equal(one.score, other.score)
    assert torch.equal(one.anomaly_map, other.anomaly_map)
    assert padim.calibration is not None and fyd.calibration is not None
    assert np.array_equal(padim.calibration.scores, fyd.calibration.scores)


def test_trained_it_is_judged_by_images_that_it_has_not_seen(normals: Path) -> None:
    detector = FYD(**TINY).fit(normals, max_false_alarm=0.4)
    assert detector.calibration is not None
    assert len(detector.calibration.scores) == 2  # a fifth of 12
    assert detector.facts["images"] == 10 and "held out" in detector.calibration.how
    assert len(detector.training_digests) == 12  # held out, and yet not to be evaluated on
    losses = detector.facts["losses"]
    assert set(losses) == {"loss", "fine", "coarse", "drift", "spread"}
    assert len(losses["fine"]) == 2


def test_a_saved_one_moves_alike(normals: Path, images: torch.Tensor, tmp_path: Path) -> None:
    detector = FYD(**TINY).fit(normals, max_false_alarm=0.4)
    assert detector.alignment is not None and detector.alignment.is_moving
    path = detector.save(tmp_path / "part.amiss")
    again = amiss.load(path)
    with torch.inference_mode():
        one, other = detector(images), again(images)
    assert torch.equal(one.score, other.score) and torch.equal(one.anomaly_map, other.anomaly_map)


def test_too_few_images_to_align_are_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be aligned"):
        FYD(**TINY).fit(textures(tmp_path / "two", 2, seed=1))


def test_an_interrupted_training_ends_alike(normals: Path, tmp_path: Path) -> None:
    whole = FYD(**TINY).fit(normals, max_false_alarm=0.4)
    run = Run(partial=tmp_path / "x.partial")
    count = 0

    def interrupt(stage: str, done: int, total: int) -> None:
        nonlocal count
        if stage == "training" and not run.partial.exists():  # type: ignore[union-attr]
            count += 1
            if count == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FYD(**TINY).fit(normals, run=Run(partial=run.partial, progress=interrupt))
    again = FYD(**TINY).fit(normals, max_false_alarm=0.4, run=run)
    mine, theirs = whole.artifact()[1], again.artifact()[1]
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_parts_of_a_batch_are_another_way_through_it(normals: Path) -> None:
    one = FYD(**TINY).fit(normals, max_false_alarm=0.4)
    other = FYD(**TINY, parts=2).fit(normals, max_false_alarm=0.4)
    a, b = one.facts["losses"]["coarse"], other.facts["losses"]["coarse"]
    assert a != b and a[0] == pytest.approx(b[0], rel=0.3)


def test_an_image_held_out_has_no_twin_among_those_trained_on(tmp_path: Path) -> None:
    folder = textures(tmp_path / "twins", 5, seed=1)
    for i in range(5):
        (folder / f"{i:03}b.png").write_bytes((folder / f"{i:03}.png").read_bytes())
    detector = FYD(**TINY).fit(folder, max_false_alarm=0.4)
    assert detector.calibration is not None
    assert len(detector.calibration.scores) == 2 and detector.facts["images"] == 8
    files = [row["file"] for row in detector.training_facts["least_normal"]]
    assert len({name[:3] for name in files}) == 1  # both of a pair
