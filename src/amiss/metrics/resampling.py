"""Bootstrap intervals of the pixel metrics, over images.

Pixels of one image are not independent of each other: images are drawn anew, not pixels. Exact
metrics of a thousand resamples would mean to sort all pixels a thousand times, so here each image
is counted once, in bins of the score, and a resample is a weighted sum of these counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from amiss.errors import MetricError
from amiss.metrics.pixel import PixelPool, Scores, Stack
from amiss.metrics.region import check_limit, region_weights, share_right_of
from amiss.types import Bool, Float64

_IMAGES = 64  # counted before they are added to the resamples
_ROUNDS = 128  # judged at once
_PARTS = 1024  # into which bins part the pixels of either class

Interval = tuple[float, float]


class PixelIntervals(NamedTuple):
    """(low, high) of the figures of `PixelMetrics`, by their names."""

    auroc: Interval
    ap: Interval
    f1_max: Interval
    aupro: Interval


def pixel_intervals(
    maps: Stack,
    masks: Stack,
    *,
    rois: Stack | None = None,
    limit: float = 0.3,
    level: float = 0.95,
    rounds: int = 1000,
    seed: int = 0,
) -> PixelIntervals:
    """Percentile bootstrap intervals of `pixel_auroc`, `pixel_ap`, `pixel_f1_max` and `aupro`.

    Each round draws as many images with defect pixels, and as many without, as there are, with
    replacement; rounds without a defect-free pixel are left out. Scores are told apart by some
    3,000 bins, whose bounds part the pixels of either class into 1,024 about equal shares; pixels
    of one bin count as ties. Up to 1,024 defect pixels have bins of their own, and all figures are
    exact. Beyond, a bin holds about a 1,024th of the defect pixels, and the AUROC of a resample is
    off by at most half the sum over bins of the product of the two classes' shares in it.

    Other arguments are those of `aupro` and of `bootstrap_interval`. Memory: 3 `rounds` rows of
    bins, some 75 MiB, beside that of `pixel_auroc`. Same seed, same intervals. Raises `MetricError`
    as `aupro` does, and on a level or a number of rounds out of range.
    """
    check_limit(limit)
    if not 0.0 < level < 1.0:
        raise MetricError(f"level is {level}.", hint="Give a coverage between 0 and 1, like 0.95.")
    if rounds < 1:
        raise MetricError(f"rounds is {rounds}.", hint="Give at least 1; 1000 is usual.")
    pool = PixelPool(maps, masks, rois)
    times = _times(pool.has_defect, rounds, seed)
    sums = _resampled(pool, pool.cuts(_PARTS), times)
    has_ok: Bool = sums[0].sum(axis=1) > 0
    if not has_ok.any():
        raise MetricError(
            f"none of {rounds} resamples has a defect-free pixel.", hint="Judge more images."
        )
    values = []
    for start in range(0, rounds, _ROUNDS):
        here = slice(start, start + _ROUNDS)
        ok, defect, weight, regions = (part[here][has_ok[here]] for part in sums)
        values.append(_metrics(ok, defect, weight, regions, limit))
    tail = (1.0 - level) / 2.0
    bounds = np.quantile(np.concatenate(values), [tail, 1.0 - tail], axis=0)  # (2, 4)
    low_high: list[Interval] = [(low, high) for low, high in bounds.T.tolist()]
    return PixelIntervals(*low_high)


def _times(has_defect: Bool, rounds: int, seed: int) -> Float64:
    """How often each image is drawn in each round, (rounds, B)."""
    random = np.random.default_rng(seed)
    times = np.zeros((rounds, len(has_defect)))
    for members in (np.flatnonzero(has_defect), np.flatnonzero(~has_defect)):
        if len(members):
            shares = np.full(len(members), 1.0 / len(members))
            times[:, members] = random.multinomial(len(members), shares, size=rounds)
    return times


def _resampled(
    pool: PixelPool, cuts: Scores, times: Float64
) -> tuple[Float64, Float64, Float64, Float64]:
    """Of each round, high scores first: pixels without and with defect, and weight of regions, in
    each bin (rounds, K); and the number of regions (rounds, 1)."""
    rounds, K = len(times), len(cuts) + 1
    sums = np.zeros((3, rounds, K))
    regions = np.zeros((rounds, 1))
    counted: list[Float64] = []  # (3, K) of each image
    first = 0

    def add() -> None:
        nonlocal first
        of_images = np.stack(counted, axis=1)  # (3, n, K)
        sums[...] += times[:, first : first + len(counted)] @ of_images
        first += len(counted)
        counted.clear()

    seen = 0
    for block in pool.blocks():
        weights, number = region_weights(block.defect)
        regions += times[:, seen : seen + len(number)] @ number[:, None]
        seen += len(number)
        taken = 0
        for scores, ok, defect in zip(*block, strict=True):
            place = np.searchsorted(cuts, scores.ravel(), side="right")
            of_defect = place[defect.ravel()]
            own = weights[taken : taken + len(of_defect)]
            taken += len(of_defect)
            counted.append(
                np.stack([
                    np.bincount(place[ok.ravel()], minlength=K),
                    np.bincount(of_defect, minlength=K),
                    np.bincount(of_defect, weights=own, minlength=K),
                ])
            )  # fmt: skip
        if len(counted) >= _IMAGES:
            add()
    if counted:
        add()
    ok_sum, defect_sum, weight_sum = sums[:, :, ::-1]
    return ok_sum, defect_sum, weight_sum, regions


def _metrics(
    ok: Float64, defect: Float64, weight: Float64, regions: Float64, limit: float
) -> Float64:
    """AUROC, AP, F1-max and AU-PRO (n, 4) of resamples, from their counts (n, K) by descending
    score."""
    fp, tp = ok.cumsum(axis=1), defect.cumsum(axis=1)
    all_ok, all_defect = fp[:, -1:], tp[:, -1:]
    above = fp - ok
    ordered = (defect * (all_ok - above - ok / 2.0)).sum(axis=1)
    auroc = ordered / (all_ok * all_defect)[:, 0]
    # an empty bin at the top has neither: 0 of 1 instead of 0 of 0
    ap = (defect * tp / np.maximum(tp + fp, 1.0)).sum(axis=1) / all_defect[:, 0]
    f1 = (2.0 * tp / (tp + fp + all_defect)).max(axis=1)
    budget = limit * all_ok
    area = (weight * share_right_of(above, ok, budget)).sum(axis=1)
    aupro = np.minimum(1.0, area / (budget * regions)[:, 0])
    return np.stack([auroc, ap, f1, aupro], axis=1)
