"""Metrics of detection: one score and one label per image.

All of them are functions of two counts at each distinct score t, taken from high to low:
TP(t), the anomalous images with score >= t, and FP(t), the normal images with score >= t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from amiss.errors import MetricError
from amiss.types import Bool, Float64, Int64

ImageMetric = Literal["image_auroc", "image_ap", "image_f1_max"]

# Resampled counts held at once by the bootstrap, a few tens of MiB whatever the number of images.
_BOOTSTRAP_CELLS = 2**20


class _Ranking(NamedTuple):
    """Images from the highest score to the lowest, and where each group of equal scores ends."""

    thresholds: npt.NDArray[Any]  # (T,) the distinct scores, descending, in the caller's dtype
    last: Int64  # (T,) position of the last image of each group
    anomalous: Bool  # (B,) in the order of the ranking


def image_auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-) / 2.

    `scores` (B,) finite, higher is more anomalous; `labels` (B,) 0 or 1. Returns [0, 1].
    Raises `MetricError` on anything else, and where one of the two classes is absent.
    """
    return float(_auroc(*_counts(_ranking(scores, labels))))


def min_max(scores: npt.ArrayLike) -> Float64:
    """s' = (s - min S) / (max S - min S), in [0, 1]; all 0 where all scores are the same.

    `scores` (B,) finite, of a finished test set: each score then depends on all others, so this is
    for showing them, as GANomaly's authors do, and not for deciding. The order stays. Raises
    `MetricError` on anything else, and without a score.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise MetricError("min_max needs one row of finite scores.")
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros_like(values)
    scaled: Float64 = (values - low) / (high - low)
    return scaled


def image_ap(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Average precision, the step form: AP = sum_t (R(t) - R(t-1)) P(t), without interpolation.

    The trapezoid over the same curve, which some libraries call AUPR, is a different number.
    Arguments, range and errors are those of `image_auroc`.
    """
    return float(_average_precision(*_counts(_ranking(scores, labels))))


def image_f1_max(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The best F1 = 2 P R / (P + R) over all thresholds, chosen on these very labels (an oracle).

    Arguments, range and errors are those of `image_auroc`.
    """
    return float(_f1(*_counts(_ranking(scores, labels))).max())


def f1_max_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The score t at which "anomalous where score >= t" has the best F1.

    Of several equally good ones it is the highest, which alarms least. Arguments and errors are
    those of `image_auroc`.
    """
    ranking = _ranking(scores, labels)
    return float(ranking.thresholds[np.argmax(_f1(*_counts(ranking)))])


def roc_curve(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Float64, Float64]:
    """The ROC curve as (fpr (T + 1,), tpr (T + 1,)) from (0, 0) to (1, 1).

    One point for each of the T distinct scores, high to low. Arguments and errors are those of
    `image_auroc`.
    """
    tp, fp = _counts(_ranking(scores, labels))
    start = np.zeros(1)
    return np.concatenate([start, fp / fp[-1]]), np.concatenate([start, tp / tp[-1]])


def bootstrap_interval(
    metric: ImageMetric,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    level: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a metric of this file, given by its name.

    Resampling is stratified: each round draws as many anomalous and as many normal images, with
    replacement, as there are. No round lacks a class, and the interval is for a test set of this
    composition. Where the two classes do not overlap, no resample does, and an AUROC of 1 gets
    the interval (1, 1): then it is the number of images that limits what is known, not the score.

    `level` is the coverage in (0, 1). Same seed, same interval. Raises `MetricError` on an
    unknown metric, a level or a number of rounds out of range, and as `image_auroc` does.
    """
    if metric not in _KERNELS:
        allowed = ", ".join(_KERNELS)
        raise MetricError(f"metric is {metric!r}.", hint=f"Use one of: {allowed}.")
    if not 0.0 < level < 1.0:
        raise MetricError(f"level is {level}.", hint="Give a coverage between 0 and 1, like 0.95.")
    if rounds < 1:
        raise MetricError(f"rounds is {rounds}.", hint="Give at least 1; 2000 is usual.")
    ranking = _ranking(scores, labels)
    kernel = _KERNELS[metric]
    generator = np.random.default_rng(seed)
    at_once = max(1, _BOOTSTRAP_CELLS // len(ranking.anomalous))
    values = []
    for done in range(0, rounds, at_once):
        count = min(at_once, rounds - done)
        tp = _resampled(ranking, ranking.anomalous, count, generator)  # (rounds, T)
        fp = _resampled(ranking, ~ranking.anomalous, count, generator)  # (rounds, T)
        values.append(kernel(tp, fp))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.concatenate(values), [tail, 1.0 - tail])
    return float(low), float(high)


def _resampled(
    ranking: _Ranking, members: Bool, rounds: int, generator: np.random.Generator
) -> Int64:
    """TP or FP at each threshold (rounds, T) when one class is drawn anew from itself."""
    B = len(members)
    places = np.flatnonzero(members)
    drawn = places[generator.integers(0, len(places), size=(rounds, len(places)))]
    drawn += np.arange(rounds)[:, None] * B  # a row of B counters for each round
    times = np.bincount(drawn.ravel(), minlength=rounds * B).reshape(rounds, B)
    return np.cumsum(times, axis=1)[:, ranking.last]


def _auroc(tp: Int64, fp: Int64) -> Float64:
    """Trapezoid under the ROC curve, in integers up to the last division. (..., T) -> (...)."""
    twice = (_steps(fp) * (2 * tp - _steps(tp))).sum(axis=-1)
    return np.asarray(twice / (2 * tp[..., -1] * fp[..., -1]), dtype=np.float64)


def _average_precision(tp: Int64, fp: Int64) -> Float64:
    """sum_t (TP(t) - TP(t-1)) / P * TP(t) / (TP(t) + FP(t)). (..., T) -> (...)."""
    # A resample can hold no image at the highest scores: TP = FP = 0, and its step is 0 as well.
    precision = tp / np.maximum(tp + fp, 1)
    return np.asarray((_steps(tp) * precision).sum(axis=-1) / tp[..., -1], dtype=np.float64)


def _f1(tp: Int64, fp: Int64) -> Float64:
    """F1 = 2 TP / (2 TP + FP + FN) at each threshold: no 0 / 0, as TP + FN >= 1. Keeps (..., T)."""
    return np.asarray(2 * tp / (tp + fp + tp[..., -1:]), dtype=np.float64)


def _f1_max(tp: Int64, fp: Int64) -> Float64:
    return np.asarray(_f1(tp, fp).max(axis=-1), dtype=np.float64)


_KERNELS: dict[str, Callable[[Int64, Int64], Float64]] = {
    "image_auroc": _auroc,
    "image_ap": _average_precision,
    "image_f1_max": _f1_max,
}


def _steps(counts: Int64) -> Int64:
    return np.diff(counts, axis=-1, prepend=0)


def _counts(ranking: _Ranking) -> tuple[Int64, Int64]:
    """TP (T,) and FP (T,) at each distinct score, high to low."""
    tp = np.cumsum(ranking.anomalous, dtype=np.int64)[ranking.last]
    return tp, ranking.last + 1 - tp


def _ranking(scores: npt.ArrayLike, labels: npt.ArrayLike) -> _Ranking:
    """Check the arguments and sort the images from the highest score to the lowest."""
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise MetricError(
            f"scores have shape {values.shape} and labels {truth.shape}.",
            hint="Give one score and one label for each image, both of shape (B,).",
        )
    if values.dtype.kind not in "fiub":
        raise MetricError(f"scores are of type {values.dtype}.", hint="Give real numbers.")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise MetricError(
            f"score {at} is {values[at]}.",
            hint="Scores must be finite; look at the image and at the method that made it.",
        )
    if truth.dtype.kind not in "fiub" or not np.isin(truth, (0, 1)).all():
        raise MetricError(
            f"labels hold something other than 0 and 1 (type {truth.dtype}).",
            hint="Use 0 for normal and 1 for anomalous, and leave unlabelled images out.",
        )
    anomalous = truth == 1
    for name, there in (("anomalous", anomalous.any()), ("normal", not anomalous.all())):
        if not there:
            raise MetricError(
                f"no {name} image among {len(truth)}.",
                hint="This metric compares the two classes and needs at least one image of each.",
            )
    order = np.argsort(values, kind="stable")[::-1]
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return _Ranking(ordered[last], last, anomalous[order])
