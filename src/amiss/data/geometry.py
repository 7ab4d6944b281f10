"""Resizing: the one place where an image, its mask and its map change size.

`resize_image` returns a `Geometry`, and whoever needs the same step for a mask, or the way back
for a map, passes it on. Images and maps are resized with Pillow's antialiased bilinear filter,
masks by the nearest pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from amiss.errors import OptionError
from amiss.types import Bool, Float32, UInt8

ResizeMode = Literal["squash", "letterbox"]
Size = tuple[int, int]
"""(height, width)"""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image of size `original` came to `size`, both (height, width).

    "squash" fills the frame and changes the aspect; "letterbox" keeps the aspect, centres the
    image and leaves black bars. `inner` is (top, left, height, width) of the part of the frame
    that holds the image.
    """

    original: Size
    size: Size
    mode: ResizeMode
    inner: tuple[int, int, int, int]


def fit_frame(original: Size, size: Size, mode: ResizeMode = "squash") -> Geometry:
    """Where an image of size `original` lies in a frame of `size`, both (height, width).

    Raises OptionError for an unknown mode or a size below 1.
    """
    if mode not in get_args(ResizeMode):
        raise OptionError(f'The resize mode is "{mode}"; allowed are "squash" and "letterbox".')
    (H, W), (h, w) = original, size
    if min(H, W, h, w) < 1:
        raise OptionError(f"Cannot resize {H} x {W} pixels to {h} x {w}: sizes begin at 1.")
    if mode == "squash":
        return Geometry((H, W), (h, w), mode, (0, 0, h, w))
    scale = min(h / H, w / W)
    height = min(h, max(1, round(H * scale)))
    width = min(w, max(1, round(W * scale)))
    inner = ((h - height) // 2, (w - width) // 2, height, width)
    return Geometry((H, W), (h, w), mode, inner)


def resize_image(image: UInt8, size: Size, mode: ResizeMode = "squash") -> tuple[UInt8, Geometry]:
    """Resize (H, W, 3) uint8 to (h, w, 3) uint8; the image itself when the sizes agree.

    Raises OptionError like `fit_frame`.
    """
    H, W, _ = image.shape
    geometry = fit_frame((H, W), size, mode)
    if geometry.original == geometry.size:
        return image, geometry
    frame = np.zeros((*geometry.size, 3), np.uint8)
    fill_frame(frame, Image.fromarray(image), geometry)
    return frame, geometry


def fill_frame(frame: UInt8, image: Image.Image, geometry: Geometry) -> None:
    """Resize an "L" or "RGB" image into the inner part of a black frame (h, w, 3) uint8.

    Gray is resized once and then repeated, which gives the same levels as three resized channels.
    """
    top, left, height, width = geometry.inner
    # Across, then down: in one call, versions of Pillow choose their order, and levels differ by 1.
    for part in ((width, image.height), (width, height)):
        if image.size != part:
            image = image.resize(part, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    frame[top : top + height, left : left + width] = pixels


def resize_mask(mask: Bool, geometry: Geometry) -> Bool:
    """Resize (H, W) bool to (h, w) bool by the nearest pixel; the bars of a letterbox are False."""
    if mask.shape != geometry.original:
        raise OptionError(
            f"The mask has shape {mask.shape}, the image had {geometry.original}: they must agree."
        )
    top, left, height, width = geometry.inner
    inner = nearest(mask, (height, width))
    if (height, width) == geometry.size:
        return inner
    frame = np.zeros(geometry.size, np.bool_)
    frame[top : top + height, left : left + width] = inner
    return frame


def nearest(mask: Bool, size: Size) -> Bool:
    """(H, W) bool to `size` (h, w): the pixel that lies under each new pixel's centre."""
    (H, W), (h, w) = mask.shape, size
    if size == mask.shape:
        return mask
    # floor((i + 0.5) * H / h) in whole numbers, so that no rounding can reach over the edge
    rows = (2 * np.arange(h) + 1) * H // (2 * h)
    columns = (2 * np.arange(w) + 1) * W // (2 * w)
    resized: Bool = mask[rows[:, None], columns]
    return resized


def inner_roi(geometry: Geometry) -> Bool | None:
    """(h, w) bool, True where the image is; None when it fills the frame."""
    top, left, height, width = geometry.inner
    if (height, width) == geometry.size:
        return None
    frame = np.zeros(geometry.size, np.bool_)
    frame[top : top + height, left : left + width] = True
    return frame


def restore_map(anomaly_map: Float32, geometry: Geometry) -> Float32:
    """Bring a map (h, w) float32 back to the original size (H, W), without the letterbox bars.

    Bilinear; the map itself when the sizes agree.
    """
    if anomaly_map.shape != geometry.size:
        raise OptionError(
            f"The map has shape {anomaly_map.shape}, the frame {geometry.size}: they must agree."
        )
    top, left, height, width = geometry.inner
    inner = anomaly_map[top : top + height, left : left + width]
    H, W = geometry.original
    if (height, width) == (H, W):
        return inner
    image = Image.fromarray(np.ascontiguousarray(inner, dtype=np.float32))
    return np.array(image.resize((W, H), Image.Resampling.BILINEAR))
