"""Resizing images, masks and maps: squash, letterbox and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from amiss.data import (
    inner_roi,
    resize_image,
    resize_mask,
    restore_map,
)
from amiss.errors import OptionError

H, W = 20, 30


@pytest.fixture
def rgb() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def save(array: npt.NDArray[np.generic], path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_squash_and_identity(rgb):
    image, geometry = resize_image(rgb, (H, W))
    assert image is rgb and geometry.original == geometry.size == (H, W)
    image, geometry = resize_image(rgb, (8, 16))
    expected = Image.fromarray(rgb).resize((16, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(image, np.asarray(expected))
    assert geometry.inner == (0, 0, 8, 16) and inner_roi(geometry) is None


def test_letterbox_round_trip():
    image = np.full((40, 80, 3), 200, np.uint8)
    frame, geometry = resize_image(image, (64, 64), "letterbox")
    assert geometry.inner == (16, 0, 32, 64)
    assert not frame[:16].any() and not frame[48:].any() and (frame[16:48] == 200).all()
    roi = inner_roi(geometry)
    assert roi is not None and roi.sum() == 32 * 64 and roi[16:48].all()
    row, column = np.mgrid[:64, :64].astype(np.float32)
    restored = restore_map(column, geometry)
    assert restored.shape == (40, 80) and restored.dtype == np.float32
    # The left half of the image is the left half of the frame.
    assert np.allclose(restored[:, 1:-1], (np.arange(1, 79) + 0.5) * 64 / 80 - 0.5, atol=1e-4)
    rows = restore_map(row, geometry)
    assert np.allclose(rows[1:-1, 0], (np.arange(1, 39) + 0.5) * 32 / 40 - 0.5 + 16, atol=1e-4)


def test_letterbox_without_padding_and_tall_images():
    image = np.full((90, 30, 3), 9, np.uint8)
    _, geometry = resize_image(image, (30, 10), "letterbox")
    assert geometry.inner == (0, 0, 30, 10) and inner_roi(geometry) is None
    _, geometry = resize_image(image, (30, 30), "letterbox")
    assert geometry.inner == (0, 10, 30, 10)
    _, geometry = resize_image(np.zeros((1, 500, 3), np.uint8), (20, 20), "letterbox")
    assert geometry.inner[2:] == (1, 20)


def test_masks_follow_their_image():
    mask = np.zeros((40, 80), bool)
    mask[10:20, 20:60] = True
    for mode in ("squash", "letterbox"):
        _, geometry = resize_image(np.zeros((40, 80, 3), np.uint8), (32, 48), mode)
        small = resize_mask(mask, geometry)
        assert small.shape == (32, 48) and small.dtype == np.bool_
        _, _, height, width = geometry.inner
        assert small.mean() == pytest.approx(mask.mean() * height * width / (32 * 48), rel=0.05)
        back = restore_map(small.astype(np.float32), geometry) > 0.5
        assert (back ^ mask).mean() < 0.02
    with pytest.raises(OptionError, match="must agree"):
        resize_mask(mask.T, geometry)
    with pytest.raises(OptionError, match="must agree"):
        restore_map(np.zeros((3, 3), np.float32), geometry)


def test_nearest_takes_the_pixel_under_the_centre():
    mask = np.eye(6, dtype=bool)
    _, geometry = resize_image(np.zeros((6, 6, 3), np.uint8), (2, 3))
    # Rows 1 and 4, columns 1, 3 and 5.
    assert resize_mask(mask, geometry).tolist() == [[True, False, False], [False] * 3]
    _, geometry = resize_image(np.zeros((6, 6, 3), np.uint8), (12, 12))
    assert np.array_equal(resize_mask(mask, geometry), np.kron(mask, np.ones((2, 2), bool)))


def test_bad_sizes_and_modes(rgb):
    with pytest.raises(OptionError, match='"stretch"'):
        resize_image(rgb, (8, 8), "stretch")
    with pytest.raises(OptionError, match="begin at 1"):
        resize_image(rgb, (0, 8))
