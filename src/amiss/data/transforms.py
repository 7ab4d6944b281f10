"""The nine transforms of RPAG, each of a defect that was cut out with some of its surroundings.

A cut is small, so that this takes a fraction of what whole images would, and it remembers where in
its image it lies, so that flips, turns and shifts of the image move it as they would there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from amiss.types import Bool, UInt8

_MARGIN_PX = 8  # more than the widest blur reaches
_CELLS = 4  # of the grid that is distorted, in each direction

# Ours: the paper gives no strengths.
_ANGLE = 90.0  # degrees, to either side
_NOISE = (2.0, 10.0)  # standard deviation, in levels of 255
_BRIGHTNESS = (0.7, 1.3)
_SHARPNESS = (1.5, 3.0)  # 1 is as it was
_BLUR_PX = (0.5, 2.0)  # standard deviation
_SHIFT = 0.2  # of the frame's height and width, to either side
_BEND = 1 / 3  # of a cell of the grid; half of one might fold it over


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of an image: `pixels` (h, w, 3) uint8, `mask` (h, w) bool, and where it comes from.

    `centre` is the row and column of its middle in an image of size `frame` (height, width), both
    counted from the upper left corner of the first pixel. It may reach outside of the frame.
    """

    pixels: UInt8
    mask: Bool
    centre: tuple[float, float]
    frame: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of its first pixel in the frame."""
        h, w = self.mask.shape
        return math.floor(self.centre[0] - h / 2 + 0.5), math.floor(self.centre[1] - w / 2 + 0.5)


Transform = Callable[[Cut, np.random.Generator], Cut]


def cut_out(image: UInt8, mask: Bool) -> Cut:
    """What is under a mask (H, W), not empty, of an image (H, W, 3), and a margin around it. Beyond
    the image, its last pixels are repeated."""
    top, bottom, left, right = bounds(mask)
    # Beside its eighth, the distortion moves nothing out of the cut, also after a rotation.
    margin = _MARGIN_PX + max(bottom - top, right - left) // 8
    H, W = mask.shape
    rows = np.arange(top - margin, bottom + margin)
    columns = np.arange(left - margin, right + margin)
    pixels = image[rows.clip(0, H - 1)[:, None], columns.clip(0, W - 1)]
    inside = np.pad(mask[top:bottom, left:right], margin)
    return Cut(pixels, inside, ((top + bottom) / 2, (left + right) / 2), (H, W))


def bounds(mask: Bool) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of what is True in (H, W), which must not be nothing; the second
    and the last are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def flip(cut: Cut, rng: np.random.Generator) -> Cut:
    """Left to right or upside down."""
    (row, column), (H, W) = cut.centre, cut.frame
    if rng.random() < 0.5:
        return replace(
            cut, pixels=cut.pixels[:, ::-1], mask=cut.mask[:, ::-1], centre=(row, W - column)
        )
    return replace(cut, pixels=cut.pixels[::-1], mask=cut.mask[::-1], centre=(H - row, column))


def rotate(cut: Cut, rng: np.random.Generator) -> Cut:
    """About the middle of the frame; the cut grows so that nothing is lost."""
    angle = rng.uniform(-_ANGLE, _ANGLE)

    def turned(image: Image.Image) -> Image.Image:
        return image.rotate(angle, Image.Resampling.BILINEAR, expand=True)

    (row, column), (H, W) = cut.centre, cut.frame
    down, right = row - H / 2, column - W / 2
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    # Counter-clockwise as one sees it, with rows that count downwards.
    centre = (H / 2 + cosine * down - sine * right, W / 2 + cosine * right + sine * down)
    return replace(_mapped(cut, turned), centre=centre)


def transpose(cut: Cut, rng: np.random.Generator) -> Cut:
    """Rows become columns. In a frame that is no square, the place is scaled along."""
    (row, column), (H, W) = cut.centre, cut.frame
    return replace(
        cut,
        pixels=cut.pixels.transpose(1, 0, 2),
        mask=cut.mask.T,
        centre=(column * H / W, row * W / H),
    )


def noise(cut: Cut, rng: np.random.Generator) -> Cut:
    """Normal noise, the same in all channels, so that gray stays gray."""
    strength = rng.uniform(*_NOISE)
    grain = rng.normal(0, strength, (*cut.mask.shape, 1))
    return replace(cut, pixels=(cut.pixels + grain).round().clip(0, 255).astype(np.uint8))


def distortion(cut: Cut, rng: np.random.Generator) -> Cut:
    """The inner corners of a grid move, and what lies between follows."""
    h, w = cut.mask.shape
    rows = np.linspace(0, h, _CELLS + 1).round().astype(int)
    columns = np.linspace(0, w, _CELLS + 1).round().astype(int)
    corners = np.stack(np.meshgrid(columns, rows), axis=-1).astype(float)  # (row, column, x and y)
    reach = np.array([w, h]) / _CELLS * _BEND
    corners[1:-1, 1:-1] += rng.uniform(-reach, reach, (_CELLS - 1, _CELLS - 1, 2))
    mesh = []
    for i in range(_CELLS):
        for j in range(_CELLS):
            box = (int(columns[j]), int(rows[i]), int(columns[j + 1]), int(rows[i + 1]))
            around = corners[[i, i + 1, i + 1, i], [j, j, j + 1, j + 1]]
            mesh.append((box, tuple(around.ravel().tolist())))

    def bent(image: Image.Image) -> Image.Image:
        return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)

    return _mapped(cut, bent)


def brightness(cut: Cut, rng: np.random.Generator) -> Cut:
    """Brighter or darker by a factor."""
    levels = cut.pixels * rng.uniform(*_BRIGHTNESS)
    return replace(cut, pixels=levels.round().clip(0, 255).astype(np.uint8))


def sharpness(cut: Cut, rng: np.random.Generator) -> Cut:
    """Sharper."""
    image = ImageEnhance.Sharpness(_picture(cut.pixels)).enhance(rng.uniform(*_SHARPNESS))
    return replace(cut, pixels=np.asarray(image))


def translation(cut: Cut, rng: np.random.Generator) -> Cut:
    """Elsewhere in the frame, which only tells where the cut is pasted in place."""
    (row, column), (H, W) = cut.centre, cut.frame
    down, right = rng.uniform(-_SHIFT, _SHIFT, 2)
    return replace(cut, centre=(row + round(down * H), column + round(right * W)))


def blur(cut: Cut, rng: np.random.Generator) -> Cut:
    """A Gaussian blur of the pixels."""
    image = _picture(cut.pixels).filter(ImageFilter.GaussianBlur(rng.uniform(*_BLUR_PX)))
    return replace(cut, pixels=np.asarray(image))


TRANSFORMS: dict[str, Transform] = {
    "flip": flip,
    "rotate": rotate,
    "transpose": transpose,
    "noise": noise,
    "distortion": distortion,
    "brightness": brightness,
    "sharpness": sharpness,
    "translation": translation,
    "blur": blur,
}


def _mapped(cut: Cut, change: Callable[[Image.Image], Image.Image]) -> Cut:
    """The same change of pixels and mask. Both are interpolated, and a pixel belongs to the mask
    from its middle on: so the two stay together to the pixel."""
    pixels = np.asarray(change(_picture(cut.pixels)))
    mask = np.asarray(change(_picture(cut.mask.astype(np.uint8) * np.uint8(255)))) > 127
    return replace(cut, pixels=pixels, mask=mask)


def _picture(array: UInt8) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array))
