"""RPAG: known defects, changed at random and pasted onto normal images.

Yao et al., "Explicit Boundary Guided Semi-Push-Pull Contrastive Learning for Supervised Anomaly
Detection", CVPR 2023, arXiv 2207.01463: "RandAugment-based Pseudo Anomaly Generation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import numpy as np

from amiss.data.defects import Defect, Synthetic
from amiss.data.foreground import place, require_choice
from amiss.data.transforms import TRANSFORMS, Cut, bounds, cut_out
from amiss.errors import DataError, OptionError, naming_extra
from amiss.types import Bool, UInt8

Placement = Literal["random", "in_place"]

_TRIES = 5
_INSIDE = 2 / 3  # of a mask must lie in the foreground to be pasted in place


@dataclass(frozen=True, slots=True, eq=False)
class Rpag:
    """Pastes one of `defects`, after `count` different ones of nine transforms, in random order.

    `placement`: "random", as in the paper, moves the middle of the cut to a random pixel of the
    foreground; "in_place", as in the official code, pastes it where it was if more than two thirds
    of its mask lie in the foreground, and else moves each connected part so. The cut is clipped at
    the border of the image and pasted without blending. `foreground`: "otsu", "all", or one for all
    images, (H, W) bool; without any True, all is pasted in place.

    Raises DataError without defects, OptionError for an option out of range.
    """

    defects: Sequence[Defect]
    _: KW_ONLY
    count: int = 3
    placement: Placement = "random"
    foreground: str | Bool = "otsu"

    def __post_init__(self) -> None:
        if not self.defects:
            raise DataError(
                "RPAG pastes known defects, and there are none.",
                hint='Give images with masks, or take "perlin" or "cut_paste", which need none.',
            )
        if not 0 <= self.count <= len(TRANSFORMS):
            raise OptionError(f"count is {self.count}; allowed is 0 to {len(TRANSFORMS)}.")
        if self.placement not in get_args(Placement):
            raise OptionError(
                f"placement={self.placement!r} is not known.",
                hint=f"Choose from {', '.join(get_args(Placement))}.",
            )
        require_choice(self.foreground)

    def __call__(
        self, normal: UInt8, rng: np.random.Generator, roi: Bool | None = None
    ) -> Synthetic:
        """A known defect in the image `normal` (H, W, 3) uint8, within `roi` (H, W) bool.

        Raises OptionError where a defect has another size than the image, and like `place`.
        """
        allowed = place(normal, self.foreground, roi)
        no_foreground = not isinstance(self.foreground, str) and not self.foreground.any()
        in_place = self.placement == "in_place" or no_foreground
        canvas = _Canvas(normal, allowed, roi)
        names = list(TRANSFORMS)
        for attempt in range(_TRIES + 1):
            defect = self.defects[int(rng.integers(len(self.defects)))]
            cut = _fitting(defect, normal)
            # Transforms may lose a tiny mask, or move it out of the image: the last try has none.
            for number in rng.permutation(len(names))[: self.count if attempt < _TRIES else 0]:
                cut = TRANSFORMS[names[number]](cut, rng)
            if in_place:
                canvas.paste_in_place(cut, rng)
            else:
                canvas.paste_at_random(cut, rng)
            if canvas.mask.any():
                return Synthetic(canvas.image, canvas.mask)
        canvas.paste_pixel(cut, rng)
        return Synthetic(canvas.image, canvas.mask)


def _fitting(defect: Defect, normal: UInt8) -> Cut:
    if defect.image.shape != normal.shape:
        (h, w, _), (H, W, _) = defect.image.shape, normal.shape
        raise OptionError(
            f"A defect is of {h} x {w} pixels, the image of {H} x {W}.",
            hint="Bring both to one size first.",
        )
    return cut_out(defect.image, defect.mask)


class _Canvas:
    """A normal image to paste onto: `image`, and the `mask` of what was pasted.

    `allowed` (H, W) bool: where the middle of a cut may come to lie; `roi` (H, W) bool or None:
    where pixels may change.
    """

    def __init__(self, normal: UInt8, allowed: Bool, roi: Bool | None) -> None:
        self.image = normal.copy()
        self.mask: Bool = np.zeros(normal.shape[:2], np.bool_)
        self._allowed, self._roi = allowed, roi
        self._places = np.flatnonzero(allowed)

    def paste_at_random(self, cut: Cut, rng: np.random.Generator) -> None:
        """Move the middle of the mask to a random allowed pixel."""
        rows, columns = cut.mask.nonzero()
        if len(rows):
            self._paste_with(cut, (round(rows.mean()), round(columns.mean())), rng)

    def paste_pixel(self, cut: Cut, rng: np.random.Generator) -> None:
        """Move a random pixel of the mask, which is not empty, to a random allowed pixel, so that
        something of it is pasted in any case."""
        pixels = np.argwhere(cut.mask)
        row, column = pixels[rng.integers(len(pixels))]
        self._paste_with(cut, (int(row), int(column)), rng)

    def paste_in_place(self, cut: Cut, rng: np.random.Generator) -> None:
        """Leave the cut where it is, if it lies on what is allowed; else move its parts there."""
        with naming_extra("To move the parts of a defect", "train"):
            from scipy.ndimage import label  # type: ignore[import-untyped]

        H, W = self.mask.shape
        (top, left), (h, w) = cut.corner, cut.mask.shape
        rows, columns = np.arange(top, top + h), np.arange(left, left + w)
        in_frame = ((rows >= 0) & (rows < H))[:, None] & ((columns >= 0) & (columns < W))
        mask = cut.mask & in_frame
        if not mask.any():
            return
        under = self._allowed[rows.clip(0, H - 1)[:, None], columns.clip(0, W - 1)]
        if under[mask].mean() > _INSIDE:
            self._paste(cut.pixels, mask, top, left)
            return
        parts, count = label(mask, np.ones((3, 3)))
        for number in range(1, count + 1):
            part = Cut(cut.pixels, parts == number, cut.centre, cut.frame)
            self.paste_at_random(part, rng)

    def _paste_with(self, cut: Cut, pixel: tuple[int, int], rng: np.random.Generator) -> None:
        """Move a pixel of the cut to a random allowed pixel."""
        W = self.mask.shape[1]
        row, column = divmod(int(self._places[rng.integers(len(self._places))]), W)
        self._paste(cut.pixels, cut.mask, row - pixel[0], column - pixel[1])

    def _paste(self, pixels: UInt8, mask: Bool, top: int, left: int) -> None:
        """Paste what is under a mask (h, w), its first pixel at row `top` and column `left`."""
        first, last, start, end = bounds(mask)
        H, W = self.mask.shape
        first, last = max(first, -top), min(last, H - top)
        start, end = max(start, -left), min(end, W - left)
        if first >= last or start >= end:
            return
        here = np.s_[top + first : top + last, left + start : left + end]
        inside = mask[first:last, start:end]
        if self._roi is not None:
            inside = inside & self._roi[here]
        self.image[here][inside] = pixels[first:last, start:end][inside]
        self.mask[here] |= inside
