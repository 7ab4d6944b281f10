"""Where the object of an image is: by Otsu's threshold, or everywhere on a texture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from amiss.errors import OptionError, naming_extra
from amiss.types import Bool, UInt8

FOREGROUNDS = ("otsu", "all")

# Ours, chosen by looking at results; none is from a paper. The share of the variance that lies
# between Otsu's two classes is 0.64 for one hump that is a normal distribution and 0.75 for a flat
# one, so that only more tells of two by itself; an object that has the background all around it
# may be less apart from it.
_APART, _APART_INSIDE = 0.8, 0.55
_ALL_AROUND = 0.95  # of the border
_LEAST, _MOST = 0.05, 0.95  # an object covers this share of the image
_SPECK = 0.005  # what covers less of the image is no part of the object
_REACH = 1 / 128  # of the shorter side: opening and closing, in each direction


def foreground(image: UInt8) -> Bool:
    """The pixels of the object in an image (H, W, 3) uint8: (H, W) bool, never empty.

    Otsu's threshold on gray parts the image; the side that most of the border lies on is the
    background. Closing, filled holes, opening and dropped specks make the rest whole. Where nothing
    is found, since the two sides are hardly apart or the object would be tiny or nearly everything,
    all of the image is foreground: a texture.

    Raises OptionError for another shape or dtype, MissingDependencyError without scikit-image.
    """
    require_image(image)
    gray = np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))
    whole = np.ones(gray.shape, np.bool_)
    low, high = gray.min(), gray.max()
    if low == high:
        return whole
    with naming_extra("To find the foreground of an image", "train"):
        from skimage.filters import threshold_otsu
    bright: Bool = gray > threshold_otsu(gray)  # type: ignore[no-untyped-call]
    lit = _lit_border(bright)
    is_inside = max(lit, 1 - lit) >= _ALL_AROUND
    if _between(gray, bright) < (_APART_INSIDE if is_inside else _APART):
        return whole
    found = _tidy(bright if lit <= 0.5 else ~bright)
    share = found.mean()
    return found if _LEAST <= share <= _MOST else whole


def place(image: UInt8, choice: str | Bool, roi: Bool | None = None) -> Bool:
    """Where something may be put into an image (H, W, 3) uint8: (H, W) bool, never empty.

    `choice`: "otsu" for its `foreground`, "all" for everywhere, or a foreground (H, W) bool; within
    `roi` (H, W) bool, unless that is None. Where the two have nothing in common, or the foreground
    is empty, it is the `roi`, or everywhere.

    Raises OptionError for what does not fit, and for a `roi` without any pixel.
    """
    require_image(image)
    if roi is not None:
        _require_fits(roi, image, "region of interest")
        if not roi.any():
            raise OptionError(
                "The region of interest leaves nothing of the image.",
                hint="True marks what is looked at.",
            )
    if not isinstance(choice, str):
        _require_fits(choice, image, "foreground")
        found = choice
    elif choice == "otsu":
        found = foreground(image)
    else:
        require_choice(choice)
        found = np.ones(image.shape[:2], np.bool_)
    inside = found if roi is None else found & roi
    if inside.any():
        return inside
    return np.ones(image.shape[:2], np.bool_) if roi is None else roi


def require_choice(choice: str | Bool) -> None:
    """Raise OptionError for a name of a foreground that does not exist."""
    if isinstance(choice, str) and choice not in FOREGROUNDS:
        raise OptionError(
            f"foreground={choice!r} is not known.",
            hint=f"Choose from {', '.join(FOREGROUNDS)}, or give an array (H, W) of bool.",
        )


def require_image(image: UInt8) -> None:
    """Raise OptionError for anything but an image (H, W, 3) uint8 with pixels."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise OptionError(
            f"The image has shape {image.shape} and dtype {image.dtype}; wanted is (H, W, 3) uint8."
        )


def _require_fits(mask: Bool, image: UInt8, what: str) -> None:
    if mask.shape != image.shape[:2] or mask.dtype != np.bool_:
        H, W, _ = image.shape
        raise OptionError(
            f"The {what} has shape {mask.shape} and dtype {mask.dtype}; the image wants "
            f"({H}, {W}) bool."
        )


def _between(gray: UInt8, bright: Bool) -> float:
    """The share of the variance that lies between the two classes, 0 to 1."""
    share = bright.mean()
    apart = gray[bright].mean() - gray[~bright].mean()
    return float(share * (1 - share) * apart**2 / gray.var())


def _lit_border(bright: Bool) -> float:
    """The share of the image's border that is bright."""
    border = np.concatenate([bright[0], bright[-1], bright[1:-1, 0], bright[1:-1, -1]])
    return float(border.mean())


def _tidy(mask: Bool) -> Bool:
    """The mask (H, W) without fine structure, holes and specks."""
    with naming_extra("To find the foreground of an image", "train"):
        from scipy.ndimage import (  # type: ignore[import-untyped]
            maximum_filter,
            minimum_filter,
        )

    side = 2 * max(1, round(min(mask.shape) * _REACH)) + 1
    levels = mask.astype(np.uint8)
    # Closed and filled before it is opened, so that a thin shell keeps what it encloses. "nearest"
    # leaves alone what meets the border.
    for step in (maximum_filter, minimum_filter):
        levels = step(levels, size=side, mode="nearest")
    levels = filled(levels.astype(np.bool_)).astype(np.uint8)
    for step in (minimum_filter, maximum_filter):
        levels = step(levels, size=side, mode="nearest")
    return _without_specks(levels.astype(np.bool_))


def filled(mask: Bool) -> Bool:
    """The mask (H, W) with what it encloses. A hole is a part of the rest that meets no border."""
    with naming_extra("To fill holes", "train"):
        from scipy.ndimage import label

    parts, count = label(~mask)
    is_open = np.zeros(count + 1, np.bool_)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        is_open[edge] = True
    whole: Bool = mask | ~is_open[parts]
    return whole


def _without_specks(mask: Bool) -> Bool:
    from scipy.ndimage import label

    parts, count = label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    keep = sizes >= _SPECK * mask.size
    keep[0] = False
    kept: Bool = keep[parts]
    return kept
