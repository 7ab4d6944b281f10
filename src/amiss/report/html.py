"""The report page: what `evaluate` found, as one HTML file that needs nothing else.

The page loads nothing: styles and script are inline, figures are SVG, pictures are data URIs. It
says so itself in a content security policy, which also keeps a hostile file name from ever
running: the only script and the only style a browser may use are the two whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from amiss.data.images import write_bytes_atomic
from amiss.methods import METHODS
from amiss.report import figures, gallery
from amiss.report.phrasing import (
    NBSP,
    alarm_limit,
    count,
    decision,
    duration,
    expected_range,
    memory,
    metric,
    number,
    other_rates,
    percent,
    score_format,
    span,
    truth,
    unmet_wish,
    verdict,
)
from amiss.report.provenance import notes, sections
from amiss.report.training import training
from amiss.types import ANOMALOUS, NORMAL

if TYPE_CHECKING:  # evaluation loads the network's libraries; a page needs only its outcome
    from amiss.outcome import Judged, Report

UNSEEN = "that neither the model nor the threshold saw"
_METRIC_NAMES = {
    "image_auroc": ("Image AUROC", "pairs of images in the right order"),
    "image_ap": ("Image AP", "average precision"),
    "image_f1_max": ("Image F1-max", "at its best threshold"),
    "pixel_auroc": ("Pixel AUROC", "pairs of pixels in the right order"),
    "pixel_ap": ("Pixel AP", "average precision"),
    "pixel_f1_max": ("Pixel F1-max", "at its best threshold"),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One key figure: its name, its value, and its interval or its meaning."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class Card:
    """Key figures of one kind, with what they were computed on."""

    title: str
    basis: str
    figures: list[Figure]


@dataclass(frozen=True, slots=True)
class KindRow:
    """How many images of one kind of defect were caught."""

    kind: str
    detected: int
    total: int
    share: str
    bar: Markup


def write_report(report: Report, path: str | Path) -> Path:
    """Write the page to `path`, all or nothing, and return the path.

    Originals are read again for the gallery; one that is gone by now leaves a placeholder. Time and
    size stay bounded for any number of images: the gallery is capped, the table is not.

    Raises DataError when the file cannot be written.
    """
    path = Path(path)
    write_bytes_atomic(path, render(report).encode("utf-8"))
    return path


def render(report: Report) -> str:
    """The whole page as text."""
    scale = gallery.display_scale(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("amiss.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "breakable": _breakable,
        "score": _score_format(report),
        "peak": score_format(np.array([scale.high if scale is not None else 1.0]), digits=3),
    }
    names = gallery.Names(report)
    style, script = _asset("report.css"), _asset("report.js")
    return environment.get_template("report.html.j2").render(
        title=_title(report),
        style=Markup(style),
        script=Markup(script),
        policy=_security_policy(style, script),
        verdict=verdict(report),
        basis=_basis(report),
        unmet_wish=unmet_wish(report.operating_point),
        cards=_cards(report),
        no_pixel_figures=_why_no_pixel_figures(report),
        **_score_figure(report),
        **_curve_figures(report),
        kinds=_kinds(report),
        other_rates=other_rates(report),
        undecided=report.operating_point.get("threshold") is None,
        groups=gallery.build(report, names, scale),
        scale=scale,
        heat_gradient=figures.heat_gradient(),
        heat_scale=_heat_scale(report, scale),
        threshold=report.operating_point.get("threshold"),
        pixel_threshold=report.operating_point.get("pixel_threshold"),
        n_calibration=report.operating_point.get("n_calibration"),
        rows=[_table_row(row, names) for row in _ranked(report)],
        training=training(report),
        sections=sections(report),
        notes=notes(report),
        version=report.versions.get("amiss"),
    )


def _asset(name: str) -> str:
    return (resources.files("amiss.report") / "templates" / name).read_text(encoding="utf-8")


def _security_policy(style: str, script: str) -> str:
    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; "
        f"script-src {source(script)}; base-uri 'none'; form-action 'none'"
    )


def _breakable(name: str) -> Markup:
    """A name, escaped, that may break after its separators: no table is too wide for a phone."""
    # The escapes themselves (&lt; &#39; ...) hold neither of the two characters.
    return Markup(str(escape(name)).replace("/", "/<wbr>").replace("_", "_<wbr>"))


def _score_format(report: Report) -> Callable[[float], str]:
    """As few digits as tell the scores next to the threshold from it, seven at most."""
    scores = np.concatenate([report.scores, report.calibration_scores])
    threshold = report.operating_point.get("threshold")
    written = score_format(scores)
    if threshold is None or scores.size == 0:
        return written
    close = scores[np.argsort(np.abs(scores - threshold))]
    close = close[close != threshold][:2].tolist()
    for digits in (5, 6, 7):
        if all(written(score) != written(threshold) for score in close):
            break
        written = score_format(scores, digits)
    return written


def _title(report: Report) -> str:
    method = report.detector.get("method") or "Detector"
    if method in METHODS:  # the paper's spelling
        method = METHODS[method].partition(":")[2]
    dataset = report.dataset.get("name")
    return f"{method} on {dataset}" if dataset else str(method)


def _counts(report: Report) -> tuple[int, int]:
    return int((report.labels == NORMAL).sum()), int((report.labels == ANOMALOUS).sum())


def _basis(report: Report) -> str:
    n_normal, n_anomalous = _counts(report)
    return (
        f"Judged on {count(n_normal + n_anomalous, 'image')} ({n_normal:,} normal, "
        f"{n_anomalous:,} anomalous) {UNSEEN}."
    )


def _cards(report: Report) -> list[Card]:
    """The key figures; a metric that does not exist here has no card, never a zero."""
    n_normal, n_anomalous = _counts(report)
    of_images: list[Figure] = []
    of_pixels: list[Figure] = []
    for name, value in report.metrics.items():
        title, detail = _metric_name(name)
        interval = report.intervals.get(name)
        if interval is not None and interval[0] == interval[1]:
            # A perfect ranking stays perfect in every resample: that is no proof of precision.
            detail = "the same in every resample, so no interval"
        elif interval is not None:
            detail = f"95{NBSP}% interval {span(metric(interval[0]), metric(interval[1]))}"
        figure = Figure(title, metric(value), detail)
        (of_images if name.startswith("image") else of_pixels).append(figure)
    total = report.seconds.get("total", sum(report.seconds.values()))
    parts = [f"{name} {duration(took)}" for name, took in report.seconds.items() if name != "total"]
    cost = [
        Figure("Time", duration(total), ", ".join(parts).replace("_", " ")),
        Figure("Peak memory", memory(report.peak_memory_mib), ""),
    ]
    images = f"{n_normal:,} normal, {n_anomalous:,} anomalous"
    cards = [
        Card("Images", images, of_images),
        Card("Pixels", _map_basis(report), of_pixels),
        Card("Cost", f"of judging {count(len(report.judged), 'image')}", cost),
    ]
    return [card for card in cards if card.figures]


def _metric_name(name: str) -> tuple[str, str]:
    if name.startswith("aupro"):
        limit = _aupro_limit(name)
        title = "AU-PRO" if limit == 0.3 else f"AU-PRO, limit {limit:g}"
        return title, f"overlap per region, up to {percent(limit)} false pixels"
    return _METRIC_NAMES.get(name, (name.replace("_", " "), ""))


def _aupro_limit(name: str) -> float:
    """The limit in a metric's name: `aupro` is 0.3, `aupro_005` is 0.05."""
    digits = name.removeprefix("aupro").lstrip("_")
    return float(f"{digits[0]}.{digits[1:]}") if digits.isdigit() and len(digits) > 1 else 0.3


def _map_basis(report: Report) -> str:
    # An anomalous image without a mask has no truth per pixel: it counts in no pixel figure.
    counted = [row for row in report.judged if row.label == NORMAL or row.mask is not None]
    shapes = [row.map.shape for row in counted if row.map is not None]
    masks = sum(row.label == ANOMALOUS for row in counted)
    size = f" of {shapes[0][0]} × {shapes[0][1]} px" if len(set(shapes)) == 1 else ""
    return f"{count(len(shapes), 'map')}{size}, {count(masks, 'truth mask')}"


def _why_no_pixel_figures(report: Report) -> str | None:
    if not report.judged or any(name.startswith(("pixel", "aupro")) for name in report.metrics):
        return None
    if not any(row.map is not None for row in report.judged):
        return "There are no pixel figures: this detector scores whole images and gives no maps."
    if any(row.mask is not None for row in report.judged):
        return "There are no pixel figures: the truth masks mark no pixel at the maps' size."
    return "There are no pixel figures: the test images have no truth masks."


def _score_figure(report: Report) -> dict[str, Any]:
    """The histogram and its caption."""
    point = report.operating_point
    threshold = point.get("threshold")
    scores, labels = report.scores, report.labels
    n_normal, n_anomalous = _counts(report)

    def above(number_above: int | None, total: int) -> str:
        images = count(total, "image")
        if threshold is None or number_above is None:
            return images
        return f"{images}, {number_above:,} above ({percent(number_above / total)})"

    calibration = report.calibration_scores
    rows = []
    if calibration.size:
        over = None if threshold is None else int((calibration > threshold).sum())
        rows.append(
            figures.Series(
                "Calibration normals", calibration, "calibration", above(over, calibration.size)
            )
        )
    if n_normal:
        alarms = point.get("false_alarms")
        normal = scores[labels == NORMAL]
        rows.append(figures.Series("Test normals", normal, "normal", above(alarms, n_normal)))
    if n_anomalous:
        caught = point.get("detected")
        anomalous = scores[labels == ANOMALOUS]
        rows.append(
            figures.Series("Test anomalies", anomalous, "anomalous", above(caught, n_anomalous))
        )
    every = np.concatenate([row.scores for row in rows]) if rows else np.zeros(0)
    if not np.isfinite(every).any():
        return {"histogram": None, "histogram_caption": []}
    tested = f"Test normals and anomalies are {count(len(labels), 'image')} {UNSEEN}."
    caption = [_false_alarm_sentence(report), tested]
    overflow = figures.has_overflow(every, threshold)
    if overflow:
        caption.append(f"The last bar also holds {count(overflow, 'score')} beyond the right edge.")
    caption.append("Each row is scaled to its own tallest bar.")
    return {
        "histogram": figures.histogram(rows, threshold),
        "histogram_caption": [text for text in caption if text],
    }


def _false_alarm_sentence(report: Report) -> str:
    point = report.operating_point
    rate, expected = point.get("false_alarm_rate"), expected_range(point)
    if point.get("threshold") is None:
        return "No threshold is set."
    if rate is None:
        return "There are no normal test images, so the false-alarm rate could not be checked."
    n_normal = int(point.get("n_normal", _counts(report)[0]))
    sentence = (
        f"Realised false-alarm rate: {percent(rate)} of {count(n_normal, 'normal test image')}"
    )
    if expected is None or alarm_limit(point) is None:
        return f"{sentence}."
    return f"{sentence}; 95 % of test sets of this size are expected within {expected}."


def _curve_figures(report: Report) -> dict[str, Any]:
    """ROC and PRO with captions; None where a curve does not exist."""
    drawn: dict[str, Any] = {"roc": None, "pro": None}
    n_normal, n_anomalous = _counts(report)
    point = report.operating_point
    if "roc" in report.curves:
        rates = (point.get("false_alarm_rate"), point.get("recall"))
        marked = None if None in rates else (float(rates[0] or 0.0), float(rates[1] or 0.0))
        fpr, tpr = report.curves["roc"]
        drawn["roc"] = figures.roc_curve(fpr, tpr, report.metrics.get("image_auroc"), marked)
        drawn["roc_caption"] = (
            f"Every threshold at once, on {n_normal:,} normal and "
            f"{count(n_anomalous, 'anomalous test image')} {UNSEEN}."
        )
    if "pro" in report.curves:
        name = next((name for name in report.metrics if name.startswith("aupro")), "aupro")
        fpr, overlap = report.curves["pro"]
        limit = _aupro_limit(name)
        drawn["pro"] = figures.pro_curve(fpr, overlap, report.metrics.get(name), limit)
        drawn["pro_caption"] = (
            f"How much of each true defect region is marked, against the share of normal pixels "
            f"marked with it: {_map_basis(report)}, of images {UNSEEN}. Large and small regions "
            "count alike."
        )
    return drawn


def _kinds(report: Report) -> list[KindRow]:
    """Recall per kind of defect, the weakest first."""
    by_kind = report.operating_point.get("recall_by_kind") or {}
    rows = []
    for kind, (detected, total) in by_kind.items():
        share = detected / total if total else 0.0
        bar = figures.share_bar(share, "anomalous")
        rows.append((share, KindRow(str(kind), detected, total, percent(share), bar)))
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1].kind))]


def _heat_scale(report: Report, scale: gallery.Scale | None) -> Callable[[int], Markup] | None:
    """The colour bar as wide as a picture."""
    if scale is None:
        return None
    threshold = report.operating_point.get("pixel_threshold")
    return partial(figures.heat_scale, scale.low, scale.high, threshold)


def _ranked(report: Report) -> list[Judged]:
    return sorted(report.judged, key=lambda row: -row.result.score)


def _table_row(row: Judged, names: gallery.Names) -> dict[str, Any]:
    wrong = row.result.is_anomalous is not None and row.result.is_anomalous != (row.label != NORMAL)
    return {
        "name": names.of(row.path, row.crop),
        "truth": truth(row),
        "result": row.result,
        "decision": decision(row),
        "wrong": wrong,
    }
