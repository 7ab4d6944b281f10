"""Thresholds that state their false-alarm rate, from scores of held-out normal images.

For n held-out normal scores s_1..s_n of one fixed model and a new score s, the conformal p-value is
(1 + #{s_i >= s}) / (n + 1). If the new image is exchangeable with them, P(p <= alpha) <= alpha, for
any model and any score (Vovk, Gammerman, Shafer, 2005). Leaving out one image or fold at a time
approximates this; docs/thresholds.md says how well. An image is called anomalous when
p <= alpha, which is the same as s > the k-th largest s_i with k = floor(alpha (n + 1)).

Given the calibration scores, the rate that this threshold will realise is itself a random number:
it follows Beta(k, n + 1 - k), and its count among m new normal images the beta-binomial.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amiss.errors import CalibrationError, OptionError
from amiss.types import Float64, Int64


@dataclass(frozen=True, slots=True)
class Calibration:
    """Learned on held-out normals; lives beside the weights and can be changed at any time.

    `scores` (n,) and `map_maxima` (n,), or (m,) where only m images have a map, float64, ascending,
    are what any other threshold is computed from. An image is anomalous when its score is above
    `threshold`, a pixel when its map is above `pixel_threshold` (None for methods without maps): in
    normal images, at most the share `alpha` has any such pixel. `max_false_alarm` is the rate asked
    for; `alpha`, the one in force, differs where n is too small or another policy chose the
    threshold.
    """

    scores: Float64
    map_maxima: Float64 | None
    how: str
    policy: str
    max_false_alarm: float
    alpha: float
    threshold: float
    pixel_threshold: float | None
    display: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    def p_values(self, scores: npt.ArrayLike) -> Float64:
        """(B,) raw scores -> (B,) conformal p-values in [1 / (n + 1), 1]."""
        s = np.asarray(scores, dtype=np.float64)
        at_least = len(self.scores) - np.searchsorted(self.scores, s, side="left")
        return np.asarray((1 + at_least) / (len(self.scores) + 1), dtype=np.float64)

    def expected_rates(
        self, m: int | None = None, level: float = 0.95
    ) -> tuple[float, float] | None:
        """Where the realised false-alarm rate should lie with probability `level`: over endlessly
        many new normal images, or over `m` of them. None for a threshold that was not set by a
        false-alarm rate: nothing is promised then."""
        if self.policy != "max_false_alarm":
            return None
        n = len(self.scores)
        above = n - int(np.searchsorted(self.scores, self.threshold, side="right"))
        return rate_interval(n, above + 1, m, level)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays, of JSON types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["scores"], values["map_maxima"]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], scores: Float64, map_maxima: Float64 | None
    ) -> Calibration:
        """The reverse of `as_dict`."""
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        made = cls(scores=scores, map_maxima=map_maxima, **fixed)
        made.validate()
        return made

    def validate(self) -> None:
        """Raise ValueError unless every part is what its description says."""
        arrays = [self.scores] if self.map_maxima is None else [self.scores, self.map_maxima]
        for array in arrays:
            if array.dtype != np.float64 or array.ndim != 1 or len(array) > len(self.scores):
                raise ValueError("calibration scores of another kind or number")
            if len(array) == 0 or bool((np.diff(array) < 0).any()):
                raise ValueError("calibration scores that are not in ascending order")
        display = () if self.display is None else self.display
        pixel = () if self.pixel_threshold is None else (self.pixel_threshold,)
        for number in (self.threshold, self.alpha, self.max_false_alarm, *display, *pixel):
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"{number!r} where a finite number belongs")


def calibrate(
    scores: Float64,
    map_maxima: Float64 | None,
    map_medians: Float64 | None,
    *,
    max_false_alarm: float,
    how: str,
) -> Calibration:
    """Thresholds for a false-alarm rate of at most `max_false_alarm` from normals alone.

    Args:
        scores: (n,) raw scores of normal images that the model had not seen.
        map_maxima, map_medians: (n,) each, or fewer, or None where there are no maps.

    Raises:
        CalibrationError: no scores, or some that are not finite.
        OptionError: a rate outside (0, 1).
    """
    check_rate(max_false_alarm)
    if len(scores) == 0:
        raise CalibrationError(
            "There is no held-out normal image to set a threshold from.",
            hint="Give at least two normal images.",
        )
    ordered = _ascending(scores)
    maxima = None if map_maxima is None else _ascending(map_maxima)
    base = Calibration(
        scores=ordered,
        map_maxima=maxima,
        how=how,
        policy="max_false_alarm",
        max_false_alarm=max_false_alarm,
        alpha=max_false_alarm,
        threshold=0.0,
        pixel_threshold=None,
        display=None,
    )
    done = with_false_alarm_rate(base, max_false_alarm)
    if done.pixel_threshold is None or map_medians is None:
        return done
    low = float(np.median(map_medians))
    high = done.pixel_threshold + max(done.pixel_threshold - low, 1e-12)
    return dataclasses.replace(done, display=(low, high))


def with_false_alarm_rate(calibration: Calibration, max_false_alarm: float) -> Calibration:
    """The same calibration at another false-alarm rate; nothing is fitted again.

    The display scale stays: heat maps keep their colours.
    """
    check_rate(max_false_alarm)
    n = len(calibration.scores)
    k = order(n, max_false_alarm)
    notes: tuple[str, ...] = ()
    if k == 0:
        k = 1
        notes = (too_few(n, max_false_alarm),)
    maxima = calibration.map_maxima
    return dataclasses.replace(
        calibration,
        policy="max_false_alarm",
        max_false_alarm=max_false_alarm,
        alpha=max_false_alarm if not notes else 1 / (n + 1),
        threshold=float(calibration.scores[n - k]),
        pixel_threshold=None if maxima is None else _pixel_threshold(maxima, max_false_alarm),
        notes=notes,
    )


def _pixel_threshold(maxima: Float64, alpha: float) -> float:
    """The order statistic of the map maxima at a rate, or the largest where they are too few."""
    return float(maxima[len(maxima) - max(order(len(maxima), alpha), 1)])


def with_threshold(calibration: Calibration, threshold: float) -> Calibration:
    """The same calibration at a threshold set by hand; `alpha` says what it costs."""
    if not math.isfinite(threshold):
        raise OptionError(f"threshold={threshold} is not a finite number.")
    return _moved(calibration, threshold, "manual", ())


def calibration_arrays(calibration: Calibration) -> dict[str, Float64]:
    """The arrays of a calibration under the names that they have in files."""
    arrays = {"calibration.scores": calibration.scores}
    if calibration.map_maxima is not None:
        arrays["calibration.map_maxima"] = calibration.map_maxima
    return arrays


def scaled(
    calibration: Calibration, score: float, peak: float, *, notes: tuple[str, ...] = ()
) -> Calibration:
    """The same calibration for a model whose scores are `score` times, and whose map values are
    `peak` times, those that it was made with; both above 0. Thresholds move along, rates and
    p-values stay. `notes` say why."""

    def times(values: Any, factor: float) -> Any:
        return None if values is None else factor * values

    display = calibration.display
    return dataclasses.replace(
        calibration,
        scores=times(calibration.scores, score),
        map_maxima=times(calibration.map_maxima, peak),
        threshold=times(calibration.threshold, score),
        pixel_threshold=times(calibration.pixel_threshold, peak),
        display=None if display is None else (times(display[0], peak), times(display[1], peak)),
        notes=(*calibration.notes, *notes),
    )


def with_labels(
    calibration: Calibration,
    scores: Float64,
    labels: Int64,
    *,
    policy: str,
    cost: tuple[float, float] = (1.0, 1.0),
) -> Calibration:
    """A threshold from labelled images of their own, which must never be judged with it.

    policy: "f1" (largest F1), "recall" (the highest threshold that catches every labelled anomaly)
    or "cost" (least `cost[0]` per false alarm + `cost[1]` per miss). The calibration's own normals
    count beside the labelled ones. Thresholds lie midway between neighbouring scores.

    Raises:
        CalibrationError: no anomalous image among the labelled ones.
        OptionError: unknown policy, or costs that are not positive.
    """
    if policy not in {"f1", "recall", "cost"}:
        raise OptionError(f"policy={policy!r} is not known.", hint="Choose f1, recall or cost.")
    if min(cost) <= 0 or not all(map(math.isfinite, cost)):
        raise OptionError(f"cost={cost} must be two positive numbers.", hint="For example 1:10.")
    if not (labels == 1).any():
        raise CalibrationError(
            f"policy {policy} needs labelled anomalous images, and none was given.",
            hint="Give some, or use max_false_alarm, which needs normal images only.",
        )
    normal = np.sort(np.concatenate([calibration.scores, scores[labels == 0]]))
    anomalous = np.sort(scores[labels == 1].astype(np.float64))
    cuts = _midpoints(np.concatenate([normal, anomalous]))
    false_alarms = len(normal) - np.searchsorted(normal, cuts, side="right")
    misses = np.searchsorted(anomalous, cuts, side="right")
    if policy == "recall":
        loss = np.where(misses == 0, false_alarms, np.inf)
    elif policy == "cost":
        loss = cost[0] * false_alarms + cost[1] * misses
    else:
        detected = len(anomalous) - misses
        loss = -2 * detected / (detected + false_alarms + len(anomalous))
    best = np.flatnonzero(loss == loss.min())[-1]  # of equals, the highest: fewest false alarms
    name = f"cost {cost[0]:g}:{cost[1]:g}" if policy == "cost" else policy
    note = (
        f"The threshold was chosen on {len(anomalous)} labelled anomalous images; "
        "its false-alarm rate is an estimate, not a guarantee."
    )
    return _moved(calibration, float(cuts[best]), name, (note,))


def _moved(
    calibration: Calibration, threshold: float, policy: str, notes: tuple[str, ...]
) -> Calibration:
    """Another image threshold, the pixel threshold at the same false-alarm rate."""
    n = len(calibration.scores)
    above = n - int(np.searchsorted(calibration.scores, threshold, side="right"))
    alpha = (1 + above) / (n + 1)
    maxima = calibration.map_maxima
    return dataclasses.replace(
        calibration,
        policy=policy,
        alpha=alpha,
        threshold=threshold,
        pixel_threshold=None if maxima is None else _pixel_threshold(maxima, alpha),
        notes=notes,
    )


def order(n: int, alpha: float) -> int:
    """k = floor(alpha (n + 1)): the threshold is the k-th largest score; 0 where n is too small."""
    return min(n, math.floor(alpha * (n + 1) + 1e-9))  # 0.29 * 100 is 28.999999999999996


def too_few(n: int, alpha: float) -> str:
    """What to tell a user whose n normals cannot support alpha."""
    return (
        f"{n} judged normal images cannot support a false-alarm rate of {alpha:g}: the smallest "
        f"they support is {1 / (n + 1):.3g}, which is in force. For {alpha:g} it takes "
        f"{enough(alpha)}."
    )


def enough(alpha: float) -> int:
    """The least number of scores that support alpha."""
    return math.ceil(1 / alpha - 1e-9) - 1


def check_rate(alpha: float) -> None:
    """Raise OptionError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise OptionError(
            f"max_false_alarm={alpha} is not a rate.", hint="Use a number between 0 and 1."
        )


# --- what a threshold will realise ---------------------------------------------------------


def rate_interval(n: int, k: int, m: int | None = None, level: float = 0.95) -> tuple[float, float]:
    """Central `level` interval of the false-alarm rate when the threshold is the k-th largest of n.

    m None: of the long-run rate, Beta(k, n + 1 - k). Otherwise of the rate among m new normals,
    beta-binomial(m, k, n + 1 - k) / m; its ends are attained with at least that probability.
    """
    if k > n:  # below all calibration scores: nothing is known but that the rate is high
        return (float((1 - level) / 2) ** (1 / max(n, 1)), 1.0)
    tail = (1 - level) / 2
    if m is None:
        return _beta_quantile(tail, k, n + 1 - k), _beta_quantile(1 - tail, k, n + 1 - k)
    cumulative = np.cumsum(_beta_binomial(m, k, n + 1 - k))
    low = int(np.searchsorted(cumulative, tail, side="right"))
    high = int(np.searchsorted(cumulative, 1 - tail, side="left"))
    return min(low, m) / m, min(high, m) / m


def _beta_binomial(m: int, a: int, b: int) -> Float64:
    """(m + 1,) probabilities of 0..m, by the ratio of neighbours, in logarithms."""
    j = np.arange(m, dtype=np.float64)
    steps = np.log(m - j) + np.log(j + a) - np.log(j + 1) - np.log(m - j - 1 + b)
    log_p = np.concatenate([[0.0], np.cumsum(steps)])
    p: Float64 = np.exp(log_p - log_p.max())
    p /= p.sum()
    return p


def _beta_quantile(q: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) with whole a, b: P(X <= x) = P(Binomial(a + b - 1, x) >= a)."""
    n = a + b - 1
    j = np.arange(n, dtype=np.float64)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log(n - j) - np.log(j + 1))])
    counts = np.arange(n + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        log_p = log_choose + counts * math.log(x) + (n - counts) * math.log1p(-x)
        if float(np.exp(log_p[a:]).sum()) < q:
            low = x
        else:
            high = x
    return (low + high) / 2


def _ascending(values: Float64) -> Float64:
    ordered: Float64 = np.sort(np.asarray(values, dtype=np.float64))
    if not np.isfinite(ordered).all():
        raise CalibrationError(
            "Some held-out normal images have scores that are not finite.",
            hint="Check the backbone's weights and the images.",
        )
    return ordered


def _midpoints(values: Float64) -> Float64:
    """Below the least, between each two neighbours, and above the greatest of the values."""
    distinct = np.unique(values)
    between = (distinct[1:] + distinct[:-1]) / 2
    ends = np.array([np.nextafter(distinct[0], -np.inf)]), distinct[-1:]
    return np.concatenate([ends[0], between, ends[1]])
