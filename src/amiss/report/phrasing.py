"""Numbers and sentences of the report: how a rate, a score or a verdict reads in plain English."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from amiss.types import ANOMALOUS, NORMAL, Float64

if TYPE_CHECKING:  # evaluation loads the network's libraries; a page needs only its outcome
    from amiss.outcome import Judged, Report

NBSP = "\u00a0"
# The policies of `amiss.calibration` that promise no false-alarm rate.
_POLICY_CLAUSES = {
    "manual": "At the threshold set by hand",
    "f1": "At the threshold with the largest F1 on labelled images of their own",
    "recall": "At the highest threshold that catches every labelled anomaly",
    "cost": "At the threshold of least cost",
}


def number(value: float | None, digits: int = 4) -> str:
    """`value` to so many significant digits, with a true minus sign; "–" for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:.{digits}g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def span(low: str, high: str) -> str:
    """ "low–high", not to be broken at the dash."""
    return f"{low}\u2060–\u2060{high}"


def score_format(scores: Float64, digits: int = 4) -> Callable[[float], str]:
    """How all scores (N,) of one page are written: the largest with so many digits, the others
    with the same decimals.

    Numbers below each other are then comparable at a glance, which significant digits are not.
    """
    finite = np.abs(scores[np.isfinite(scores)])
    largest = float(finite.max()) if finite.size else 1.0
    decimals = digits - 1 - (math.floor(math.log10(largest)) if largest > 0.0 else 0)

    def written(score: float) -> str:
        if not -3 <= decimals <= 6 or not math.isfinite(score):
            return number(score, digits)
        return f"{score:.{max(0, decimals)}f}".replace("-", "−")

    return written


def percent(rate: float) -> str:
    """A fraction in [0, 1] as a percentage; never rounded to 0 or 100 unless it is exactly that."""
    shown = 100.0 * rate
    for decimals in (1, 2, 3, 4):
        text = f"{shown:.{decimals}f}".rstrip("0").rstrip(".")
        if text not in ("0", "100") or shown in (0.0, 100.0):
            return f"{text}{NBSP}%"
    return f"{shown:.2g}{NBSP}%"


def metric(value: float) -> str:
    """A metric in [0, 1] to four decimals, or more where four would round it up to a perfect 1."""
    for decimals in (4, 5, 6, 7, 8):
        text = f"{value:.{decimals}f}"
        if float(text) < 1.0:
            return text
    return f"{value:.4f}"  # what is left differs from 1 by rounding in the last bits at most


def count(total: int, noun: str, plural: str = "") -> str:
    """ "1 image", "2 images", "5,000 images"."""
    return f"{total:,}{NBSP}{noun if total == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time span in the unit that suits it."""
    if seconds < 1.0:
        return f"{1000.0 * seconds:.3g}{NBSP}ms"
    if seconds < 120.0:
        return f"{seconds:.3g}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{NBSP}min {rest}{NBSP}s"


def memory(mib: float) -> str:
    """A memory size given in MiB."""
    return f"{mib / 1024:.2f}{NBSP}GiB" if mib >= 1024 else f"{mib:.0f}{NBSP}MiB"


def verdict(report: Report) -> str:
    """The outcome in one plain sentence."""
    point = report.operating_point
    n_normal = int(point.get("n_normal", (report.labels == NORMAL).sum()))
    n_anomalous = int(point.get("n_anomalous", (report.labels == ANOMALOUS).sum()))
    if n_normal + n_anomalous == 0:
        return "No image was judged, so there is nothing to report."
    if point.get("threshold") is None:
        return f"No threshold is set, so {_ranking(report, n_normal, n_anomalous)}"
    alarms = int(point.get("false_alarms") or 0)
    detected = int(point.get("detected") or 0)
    caught = (
        f"it caught {detected:,} of {n_anomalous:,} anomalous "
        f"{'image' if n_anomalous == 1 else 'images'}"
    )
    raised = count(alarms, "alarm")
    if n_anomalous == 0:
        outcome = (
            f"it raised {raised} on {count(n_normal, 'normal image')}; "
            "there were no anomalous images to catch."
        )
    elif n_normal == 0:
        outcome = f"{caught}; there were no normal images to raise a false alarm on."
    else:
        normal_ones = f"{n_normal:,} normal {'one' if n_normal == 1 else 'ones'}"
        outcome = f"{caught} and raised {raised} on {normal_ones}."
    return f"{_threshold_clause(point)}, {outcome}"


def truth(row: Judged) -> str:
    """The label in words, with the kind where there is one that says more."""
    if row.label == NORMAL:
        return "normal"
    return row.kind or "anomalous"


def decision(row: Judged) -> str:
    """The decision in words, mistakes by their names; "–" without a threshold."""
    called = row.result.is_anomalous
    if called is None:
        return "–"
    if row.label == NORMAL:
        return "false alarm" if called else "normal"
    return "anomalous" if called else "miss"


def alarm_limit(point: dict[str, Any]) -> float | None:
    """The false-alarm rate that the threshold promises; None where the policy promises none."""
    if _policy(point) in _POLICY_CLAUSES:
        return None
    asked, in_force = point.get("max_false_alarm"), point.get("alpha")
    if asked is None:
        return None if in_force is None else float(in_force)
    # A threshold on the nearest order statistic may keep to less than was asked for; what was asked
    # for is then still true. More than that has to be said.
    return float(asked) if in_force is None else max(float(asked), float(in_force))


def expected_range(point: dict[str, Any]) -> str | None:
    """The span of false-alarm rates that is to be expected on this many test normals."""
    interval = point.get("false_alarm_interval")
    if interval is None or point.get("n_normal") == 0:
        return None
    low, high = interval
    return span(percent(low), percent(high))


def unmet_wish(point: dict[str, Any]) -> str | None:
    """The sentence that says that the threshold promises less than the user asked for."""
    limit, asked = alarm_limit(point), point.get("max_false_alarm")
    if limit is None or asked is None or limit <= float(asked) * (1.0 + 1e-9):
        return None
    images = count(int(point.get("n_calibration") or 0), "calibration image")
    return f"{percent(asked)} was asked for; {images} can promise no less than {percent(limit)}."


def other_rates(report: Report) -> list[dict[str, str]]:
    """What other false-alarm rates would have done, as text; nothing where only one is possible."""
    point = report.operating_point
    rows = report.other_rates()
    if len(rows) < 2:
        return []
    written = score_format(np.concatenate([report.scores, report.calibration_scores]))
    n_normal, n_anomalous = point.get("n_normal", 0), point.get("n_anomalous", 0)
    return [
        {
            "rate": percent(row["max_false_alarm"]),
            "threshold": written(row["threshold"]),
            "alarms": f"{row['false_alarms']:,} of {n_normal:,}",
            "caught": f"{row['detected']:,} of {n_anomalous:,}",
        }
        for row in rows
    ]


def _policy(point: dict[str, Any]) -> str:
    """The policy without its parameters: "cost 1:10" is "cost"."""
    return str(point.get("policy") or "").partition(" ")[0]


def _threshold_clause(point: dict[str, Any]) -> str:
    limit = alarm_limit(point)
    if limit is None:
        clause = _POLICY_CLAUSES.get(_policy(point), "At the threshold in force")
        if _policy(point) == "cost":
            _, _, costs = str(point["policy"]).partition(" ")
            clause += f" ({costs} for a false alarm and a miss)"
        return clause
    expected = expected_range(point)
    aside = f" ({expected} expected)" if expected is not None else ""
    return f"At the threshold set for at most {percent(limit)} false alarms{aside}"


def _ranking(report: Report, n_normal: int, n_anomalous: int) -> str:
    auroc = report.metrics.get("image_auroc")
    if auroc is not None:
        return (
            "the detector ranks but does not decide: it scored the anomalous image higher in "
            f"{percent(auroc)} of all pairs of one anomalous and one normal image."
        )
    only = "normal" if n_normal else "anomalous"
    return (
        f"nothing was decided, and with only {only} images there is no ranking to judge "
        f"({count(n_normal + n_anomalous, 'image')} scored)."
    )
