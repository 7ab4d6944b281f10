"""Metrics of localization over regions, and the regions themselves.

A region is a set of mask pixels connected by edges or corners (8-connectivity).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amiss.errors import MetricError
from amiss.metrics.pixel import PixelPool, Scores, Stack
from amiss.types import Bool, Float64, Int64, Region

_BATCH_PX = 2**19  # defect pixels ranked at once


class _Runs(NamedTuple):
    """The horizontal runs of a mask in raster order, and the region each belongs to."""

    row: Int64  # (N,)
    left: Int64  # (N,) first column
    length: Int64  # (N,) >= 1
    region: Int64  # (N,) from 0, numbered by the first pixel in raster order
    regions: int  # how many


def label_regions(mask: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int32], int]:
    """Number the 8-connected regions of a mask.

    `mask` (H, W) bool, or integer where > 0 belongs to a region. Returns `labels` (H, W) int32,
    0 outside and 1..count inside in the order of each region's first pixel, and `count`.
    Raises `MetricError` on another shape or type.
    """
    inside = np.asarray(mask)
    if inside.ndim != 2 or inside.dtype.kind not in "biu":
        raise MetricError(
            f"mask has shape {inside.shape} and type {inside.dtype}.",
            hint="Give one mask (H, W) of bool or integers.",
        )
    inside = inside > 0
    runs = _runs(inside[None])
    labels = np.zeros(inside.shape, dtype=np.int32)
    # the pixels of a mask in raster order are the pixels of its runs in order
    labels[inside] = np.repeat((runs.region + 1).astype(np.int32), runs.length)
    return labels, runs.regions


def region_list(
    anomaly_map: npt.NDArray[Any], threshold: float, roi: Bool | None = None
) -> list[Region]:
    """The 8-connected regions where the map is above the threshold, highest peak first.

    `anomaly_map` (H, W) finite; a pixel belongs to a region where map > threshold and, with `roi`
    (H, W) bool, where it is true. Boxes and peaks are in pixels of the map; a peak reached at
    several pixels is reported at the first in raster order. Raises `MetricError` on another shape
    or type, on values that are not finite, and on a threshold of NaN.
    """
    scores = np.asarray(anomaly_map)
    _check_map(scores, threshold, roi)
    # in float64, as Python compares the scores: the threshold is not rounded to the map's type
    mask = np.greater(scores, threshold, signature="dd->?")
    if roi is not None:
        mask &= roi
    runs = _runs(mask[None])
    if runs.regions == 0:
        return []
    values = scores[mask]  # run after run
    begin = np.cumsum(runs.length) - runs.length  # (N,) where each run begins in `values`
    order = np.argsort(runs.region, kind="stable")  # region after region, raster order within
    first = np.searchsorted(runs.region[order], np.arange(runs.regions))
    area = np.add.reduceat(runs.length[order], first)
    top = runs.row[order[first]]
    bottom = runs.row[order[np.append(first[1:], len(order)) - 1]] + 1
    left = np.minimum.reduceat(runs.left[order], first)
    right = np.maximum.reduceat((runs.left + runs.length)[order], first)
    peak = np.maximum.reduceat(np.maximum.reduceat(values, begin)[order], first)
    # the first pixel of each region at its peak: written last to first, so the first one stays
    hits = np.flatnonzero(values == np.repeat(peak[runs.region], runs.length))[::-1]
    hit_run = np.searchsorted(begin, hits, side="right") - 1
    hit = np.empty(runs.regions, dtype=np.int64)  # place in `values`
    hit[runs.region[hit_run]] = hits
    run = np.searchsorted(begin, hit, side="right") - 1
    column = runs.left[run] + hit - begin[run]
    table = np.stack([top, left, bottom, right, area, runs.row[run], column], axis=1)
    peak = peak.astype(np.float64)
    ranked = np.argsort(-peak, kind="stable")
    return [
        Region(box=(y0, x0, y1, x1), area_px=px, peak=value, peak_at=(y, x))
        for (y0, x0, y1, x1, px, y, x), value in zip(
            table[ranked].tolist(), peak[ranked].tolist(), strict=True
        )
    ]


def aupro(maps: Stack, masks: Stack, limit: float = 0.3, *, rois: Stack | None = None) -> float:
    """Area under the PRO curve up to a false-positive rate of `limit`, divided by `limit`, exact.

        PRO(t) = mean over regions of (share of the region with score >= t)
        FPR(t) = share with score >= t of the defect-free pixels of all images, normal ones too
        AU-PRO = 1 / limit * integral of PRO over FPR from 0 to limit

    with every distinct score as a threshold and straight lines between (MVTec AD, Bergmann et al.,
    IJCV 2021). Regions are 8-connected and formed inside the region of interest. Each defect pixel
    raises PRO by w = 1 / (size of its region * number of regions) from its own FPR onwards, so the
    integral is the sum of w * (limit - FPR of the pixel), and the curve need not be built.

    Arguments, memory and errors are those of `pixel_auroc`; `limit` lies in (0, 1]. Returns [0, 1].
    """
    check_limit(limit)
    pool = PixelPool(maps, masks, rois)
    budget = limit * pool.ok  # the limit in pixels
    area, regions, before = 0.0, 0, 0
    # a little more than the limit, as the cut is estimated: one range nearly always is enough
    for low, high in pool.ranges(share=min(1.0, 1.01 * limit + 0.001)):
        ok = pool.ranked(low, high, defect=False, before=before)
        regions = 0
        for scores, weights, found in defect_batches(pool):
            regions += found
            here = np.flatnonzero((scores >= low) & (scores < high))
            order = here[np.argsort(scores[here])]  # ascending queries are found fastest
            above, equal = ok.rank(scores[order])
            area += float((weights[order] * share_right_of(above, equal, budget)).sum())
        before = ok.end
        del ok  # or it would be held while the next range is gathered
        if before >= budget:
            break
    return min(1.0, area / (budget * regions))  # 1 / n summed n times may round above 1


def share_right_of(
    above: Int64 | Float64, equal: Int64 | Float64, budget: float | Float64
) -> Float64:
    """Integral from 0 to `budget` of a step that begins at `above` and is full at above + equal.

    The step is a straight line where other pixels share the score: the curve has no point inside
    a group of ties.
    """
    whole = budget - above - equal / 2.0
    left = np.maximum(budget - above, 0.0)
    partial = left * left / (2.0 * np.maximum(equal, 1))  # the limit cuts the line
    return np.where(above + equal <= budget, whole, partial)


def pro_curve(
    maps: Stack, masks: Stack, *, rois: Stack | None = None, limit: float = 1.0
) -> tuple[Float64, Float64]:
    """The PRO curve (fpr (P,), pro (P,)) from (0, 0) to FPR = `limit`, without its straight parts.

    Points are kept where a defect pixel moves the curve; thresholds that only add false positives
    lie on the horizontal lines between them. The last point is interpolated. The trapezoid under
    the curve divided by `limit` is `aupro`. Takes up to 200 bytes for each defect pixel. Arguments
    and errors are those of `aupro`.
    """
    check_limit(limit)
    pool = PixelPool(maps, masks, rois)
    batches = list(defect_batches(pool))
    scores = np.concatenate([batch[0] for batch in batches])
    weights = np.concatenate([batch[1] for batch in batches])
    regions = sum(batch[2] for batch in batches)
    order = np.argsort(scores)
    scores, weights = scores[order], weights[order]
    first = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    distinct = scores[first]  # ascending
    before = 0
    pieces = []
    for low, high in pool.ranges():
        ok = pool.ranked(low, high, defect=False, before=before)
        begin, end = np.searchsorted(distinct, np.array([low, high], dtype=distinct.dtype))
        pieces.append(np.stack(ok.rank(distinct[begin:end]))[:, ::-1])
        before = ok.end
        del ok
    above, equal = np.concatenate(pieces, axis=1)  # (2, T), by descending score
    pro = np.cumsum(np.add.reduceat(weights, first)[::-1]) / regions
    pro[-1] = 1.0  # but for rounding
    return curve_through(above / pool.ok, (above + equal) / pool.ok, pro, limit)


def curve_through(
    begin: Float64, end: Float64, pro: Float64, limit: float
) -> tuple[Float64, Float64]:
    """The PRO curve (fpr (P,), pro (P,)) that rises from `begin` to `end` (T,), rates of false
    positives in ascending order, to the level `pro` (T,), cut at `limit`.

    Behind the last step the curve is level.
    """
    # two points for each distinct score: before its step and after it
    fpr = np.stack([begin, end], axis=1).ravel()
    level = np.repeat(np.concatenate([[0.0], pro]), 2)[1:-1]
    fpr = np.concatenate([[0.0], fpr, [1.0]])
    level = np.concatenate([[0.0], level, pro[-1:] if len(pro) else [0.0]])
    return _up_to(fpr, np.minimum(level, 1.0), limit)


def _up_to(fpr: Float64, pro: Float64, limit: float) -> tuple[Float64, Float64]:
    """Cut the curve at `limit`, on the line between two points, and drop repeated points."""
    inside = int(np.searchsorted(fpr, limit, side="right"))  # >= 1, as the curve begins at 0
    if fpr[inside - 1] < limit:  # then there is a next point, as the curve ends at 1
        slope = (pro[inside] - pro[inside - 1]) / (fpr[inside] - fpr[inside - 1])
        end = pro[inside - 1] + slope * (limit - fpr[inside - 1])
        fpr, pro = np.append(fpr[:inside], limit), np.append(pro[:inside], end)
    else:
        fpr, pro = fpr[:inside], pro[:inside]
    new = np.append(True, (np.diff(fpr) > 0) | (np.diff(pro) > 0))
    return fpr[new], pro[new]


def defect_batches(pool: PixelPool) -> Iterator[tuple[Scores, Float64, int]]:
    """All defect pixels in batches: scores (n,), weights 1 / region size (n,), regions found."""
    scores: list[Scores] = []
    weights: list[Float64] = []
    regions = 0
    for block in pool.blocks():
        if not block.defect.any():
            continue
        own, number = region_weights(block.defect)
        weights.append(own)
        scores.append(block.scores[block.defect])
        regions += int(number.sum())
        if sum(map(len, scores)) >= _BATCH_PX:
            yield np.concatenate(scores), np.concatenate(weights), regions
            scores, weights, regions = [], [], 0
    if scores:
        yield np.concatenate(scores), np.concatenate(weights), regions


def region_weights(masks: Bool) -> tuple[Float64, Int64]:
    """Of masks (n, H, W): 1 / size of its region for each pixel of a mask, in raster order of all
    images, and the number of regions of each image (n,)."""
    runs = _runs(masks)
    size = np.bincount(runs.region, weights=runs.length)
    first = runs.row[np.unique(runs.region, return_index=True)[1]]  # a row of each region
    number = np.bincount(first // (masks.shape[1] + 1), minlength=len(masks))
    return np.repeat(1.0 / size[runs.region], runs.length), number


def _runs(masks: Bool) -> _Runs:
    """Runs and regions of masks (n, H, W), of all images at once.

    The masks are written below each other into a frame with an empty row after each image and an
    empty column after each row, so that no run or region crosses from one to the next. `row`
    counts the rows of the frame.
    """
    n, H, W = masks.shape
    stride = W + 1
    frame = np.zeros(n * (H + 1) * stride + 1, dtype=np.bool_)
    frame[1:].reshape(n, H + 1, stride)[:, :H, :W] = masks  # frame[0] is empty: edges come in pairs
    edges = np.flatnonzero(frame[1:] != frame[:-1])
    begin, end = edges[0::2], edges[1::2]  # flat places in the frame; `end` is the first outside
    # A run touches those of the next row that begin at or before its end and end at or after its
    # begin: "at" is the corner.
    first = np.searchsorted(end, begin + stride, side="left")
    number = np.searchsorted(begin, end + stride, side="right") - first
    upper = np.repeat(np.arange(len(begin)), number)
    lower = np.arange(len(upper)) + np.repeat(first - (np.cumsum(number) - number), number)
    root = _connect(len(begin), upper, lower)
    is_root = root == np.arange(len(root))
    region = (np.cumsum(is_root) - 1)[root]
    return _Runs(begin // stride, begin % stride, end - begin, region, int(is_root.sum()))


def _connect(count: int, one: Int64, other: Int64) -> Int64:
    """The smallest member of the connected set of each of `count` items, given touching pairs.

    Union-find on whole arrays: of two touching sets the one with the larger root is hung below
    the smaller root, then every item jumps to its parent's parent until it points at a root.
    """
    parent = np.arange(count)
    while True:
        one, other = parent[one], parent[other]
        apart = one != other
        if not apart.any():
            return parent
        one, other = one[apart], other[apart]
        # Below the smallest of its neighbours: hung below just any of them, the teeth of a comb
        # would be joined one after another instead of all at once.
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        grandparent = parent[parent]
        while (grandparent != parent).any():
            parent, grandparent = grandparent, grandparent[grandparent]


def check_limit(limit: float) -> None:
    if not 0.0 < limit <= 1.0:
        raise MetricError(
            f"limit is {limit}.", hint="Give a false-positive rate in (0, 1]; 0.3 is usual."
        )


def _check_map(scores: npt.NDArray[Any], threshold: float, roi: Bool | None) -> None:
    if scores.ndim != 2 or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise MetricError(
            f"anomaly_map has shape {scores.shape} and type {scores.dtype}, or is not finite.",
            hint="Give one map (H, W) of finite real numbers.",
        )
    if np.isnan(threshold):
        raise MetricError("threshold is NaN.", hint="Calibrate the detector or state a number.")
    if roi is not None and (roi.shape != scores.shape or roi.dtype != np.bool_):
        raise MetricError(
            f"roi has shape {roi.shape} and type {roi.dtype}, the map {scores.shape}.",
            hint="Give a bool array of the size of the map.",
        )
