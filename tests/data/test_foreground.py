"""The object of an image, and where something may be put."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from amiss.data.foreground import filled, foreground, place
from amiss.errors import OptionError
from amiss.types import Bool, UInt8
from made_images import texture

H, W = 90, 140


def disk(radius: float = 30, centre: tuple[float, float] = (40, 80)) -> Bool:
    y, x = np.mgrid[:H, :W]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def shown(mask: Bool, inside: int, outside: int, spread: float = 6) -> UInt8:
    """A picture of a mask, with noise."""
    levels = np.where(mask, inside, outside)[:, :, None].astype(float)
    levels = levels + np.random.default_rng(0).normal(0, spread, (*mask.shape, 1))
    return np.repeat(levels.round().clip(0, 255).astype(np.uint8), 3, axis=2)


def overlap(a: Bool, b: Bool) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(("inside", "outside"), [(200, 40), (40, 200), (150, 90)])
def test_an_object_is_found_bright_or_dark(inside: int, outside: int) -> None:
    found = foreground(shown(disk(), inside, outside))
    assert found.shape == (H, W) and found.dtype == np.bool_
    assert overlap(found, disk()) > 0.95


def test_a_thin_shell_keeps_what_it_encloses_and_specks_are_dropped() -> None:
    shell = disk() & ~disk(28)
    speck = np.zeros((H, W), np.bool_)
    speck[5:10, 5:11] = True  # survives the opening, and is 0.2 % of the image
    found = foreground(shown(shell | speck, 200, 40, spread=0))
    assert overlap(found, disk()) > 0.95 and not (found & speck).any()


def test_an_object_with_the_background_all_around_may_be_less_apart_from_it() -> None:
    noise = np.random.default_rng(0).uniform(-40, 40, (H, W))
    levels = np.where(disk(), 150, 60 + noise).round().astype(np.uint8)
    image = np.repeat(levels[:, :, None], 3, axis=2)
    assert overlap(foreground(image), disk()) > 0.95
    image[:2] = 150  # now a good part of the border is as bright as the object
    assert foreground(image).all()


def test_what_covers_nearly_everything_is_no_object() -> None:
    for frame_px, share in ((2, 1), (6, (1 - 12 / 190) ** 2)):
        inside = np.zeros((190, 190), np.bool_)
        inside[frame_px:-frame_px, frame_px:-frame_px] = True
        assert foreground(shown(inside, 200, 40)).mean() == pytest.approx(share, abs=0.001)


def test_an_object_at_the_border_is_still_an_object() -> None:
    at_edge = disk(40, (0, 70))
    assert overlap(foreground(shown(at_edge, 220, 60)), at_edge) > 0.95


def test_colour_counts_by_its_gray() -> None:
    image = np.zeros((H, W, 3), np.uint8)
    image[..., 1] = np.where(disk(), 180, 0)
    assert overlap(foreground(image), disk()) > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_a_texture_is_foreground_everywhere(seed: int) -> None:
    assert foreground(texture(np.random.default_rng(seed), (H, W))).all()


@pytest.mark.parametrize(
    "image",
    [
        np.full((H, W, 3), 7, np.uint8),
        shown(disk(6), 200, 40),  # 1 % of the image
        np.repeat(np.linspace(0, 255, W).astype(np.uint8)[None, :, None], H, 0).repeat(3, 2),
    ],
    ids=["constant", "speck", "ramp"],
)
def test_where_there_is_no_object_everything_is_foreground(image: UInt8) -> None:
    assert foreground(image).all()


def test_holes_are_what_meets_no_border() -> None:
    ring = disk() & ~disk(10)
    assert np.array_equal(filled(ring), disk())
    cup = np.zeros((6, 7), np.bool_)
    cup[2:, 1] = cup[2:, 5] = True  # open below, at the border
    assert np.array_equal(filled(cup), cup)
    assert filled(np.ones((3, 4), np.bool_)).all()


def test_where_to_put_something() -> None:
    image = shown(disk(), 200, 40)
    left = np.zeros((H, W), np.bool_)
    left[:, :80] = True
    found = foreground(image)
    assert np.array_equal(place(image, "otsu"), found)
    assert place(image, "all").all()
    assert np.array_equal(place(image, "otsu", left), found & left)
    assert np.array_equal(place(image, "all", left), left)
    assert np.array_equal(place(image, disk(), left), disk() & left)
    corner = np.zeros((H, W), np.bool_)
    corner[:3, :3] = True
    assert np.array_equal(place(image, disk(), corner), corner)  # nothing in common
    assert place(image, np.zeros((H, W), np.bool_)).all()


def test_what_does_not_fit_is_refused() -> None:
    image = shown(disk(), 200, 40)
    nothing = np.zeros((H, W), np.bool_)
    with pytest.raises(OptionError, match=r"wanted is \(H, W, 3\) uint8"):
        foreground(image[:, :, 0])
    with pytest.raises(OptionError, match="float64"):
        place(image.astype(float), "all")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="foreground='best' is not known"):
        place(image, "best")
    with pytest.raises(OptionError, match=r"foreground has shape \(2, 2\)"):
        place(image, nothing[:2, :2])
    with pytest.raises(OptionError, match="region of interest has shape"):
        place(image, "all", nothing.T)
    with pytest.raises(OptionError, match="leaves nothing"):
        place(image, "all", nothing)


def test_the_size_of_an_image_changes_little() -> None:
    large = Image.fromarray(shown(disk(), 200, 40, spread=0)).resize((W * 3, H * 3))
    small = Image.fromarray(foreground(np.asarray(large))).resize((W, H))
    assert overlap(np.asarray(small), disk()) > 0.95
