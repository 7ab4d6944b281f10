"""Patches of other normal images, blended in without a seam.

Schlueter, Tan, Hou, Kainz, "Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and
Localization", ECCV 2022, arXiv 2109.15222.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from PIL import Image

from amiss.data.defects import Synthetic
from amiss.data.foreground import filled, place, require_choice
from amiss.data.poisson import blend
from amiss.errors import DataError, OptionError, naming_extra
from amiss.types import Bool, UInt8

_SHARE = (0.06, 0.25)  # height and width of a patch, each of those of the image
_SCALE = (0.7, 1.3)  # how much larger a patch becomes
_CHANGED = 4.0  # levels of 255, on average over a square of _MEAN_PX: a smaller change is none
_MEAN_PX = 5
_TRIES = 10
_ENOUGH = 0.1  # of the patch must have changed; else another is tried


@dataclass(frozen=True, slots=True, eq=False)
class CutPaste:
    """Resizes a patch of one of `normals` (each (H, W, 3) uint8) and blends it in elsewhere, by
    Poisson's equation. The mask is where that changes the image.

    `foreground`: "otsu", "all", or one for all images, (H, W) bool: the middle of a patch lies in
    it, where it is cut and where it is pasted.

    Raises DataError without normal images, OptionError for an unknown foreground.
    """

    normals: Sequence[UInt8]
    _: KW_ONLY
    foreground: str | Bool = "otsu"

    def __post_init__(self) -> None:
        require_choice(self.foreground)
        if not len(self.normals):
            raise DataError("There are no normal images to cut patches from.")

    def __call__(
        self, normal: UInt8, rng: np.random.Generator, roi: Bool | None = None
    ) -> Synthetic:
        """A patch blended into the image `normal` (H, W, 3) uint8, within `roi` (H, W) bool.

        Raises OptionError for images under 3 pixels high or wide and like `place`, DataError where
        ten patches change nothing, since the images are all the same.
        """
        allowed = place(normal, self.foreground, roi)
        if min(allowed.shape) < 3:
            raise OptionError(f"An image of {allowed.shape} pixels is too small: 3 is the least.")
        source = self.normals[int(rng.integers(len(self.normals)))]
        at_source = allowed if source is normal else place(source, self.foreground)
        image, mask = normal.copy(), np.zeros_like(allowed)
        most = 0.0
        for _ in range(_TRIES):
            h, w = (_part(length, rng) for length in allowed.shape)
            patch = _resized_patch(source, _some_pixel(at_source, rng), (h + 2, w + 2), rng)
            here = _window(allowed.shape, _some_pixel(allowed, rng), (h + 2, w + 2))
            blended = blend(patch, normal[here])
            changed = _changed(blended, normal[here])
            if roi is not None:
                changed &= roi[here]
            if (share := changed.mean()) > most:
                most = share
                image, mask = normal.copy(), np.zeros_like(allowed)
                image[here][changed], mask[here] = blended[changed], changed
            if most >= _ENOUGH:
                break
        if not most:
            raise DataError(
                "No patch of another normal image changes this one.",
                hint="Are the normal images all the same?",
            )
        return Synthetic(image, mask)


def _part(length: int, rng: np.random.Generator) -> int:
    """A side of a patch for a side of the image, with room for a pixel before and behind it."""
    return max(1, min(length - 2, round(rng.uniform(*_SHARE) * length)))


def _some_pixel(mask: Bool, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a random True."""
    places = np.flatnonzero(mask)
    row, column = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    return row, column


def _window(
    frame: tuple[int, ...], middle: tuple[int, int], size: tuple[int, int]
) -> tuple[slice, slice]:
    """The rows and columns of a rectangle about a pixel, moved so that it lies in the frame."""
    top, left = (
        max(0, min(length - side, at - side // 2))
        for length, at, side in zip(frame, middle, size, strict=True)
    )
    return slice(top, top + size[0]), slice(left, left + size[1])


def _resized_patch(
    source: UInt8, middle: tuple[int, int], size: tuple[int, int], rng: np.random.Generator
) -> UInt8:
    """A patch about a pixel of `source`, enlarged or made smaller to `size`."""
    H, W, _ = source.shape
    scale = rng.uniform(*_SCALE)
    h, w = (
        max(1, min(length, round(side / scale))) for length, side in zip((H, W), size, strict=True)
    )
    patch = Image.fromarray(np.ascontiguousarray(source[_window((H, W), middle, (h, w))]))
    return np.asarray(patch.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _changed(blended: UInt8, ground: UInt8) -> Bool:
    """Where a patch (h, w, 3) differs from what was there, in whole patches: (h, w) bool."""
    with naming_extra("To blend by Poisson's equation", "train"):
        from scipy.ndimage import uniform_filter  # type: ignore[import-untyped]

    difference = np.abs(blended.astype(np.int16) - ground).max(axis=2).astype(np.float32)
    changed = uniform_filter(difference, size=_MEAN_PX, mode="constant") > _CHANGED
    changed[0], changed[-1], changed[:, 0], changed[:, -1] = False, False, False, False
    return filled(changed)
