"""Metrics of localization over pixels: all pixels of all images in one pool, normal images too.

Exact without a sort of everything. The maps are read block by block; the range of scores is cut
into parts of about equal size, and only the scores of one part are gathered and sorted at a time.
Where the cuts fall is estimated from a sample, which decides time and memory but never the result:
every count is taken from the maps themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amiss.errors import MetricError
from amiss.types import Bool, Int64

Stack = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]  # (B, H, W), or B arrays of one size (H, W)
Scores = npt.NDArray[np.floating[Any]]

_BLOCK_PX = 2**18  # pixels read at once: a block and its temporaries stay in the cache
_GATHER_BYTES = 96 * 2**20  # scores sorted at once
_SAMPLE_PX = 2**20  # pixels that decide where the cuts fall
_QUERIES = 2**18  # defect pixels ranked at once


class Block(NamedTuple):
    """A few images. A pixel outside the region of interest is neither `ok` nor `defect`."""

    scores: Scores  # (n, H, W), float32 or float64, finite
    ok: Bool  # (n, H, W)
    defect: Bool  # (n, H, W)


def pixel_auroc(maps: Stack, masks: Stack, *, rois: Stack | None = None) -> float:
    """Area under the ROC curve of all pixels: P(s+ > s-) + P(s+ = s-) / 2, exact.

    `maps` (B, H, W) finite, higher is more anomalous: an array, a memory map or a list of B
    arrays. `masks` (B, H, W) bool, or integer where > 0 is defect. `rois` (B, H, W) bool: pixels
    outside do not exist for the metric. Returns [0, 1]. Memory beside the arguments stays near
    200 MiB for any number of images.

    Raises `MetricError` where shapes differ, a score is not finite, a mask is not bool or integer,
    or there is no defect pixel or no other pixel.
    """
    pool = PixelPool(maps, masks, rois)
    twice = sum(steps.twice_ordered(pool.ok) for steps in _defect_steps(pool))
    return twice / (2 * pool.ok * pool.defects)


def pixel_ap(maps: Stack, masks: Stack, *, rois: Stack | None = None) -> float:
    """Average precision of all pixels, the step form: AP = sum_t (R(t) - R(t-1)) P(t), exact.

    It depends on the share of defect pixels, so it changes with crop and resolution. Arguments,
    range, memory and errors are those of `pixel_auroc`.
    """
    pool = PixelPool(maps, masks, rois)
    return sum(steps.precision() for steps in _defect_steps(pool)) / pool.defects


def pixel_f1_max(maps: Stack, masks: Stack, *, rois: Stack | None = None) -> float:
    """The best F1 = 2 TP / (2 TP + FP + FN) of all pixels over all thresholds, exact.

    Arguments, range, memory and errors are those of `pixel_auroc`.
    """
    pool = PixelPool(maps, masks, rois)
    # A threshold no defect pixel sits on adds only false alarms to the one above it.
    return max(steps.best_f1(pool.defects) for steps in _defect_steps(pool))


class Steps(NamedTuple):
    """Thresholds that defect pixels sit on, n >= 1. The counts are of pixels, each (n,) int64."""

    defects: Int64  # defect pixels that this entry stands for
    tp: Int64  # defect pixels at or above the threshold
    above: Int64  # other pixels above it
    equal: Int64  # other pixels at it

    def twice_ordered(self, ok: int) -> int:
        """Twice the pairs of one of these defect pixels and one of all `ok` other pixels that are
        in the right order; ties count half. A Python int, and so is their sum: exact."""
        below = ok - self.above - self.equal
        return int((self.defects * (2 * below + self.equal)).sum())

    def precision(self) -> float:
        """The precision at the threshold, summed over these defect pixels."""
        return float((self.defects * (self.tp / (self.tp + self.above + self.equal))).sum())

    def best_f1(self, defects: int) -> float:
        """The best F1 at one of these thresholds, of all `defects` pixels."""
        predicted = self.tp + self.above + self.equal
        return float((2 * self.tp / (predicted + defects)).max())


def _defect_steps(pool: PixelPool) -> Iterator[Steps]:
    """Every defect pixel once, with the counts at its score."""
    ok_before = defect_before = 0
    for low, high in pool.ranges(defects_too=True):
        ok = pool.ranked(low, high, defect=False, before=ok_before)
        defect = pool.ranked(low, high, defect=True, before=defect_before)
        ok_before, defect_before = ok.end, defect.end
        for start in range(0, len(defect.values), _QUERIES):
            queries = defect.values[start : start + _QUERIES]
            above, equal = ok.rank(queries)
            tp_above, tp_equal = defect.rank(queries)
            yield Steps(np.ones_like(above), tp_above + tp_equal, above, equal)
        if defect.at_low:  # they were counted, not gathered: one entry stands for all
            above, equal = ok.rank(np.array([low], dtype=ok.values.dtype))
            yield Steps(np.array([defect.at_low]), np.array([defect.end]), above, equal)
        del ok, defect  # or they would be held while the next range is gathered


@dataclass(frozen=True)
class Ranked:
    """The pixels of one class with low <= score < high, ready to be counted.

    The ones at `low` itself are counted instead of gathered, so that a score shared by very many
    pixels takes no memory.
    """

    values: Scores  # (n,) ascending, low < value < high
    low: float
    at_low: int
    before: int  # pixels of the class at or above `high`

    @property
    def end(self) -> int:
        """Pixels of the class at or above `low`."""
        return self.before + len(self.values) + self.at_low

    def rank(self, queries: Scores) -> tuple[Int64, Int64]:
        """How many pixels of the class lie above, and exactly at, each of `queries` (n,).

        Queries lie in [low, high); ascending ones are found fastest.
        """
        left = np.searchsorted(self.values, queries, side="left").astype(np.int64, copy=False)
        right = left.copy()
        if len(self.values):
            nearest = self.values[np.minimum(left, len(self.values) - 1)]
            tied = np.flatnonzero(nearest == queries)  # most scores are not: one search is enough
            right[tied] = np.searchsorted(self.values, queries[tied], side="right")
        equal = right - left
        equal[queries == self.low] = self.at_low
        return self.before + len(self.values) - right, equal


class PixelPool:
    """Maps, masks and regions of interest, checked once and then read block by block.

    `ok` and `defects` count the pixels of the two classes, `has_defect` (B,) tells which images
    have a defect pixel. Raises `MetricError` as `pixel_auroc`.
    """

    def __init__(self, maps: Stack, masks: Stack, rois: Stack | None = None) -> None:
        self._maps, shape, dtypes = _stack(
            "maps", maps, "fiub", "floats, or integers of at most 32 bits"
        )
        self._masks, mask_shape, _ = _stack(
            "masks", masks, "biu", "bool, or integer where > 0 is defect (mask > 0.5 makes one)"
        )
        _same_shape("masks", mask_shape, shape)
        self._rois: Stack | None = None
        if rois is not None:
            self._rois, roi_shape, _ = _stack("rois", rois, "b", "bool")
            _same_shape("rois", roi_shape, shape)
        # float16 and short integers are exact in float32, 32-bit integers in float64
        self._dtype: np.dtype[Any] = np.result_type(np.float32, *dtypes)
        if self._dtype.itemsize > 8:
            raise MetricError(f"maps are of type {self._dtype}.", hint="Give float64 or shorter.")
        self._images, H, W = shape
        self._step = max(1, _BLOCK_PX // (H * W))
        self._image_px = H * W
        self.ok = self.defects = 0
        self.has_defect = np.zeros(shape[0], dtype=np.bool_)
        self._sample, self._sample_is_defect = self._scan()
        for name, count in (("defect", self.defects), ("defect-free", self.ok)):
            if count == 0:
                raise MetricError(
                    f"no {name} pixel in {self._images} images.",
                    hint="This metric compares defect pixels with all others and needs both.",
                )

    def blocks(self) -> Iterator[Block]:
        """All images in order, a few at a time."""
        for start in range(0, self._images, self._step):
            stop = start + self._step
            raw = _read(self._maps, start, stop)
            mask = _read(self._masks, start, stop)
            defect = mask if mask.dtype == np.bool_ else mask > 0
            ok = ~defect
            if self._rois is not None:
                roi = _read(self._rois, start, stop)
                defect, ok = defect & roi, ok & roi
            yield Block(np.ascontiguousarray(raw, dtype=self._dtype), ok, defect)

    def ranges(
        self, *, share: float = 1.0, defects_too: bool = False
    ) -> Iterator[tuple[float, float]]:
        """Ranges [low, high) of the score, from the top, that cover every score.

        They are cut so that the ok pixels (with `defects_too`, both classes) of one range fit the
        memory granted, and so that the `share` of them with the highest scores takes whole ranges.
        """
        pixels = self.ok + self.defects if defects_too else self.ok
        sample = self._sample if defects_too else self._sample[~self._sample_is_defect]
        room = _GATHER_BYTES // self._dtype.itemsize
        width = share / max(1, math.ceil(pixels * share / room))
        places = (np.arange(1, math.ceil(1.0 / width)) * width * len(sample)).astype(np.int64)
        cuts = np.unique(sample[places[places < len(sample)]])[::-1]  # distinct, descending
        high = math.inf
        for low in [*cuts.tolist(), -math.inf]:
            yield low, high
            high = low

    def cuts(self, parts: int) -> Scores:
        """Scores, ascending and distinct, that part the pixels of either class into about `parts`
        shares, the others as far as a sample tells. Up to `parts` defect pixels are told apart from
        each other and from all others."""
        ok = self._sample[~self._sample_is_defect]
        step = math.ceil(self.defects / _SAMPLE_PX)
        defect = np.concatenate([b.scores[b.defect][::step] for b in self.blocks()])
        defect.sort()
        found = [ok[np.arange(1, parts) * len(ok) // parts]] if len(ok) else []
        at = defect[np.unique(np.arange(parts) * len(defect) // parts)]
        found += [at, np.nextafter(at, np.array(np.inf, dtype=at.dtype))]
        return np.unique(np.concatenate(found))

    def ranked(self, low: float, high: float, *, defect: bool, before: int) -> Ranked:
        """Gather and sort the pixels of one class in [low, high)."""
        # Pages of an empty array take no memory before they are written.
        gathered = np.empty(_GATHER_BYTES // self._dtype.itemsize, dtype=self._dtype)
        filled = at_low = 0
        for block in self.blocks():
            member = block.defect if defect else block.ok
            inside = block.scores > low
            inside &= member
            if high < math.inf:
                inside &= block.scores < high
            if low > -math.inf:
                at_low += int(np.count_nonzero(member & (block.scores == low)))
            found = block.scores.ravel()[np.flatnonzero(inside)]
            if filled + len(found) > len(gathered):  # the sample misjudged this range: make room
                gathered.resize(max(filled + len(found), len(gathered) * 9 // 8), refcheck=False)
            gathered[filled : filled + len(found)] = found
            filled += len(found)
        values = gathered[:filled]
        values.sort()
        return Ranked(values, low, at_low, before)

    def _scan(self) -> tuple[Scores, Bool]:
        """Check and count all; returns a sample of the scores (n,), descending, and its classes."""
        generator = np.random.default_rng(0)  # the sample cannot change a result: see above
        share = min(1.0, _SAMPLE_PX / (self._images * self._image_px))
        sampled, is_defect = [], []
        for number, block in enumerate(self.blocks()):
            if not np.isfinite(block.scores).all():
                bad = ~np.isfinite(block.scores).all(axis=(1, 2))
                raise MetricError(
                    f"map {number * self._step + int(np.argmax(bad))} holds NaN or infinity.",
                    hint="Maps must be finite; look at the image and at the method that made it.",
                )
            of_image = np.count_nonzero(block.defect, axis=(1, 2))
            start = number * self._step
            self.has_defect[start : start + len(of_image)] = of_image > 0
            self.defects += int(of_image.sum())
            self.ok += int(np.count_nonzero(block.ok))
            size = block.scores.size
            places = generator.integers(0, size, size=math.ceil(size * share))
            places = places[(block.ok | block.defect).ravel()[places]]
            sampled.append(block.scores.ravel()[places])
            is_defect.append(block.defect.ravel()[places])
        scores = np.concatenate(sampled)
        order = np.argsort(scores)[::-1]
        return scores[order], np.concatenate(is_defect)[order]


def _stack(
    name: str, stack: Stack, kinds: str, allowed: str
) -> tuple[Stack, tuple[int, int, int], list[np.dtype[Any]]]:
    """Check one argument; returns it with its shape (B, H, W) and the types of its arrays."""
    whole: Stack
    if isinstance(stack, list | tuple):
        whole = [np.asarray(image) for image in stack]
        shapes = {image.shape for image in whole}
        if len(shapes) > 1:
            raise MetricError(
                f"{name} differ in size: {sorted(shapes)[:3]}.",
                hint="Bring all images to one size before they are compared.",
            )
        shape = (len(whole), *(shapes.pop() if shapes else ()))
        dtypes = list({image.dtype for image in whole})
    else:
        whole = np.asarray(stack)
        shape, dtypes = whole.shape, [whole.dtype]
    if len(shape) != 3 or 0 in shape:
        raise MetricError(f"{name} have shape {shape}.", hint="The shape must be (B, H, W).")
    for dtype in dtypes:
        # past 2**53 a 64-bit integer has no exact float64, and two scores could become one
        if dtype.kind not in kinds or (
            name == "maps" and dtype.kind in "iu" and dtype.itemsize > 4
        ):
            raise MetricError(f"{name} are of type {dtype}.", hint=f"They must be {allowed}.")
    return whole, (shape[0], shape[1], shape[2]), dtypes


def _same_shape(name: str, shape: tuple[int, ...], maps: tuple[int, ...]) -> None:
    if shape != maps:
        raise MetricError(
            f"{name} have shape {shape} and maps {maps}.",
            hint="Bring them to one size; resize masks with nearest neighbour.",
        )


def _read(stack: Stack, start: int, stop: int) -> npt.NDArray[Any]:
    """Images start to stop as one array (n, H, W)."""
    if isinstance(stack, np.ndarray):
        return np.asarray(stack[start:stop])
    return np.stack(stack[start:stop])
