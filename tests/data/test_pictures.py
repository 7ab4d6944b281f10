"""Crops of pictures to teach on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amiss.data.pictures import Pictures, pictures_in
from amiss.errors import DataError
from amiss.types import Record
from made_images import textures, write


def _ramp(path: Path, height: int, width: int) -> Record:
    """A picture whose red is its row and whose green is its column."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.arange(height)[:, None]
    picture[..., 1] = np.arange(width)
    write(picture, path)
    return Record(path)


def _side(crop: np.ndarray, side: int) -> float:
    """How many pixels of the picture a crop of `_ramp` spans."""
    return float(crop[0, -1, 1].astype(int) - crop[0, 0, 1]) * side / (side - 1)


@pytest.mark.parametrize(("dice", "expected"), [(0.0, 64), (0.999, 128)])
def test_crops_of_a_large_picture_are_as_large_as_asked(
    tmp_path: Path, dice: float, expected: int
) -> None:
    pictures = Pictures([_ramp(tmp_path / "a.png", 200, 250)])
    crop = pictures.crop(0, 16, 64, 128, (dice, 0.5, 0.5))
    assert crop.shape == (16, 16, 3) and crop.dtype == np.uint8
    assert _side(crop, 16) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(("dice", "expected"), [(0.0, 40), (0.999, 80)])
def test_a_small_picture_is_cut_from_half_of_its_shorter_side_to_all_of_it(
    tmp_path: Path, dice: float, expected: int
) -> None:
    pictures = Pictures([_ramp(tmp_path / "a.png", 80, 120)])
    crop = pictures.crop(0, 16, 64, 128, (dice, 0.0, 0.999))
    assert _side(crop, 16) == pytest.approx(expected, abs=2)


def test_crops_lie_anywhere_in_a_picture(tmp_path: Path) -> None:
    pictures = Pictures([_ramp(tmp_path / "a.png", 100, 100)])
    first = pictures.crop(0, 8, 40, 40, (0.5, 0.0, 0.0))
    last = pictures.crop(0, 8, 40, 40, (0.5, 0.999, 0.999))
    assert first[0, 0, :2].tolist() < [5, 5] and last[-1, -1, :2].tolist() > [95, 95]


def test_pictures_without_room_are_read_again(tmp_path: Path) -> None:
    record = _ramp(tmp_path / "a.png", 50, 50)
    kept, read = Pictures([record]), Pictures([record], room=0)
    one = [kept.crop(0, 8, 20, 40, (0.1, 0.2, 0.3)) for _ in range(2)]
    other = [read.crop(0, 8, 20, 40, (0.1, 0.2, 0.3)) for _ in range(2)]
    assert np.array_equal(one, other)
    record.path.unlink()
    assert np.array_equal(kept.crop(0, 8, 20, 40, (0.1, 0.2, 0.3)), one[0])


def test_a_folder_leaves_out_what_is_held_out(tmp_path: Path) -> None:
    folder = textures(tmp_path / "pictures", 3, seed=1)
    paths = sorted(folder.iterdir())
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(paths[1].read_bytes())
    found = pictures_in(folder, without=[Record(copy)])
    assert [record.path for record in found] == [paths[0], paths[2]]
    with pytest.raises(DataError, match="but the images that are held out"):
        pictures_in(folder, without=[Record(path) for path in paths])


def test_an_empty_folder_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no picture"):
        pictures_in(tmp_path)
