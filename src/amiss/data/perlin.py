"""Perlin noise, and defects of foreign texture in its shapes.

Zavrtanik, Kristan, Skocaj, "DRAEM - A discriminatively trained reconstruction embedding for surface
anomaly detection", ICCV 2021, arXiv 2108.07610. The noise is Perlin's, "Improving Noise", 2002.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from amiss.data.defects import Synthetic
from amiss.data.foreground import place, require_choice
from amiss.data.pictures import Pictures, bundled_pictures
from amiss.errors import OptionError
from amiss.types import Bool, Float64, Record, UInt8

_LEVEL = 0.5  # the noise above it is the mask
_FINEST = 6  # one wave across the image, or 2, 4, ... 2 ** (_FINEST - 1)
_OPACITY = (0.1, 1.0)  # of the texture
_CHANGES = 3  # different ones, of the texture
_TRIES = 5
_AT_LEAST = 0.01  # of what is allowed, where no try gave any mask


def perlin_noise(
    size: tuple[int, int], waves: tuple[int, int], rng: np.random.Generator
) -> Float64:
    """Perlin noise (H, W) in [-1, 1], `waves` down and across, turned by a random angle.

    Each corner of a grid has a random direction; a pixel takes the products of the four around it
    with its distance to them, mixed by 6t^5 - 15t^4 + 10t^3.
    """
    H, W = size
    angle = rng.uniform(-math.pi / 2, math.pi / 2)
    y, x = np.mgrid[:H, :W]
    y, x = (y + 0.5) / H - 0.5, (x + 0.5) / W - 0.5
    down = waves[0] * (math.cos(angle) * y + math.sin(angle) * x)
    across = waves[1] * (math.cos(angle) * x - math.sin(angle) * y)
    down, across = down + rng.random(), across + rng.random()  # or corners lie in the middle
    row, column = np.floor(down).astype(int), np.floor(across).astype(int)
    down, across = down - row, across - column
    row, column = row - row.min(), column - column.min()
    directions = rng.uniform(0, 2 * math.pi, (row.max() + 2, column.max() + 2))
    sines, cosines = np.sin(directions), np.cos(directions)

    def corner(i: int, j: int) -> Float64:
        product: Float64 = sines[row + i, column + j] * (down - i)
        product += cosines[row + i, column + j] * (across - j)
        return product

    right = _fade(across)
    upper = corner(0, 0) + right * (corner(0, 1) - corner(0, 0))
    lower = corner(1, 0) + right * (corner(1, 1) - corner(1, 0))
    noise: Float64 = math.sqrt(2) * (upper + _fade(down) * (lower - upper))
    return noise


def _fade(t: Float64) -> Float64:
    smooth: Float64 = t * t * t * (t * (6 * t - 15) + 10)
    return smooth


@dataclass(frozen=True, slots=True, eq=False)
class Perlin:
    """Lays the texture of another picture over the image, more or less opaque, where Perlin noise
    is high.

    `pictures`: files to take textures from; by default those that scikit-image brings.
    `foreground`: "all", as in the paper, "otsu", or one for all images, (H, W) bool. On a gray
    image the texture is gray as well.

    Raises MissingDependencyError without `pictures` and scikit-image, OptionError for a list of no
    pictures or an unknown foreground.
    """

    pictures: Sequence[Record] | None = None
    _: KW_ONLY
    foreground: str | Bool = "all"
    _source: Pictures = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_choice(self.foreground)
        records = bundled_pictures() if self.pictures is None else self.pictures
        if not records:
            raise OptionError(
                "There are no pictures to take textures from.", hint="Leave pictures out."
            )
        object.__setattr__(self, "_source", Pictures(records))

    def __call__(
        self, normal: UInt8, rng: np.random.Generator, roi: Bool | None = None
    ) -> Synthetic:
        """A textured defect in the image `normal` (H, W, 3) uint8, within `roi` (H, W) bool.

        Raises OptionError like `place`, ImageError for a picture that cannot be read.
        """
        allowed = place(normal, self.foreground, roi)
        mask = _noisy_mask(allowed, rng)
        texture = self._texture(normal.shape[:2], rng)
        inside = texture[mask].astype(np.float64)
        if (normal == normal[:, :, :1]).all():
            inside = np.repeat(inside.mean(axis=1, keepdims=True), 3, axis=1)
        opacity = rng.uniform(*_OPACITY)
        image = normal.copy()
        image[mask] = ((1 - opacity) * normal[mask] + opacity * inside).round().astype(np.uint8)
        return Synthetic(image, mask)

    def _texture(self, size: tuple[int, int], rng: np.random.Generator) -> UInt8:
        """A part of a random picture (H, W, 3) uint8, changed in three different ways."""
        H, W = size
        side = max(H, W)
        number = int(rng.integers(len(self._source.records)))
        crop = self._source.crop(number, side, side // 2, 2 * side, rng.random(3).tolist())
        picture = Image.fromarray(crop[:H, :W])
        for change in rng.permutation(len(_TEXTURE_CHANGES))[:_CHANGES]:
            picture = _TEXTURE_CHANGES[change](picture, rng)
        return np.array(picture)


def _noisy_mask(allowed: Bool, rng: np.random.Generator) -> Bool:
    """A mask (H, W) in the shape of Perlin noise within `allowed`, never empty."""
    for _ in range(_TRIES):
        down, across = (2 ** rng.integers(0, _FINEST, 2)).tolist()
        noise = perlin_noise(allowed.shape, (down, across), rng)
        mask: Bool = (noise > _LEVEL) & allowed
        if mask.any():
            return mask
    highest = np.quantile(noise[allowed], 1 - _AT_LEAST)
    return (noise >= highest) & allowed


_TEXTURE_CHANGES: tuple[Callable[[Image.Image, np.random.Generator], Image.Image], ...] = (
    lambda picture, rng: ImageOps.autocontrast(picture),
    lambda picture, rng: ImageOps.equalize(picture),
    lambda picture, rng: ImageOps.invert(picture),
    lambda picture, rng: ImageOps.posterize(picture, int(rng.integers(3, 7))),
    lambda picture, rng: ImageOps.solarize(picture, int(rng.integers(64, 192))),
    lambda picture, rng: ImageEnhance.Brightness(picture).enhance(rng.uniform(0.6, 1.4)),
    lambda picture, rng: ImageEnhance.Contrast(picture).enhance(rng.uniform(0.5, 2)),
    lambda picture, rng: ImageEnhance.Color(picture).enhance(rng.uniform(0, 2)),
    lambda picture, rng: ImageEnhance.Sharpness(picture).enhance(rng.uniform(1, 3)),
    lambda picture, rng: ImageOps.mirror(picture),
    lambda picture, rng: ImageOps.flip(picture),
)
