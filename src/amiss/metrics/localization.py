"""All metrics of localization at once, for about the price of one.

Each of them follows from how many pixels of the two classes lie above and at the score of every
defect pixel. To find that out, all other pixels are sorted; here that is done once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from amiss.metrics.pixel import PixelPool, Ranked, Scores, Stack, Steps
from amiss.metrics.region import check_limit, curve_through, defect_batches, share_right_of
from amiss.types import Float64, Int64


class PixelMetrics(NamedTuple):
    """What `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `aupro` and `pro_curve` return."""

    auroc: float
    ap: float
    f1_max: float
    aupro: float
    pro_curve: tuple[Float64, Float64]


class _Ranks(NamedTuple):
    """Defect pixels (n,) by ascending score, and what lies above and at each."""

    scores: Scores
    weights: Float64  # 1 / size of the pixel's region
    steps: Steps


def pixel_metrics(
    maps: Stack, masks: Stack, *, rois: Stack | None = None, limit: float = 0.3
) -> PixelMetrics:
    """The five functions of these names, exact, with the pixels sorted once.

    `limit` is that of `aupro` and `pro_curve`. Memory is that of `pixel_auroc`, and up to 200 bytes
    for each defect pixel whose false-positive rate is below the limit. Arguments and errors are
    those of `aupro`.
    """
    check_limit(limit)
    pool = PixelPool(maps, masks, rois)
    budget = limit * pool.ok  # the limit in pixels
    twice, precision, f1, area, regions = 0, 0.0, 0.0, 0.0, 0
    kept: list[_Ranks] = []
    ok_before = defect_before = 0
    for low, high in pool.ranges(defects_too=True):
        ok = pool.ranked(low, high, defect=False, before=ok_before)
        defect = pool.ranked(low, high, defect=True, before=defect_before)
        ok_before, defect_before = ok.end, defect.end
        regions = 0
        for scores, weights, found in defect_batches(pool):
            regions += found
            here = np.flatnonzero((scores >= low) & (scores < high))
            if not len(here):
                continue
            ranks = _ranks(scores[here], weights[here], ok, defect)
            above, equal = ranks.steps.above, ranks.steps.equal
            twice += ranks.steps.twice_ordered(pool.ok)
            precision += ranks.steps.precision()
            f1 = max(f1, ranks.steps.best_f1(pool.defects))
            area += float((ranks.weights * share_right_of(above, equal, budget)).sum())
            kept.append(_before(ranks, limit, pool.ok))
        del ok, defect  # or they would be held while the next range is gathered
    return PixelMetrics(
        auroc=twice / (2 * pool.ok * pool.defects),
        ap=precision / pool.defects,
        f1_max=f1,
        aupro=min(1.0, area / (budget * regions)),  # 1 / n summed n times may round above 1
        pro_curve=_curve(kept, pool, regions, limit),
    )


def _ranks(scores: Scores, weights: Float64, ok: Ranked, defect: Ranked) -> _Ranks:
    """Rank defect pixels (n,) of one range among both classes."""
    order = np.argsort(scores)  # ascending queries are found fastest
    queries = scores[order]
    above, equal = ok.rank(queries)
    tp_above, tp_equal = defect.rank(queries)
    steps = Steps(np.ones_like(above), tp_above + tp_equal, above, equal)
    return _Ranks(queries, weights[order], steps)


def _before(ranks: _Ranks, limit: float, ok: int) -> _Ranks:
    """The pixels that move the curve at a false-positive rate of at most `limit`: the highest."""
    first = len(ranks.scores) - int(np.count_nonzero(ranks.steps.above / ok <= limit))
    steps = Steps(*(counts[first:] for counts in ranks.steps))
    return _Ranks(ranks.scores[first:], ranks.weights[first:], steps)


def _curve(
    kept: list[_Ranks], pool: PixelPool, regions: int, limit: float
) -> tuple[Float64, Float64]:
    """The PRO curve up to `limit` through the pixels that move it there."""
    scores = np.concatenate([ranks.scores for ranks in kept])
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    weights = np.concatenate([ranks.weights for ranks in kept])[order]
    pro = np.cumsum(np.add.reduceat(weights, first) if len(first) else weights) / regions
    if len(ordered) == pool.defects:
        pro[-1] = 1.0  # but for rounding
    above: Int64 = np.concatenate([ranks.steps.above for ranks in kept])[order][first]
    equal: Int64 = np.concatenate([ranks.steps.equal for ranks in kept])[order][first]
    return curve_through(above / pool.ok, (above + equal) / pool.ok, pro, limit)
