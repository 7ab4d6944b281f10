"""The figures of the report, drawn as inline SVG.

Drawn by hand rather than by a plotting library: the text stays text (selectable, read aloud,
searchable), colours follow the page in light, dark and print through its CSS classes, a figure is a
few kilobytes, and nothing heavy is imported. All numbers in the markup are made here; text from
outside is escaped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from amiss.report.overlay import OPACITY, heat_map, opacity
from amiss.report.phrasing import metric, number, percent
from amiss.types import Float64

_BINS = 44
_ROW_PX, _GAP_PX, _TOP_PX, _AXIS_PX = 54, 34, 34, 30
_MAX_POINTS = 400
# The plots of the curves: a fixed drawing that scales as a whole. (left, top, right, bottom)
_WIDTH, _HEIGHT = 420, 372
_LOSS_SIZE, _LOSS_PLOT = (300, 130), (58.0, 10.0, 292.0, 106.0)
_PLOT = (52.0, 14.0, 404.0, 318.0)


@dataclass(frozen=True, slots=True)
class Series:
    """One row of the histogram: scores (N,), the CSS class of its bars, and a note at its right."""

    title: str
    scores: Float64
    style: str
    note: str


def histogram(rows: list[Series], threshold: float | None) -> Markup:
    """Score histograms in rows above one common axis, the threshold running through all of them.

    Overlaid histograms hide each other; rows do not. Each row is scaled to its own tallest bar, for
    the counts differ by orders of magnitude. Positions across are percentages, so the figure
    is as wide as its column while its text keeps its size.
    """
    rows = [row for row in rows if np.isfinite(row.scores).any()]
    edges, clipped = _edges(np.concatenate([row.scores for row in rows]), threshold)
    low, high = float(edges[0]), float(edges[-1])
    bottom = _TOP_PX + len(rows) * (_ROW_PX + _GAP_PX) - 8
    parts: list[str] = []
    tops = [_TOP_PX + 20 + index * (_ROW_PX + _GAP_PX) for index in range(len(rows))]
    if threshold is not None:
        x = 100.0 * (threshold - low) / (high - low)
        anchor, shift = ("end", -6) if x > 55 else ("start", 6)
        parts += [
            f'<rect class="alarm-side" x="{x:.3f}%" y="{top}" width="{100 - x:.3f}%" '
            f'height="{_ROW_PX}"/>'
            for top in tops
        ]
    for row, top in zip(rows, tops, strict=True):
        parts += _bars(row, edges, top)
    if threshold is not None:
        parts.append(
            f'<line class="threshold" x1="{x:.3f}%" x2="{x:.3f}%" y1="4" y2="{bottom}"/>'
            f'<text class="strong" x="{x:.3f}%" dx="{shift}" y="14" text-anchor="{anchor}">'
            f"threshold {number(threshold)}</text>"
        )
    for row, top in zip(rows, tops, strict=True):  # last: a title stays readable on the line
        parts.append(
            f'<text class="strong" x="0" y="{top - 8}">{escape(row.title)}</text>'
            f'<text class="muted" x="100%" y="{top - 8}" text-anchor="end">'
            f"{escape(row.note)}</text>"
        )
    parts.append(f'<line class="axis" x1="0" x2="100%" y1="{bottom}" y2="{bottom}"/>')
    for tick in _ticks(low, high, 8):
        at = 100.0 * (tick - low) / (high - low)
        if 3.0 <= at <= 97.0:
            more = "≥ " if clipped and tick + (edges[1] - edges[0]) > high else ""
            parts.append(
                f'<line class="axis" x1="{at:.3f}%" x2="{at:.3f}%" y1="{bottom}" '
                f'y2="{bottom + 4}"/>'
                f'<text class="muted" x="{at:.3f}%" y="{bottom + 18}" text-anchor="middle">'
                f"{more}{number(tick)}</text>"
            )
    described = "; ".join(f"{row.title}: {row.note}" for row in rows)
    return Markup(
        f'<svg class="histogram" width="100%" height="{bottom + _AXIS_PX}" role="img" '
        f'aria-label="Histogram of scores. {escape(described)}">{"".join(parts)}</svg>'
    )


def has_overflow(scores: Float64, threshold: float | None) -> int:
    """How many scores lie beyond the histogram's right edge and are counted in its last bar."""
    finite = scores[np.isfinite(scores)]
    if finite.size == 0:
        return 0
    edges, _ = _edges(finite, threshold)
    return int((finite > edges[-1]).sum())


def roc_curve(
    fpr: Float64, tpr: Float64, auroc: float | None, point: tuple[float, float] | None
) -> Markup:
    """The ROC curve (N,), (N,) in [0, 1] with the operating point (false-alarm rate, recall)."""
    parts = [*_frame(1.0, "false-alarm rate", "share of anomalous images caught")]
    left, top, right, bottom = _PLOT
    parts.append(f'<line class="chance" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    parts += _curve(fpr, tpr, x_max=1.0, fill_to=1.0)
    described = "ROC curve."
    if auroc is not None:
        described += f" Area under it {metric(auroc)}."
        parts += _value_label("AUROC", auroc, right - 10)
    if point is not None:
        x, y = left + point[0] * (right - left), bottom - point[1] * (bottom - top)
        described += f" Operating point: false-alarm rate {percent(point[0])}, "
        described += f"recall {percent(point[1])}."
        anchor, shift = ("start", 12) if point[0] < 0.5 else ("end", -12)
        # Below the point where there is room: above it the curve itself, or the frame, is close.
        down = 20 if point[1] > 0.2 else -26
        parts.append(
            f'<circle class="operating" cx="{x:.2f}" cy="{y:.2f}" r="5.5"/>'
            f'<text class="strong" x="{x + shift:.2f}" y="{y + down:.2f}" '
            f'text-anchor="{anchor}">at the threshold</text>'
            f'<text class="muted" x="{x + shift:.2f}" y="{y + down + 16:.2f}" '
            f'text-anchor="{anchor}">{percent(point[0])} alarms, {percent(point[1])} caught</text>'
        )
    return _drawing(parts, described)


def pro_curve(fpr: Float64, overlap: Float64, aupro: float | None, limit: float) -> Markup:
    """The per-region-overlap curve (N,), (N,) in [0, 1]; the area up to `limit` is shaded."""
    reach = float(fpr.max()) if fpr.size else 1.0
    x_max = 1.0 if reach > 1.2 * limit else limit / 0.75
    parts = [*_frame(x_max, "share of normal pixels above", "mean share of a region covered")]
    left, top, right, bottom = _PLOT
    edge = left + limit / x_max * (right - left)
    parts.append(
        f'<rect class="limit" x="{left}" y="{top}" width="{edge - left:.2f}" '
        f'height="{bottom - top}"/>'
    )
    parts += _curve(fpr, overlap, x_max=x_max, fill_to=limit)
    parts.append(
        f'<line class="chance" x1="{edge:.2f}" y1="{top}" x2="{edge:.2f}" y2="{bottom}"/>'
        f'<text class="muted" x="{edge + 7:.2f}" y="{bottom - 14}">limit {limit:g}</text>'
    )
    described = f"Per-region-overlap curve up to a false-positive rate of {limit:g}."
    if aupro is not None:
        described += f" Area under it, divided by the limit: {metric(aupro)}."
        # Inside the shaded area where it is wide enough, else in the free corner above the limit.
        inside = edge - left > 100.0
        parts += _value_label("AU-PRO", aupro, edge - 10 if inside else right - 10)
    return _drawing(parts, described)


def loss_curve(values: Float64, name: str) -> Markup:
    """A loss over the epochs (N,), on a scale of its own whose ends are named."""
    left, top, right, bottom = _LOSS_PLOT
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MAX_POINTS)).round())
    at = keep.astype(np.int64)
    x = left + at / max(1, len(values) - 1) * (right - left)
    y = bottom - (values[at] - low) / max(high - low, 1e-12) * (bottom - top)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True) if np.isfinite(b))
    parts = [
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
        f'<polyline class="curve" points="{points}"/>',
        *(
            f'<text class="muted" x="{left - 6}" y="{y}" text-anchor="end">{number(value)}</text>'
            for y, value in ((top + 5, high), (bottom + 4, low))
        ),
        f'<text class="muted" x="{left}" y="{bottom + 16}">1</text>',
        f'<text class="muted" x="{right}" y="{bottom + 16}" text-anchor="end">{len(values)}</text>',
    ]
    described = f"{name}: {number(float(values[0]))} in the first epoch, "
    described += f"{number(float(values[-1]))} in the last of {len(values)}."
    width, height = _LOSS_SIZE
    return Markup(
        f'<svg class="plot loss" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(described)}">{"".join(parts)}</svg>'
    )


def share_bar(share: float, style: str) -> Markup:
    """A bar for a share in [0, 1], as wide as its cell; the number stands in the next cell."""
    return Markup(
        '<svg class="share" width="100%" height="10" aria-hidden="true">'
        '<rect class="track" width="100%" height="10" rx="2"/>'
        f'<rect class="{style}" width="{100.0 * share:.2f}%" height="10" rx="2"/></svg>'
    )


def heat_gradient() -> Markup:
    """The colour bar's gradient, once per page: each heat colour as opaque as `overlay` lays it."""
    levels = np.linspace(0.0, 1.0, 25, dtype=np.float32)
    colours = heat_map(levels[None], 0.0, 1.0)[0]
    stops = "".join(
        f'<stop offset="{100 * level:.1f}%" stop-color="rgb({r},{g},{b})" '
        f'stop-opacity="{share:.3f}"/>'
        for level, (r, g, b), share in zip(levels, colours, opacity(levels), strict=True)
    )
    return Markup(
        '<svg class="definitions" width="0" height="0" aria-hidden="true"><defs>'
        f'<linearGradient id="heat">{stops}</linearGradient></defs></svg>'
    )


def heat_scale(low: float, high: float, threshold: float | None, width: int) -> Markup:
    """The colour bar under a heat map of so many pixels: the scale's ends and the threshold."""
    described = (
        f"Colour scale: transparent at {number(low, 3)} and below, "
        f"{OPACITY:.0%} opaque at {number(high, 3)} and above."
    )
    parts = [
        '<rect class="frame" width="100%" height="9" rx="1"/>',
        '<rect fill="url(#heat)" width="100%" height="9" rx="1"/>',
        f'<text class="muted" x="0" y="23">≤ {number(low, 3)}</text>',
        f'<text class="muted" x="100%" y="23" text-anchor="end">≥ {number(high, 3)}</text>',
    ]
    if threshold is not None and low < threshold < high:
        at = 100.0 * (threshold - low) / (high - low)
        described += f" Pixel threshold {number(threshold, 3)}."
        parts.append(f'<line class="threshold" x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="12"/>')
        if 25.0 < at < 75.0:
            parts.append(
                f'<text class="muted" x="{at:.2f}%" y="23" text-anchor="middle">'
                f"{number(threshold, 3)}</text>"
            )
    return Markup(
        f'<svg class="scale" width="{width}" height="28" role="img" aria-label="{described}">'
        f"{''.join(parts)}</svg>"
    )


def _edges(scores: Float64, threshold: float | None) -> tuple[Float64, bool]:
    """Bin edges (_BINS + 1,) with the threshold on one of them, and whether the right was cut.

    A far outlier would press everything else into two bins: it is counted in the last bin instead.
    """
    finite = scores[np.isfinite(scores)]
    low, high = float(finite.min()), float(finite.max())
    spread = float(np.quantile(finite, 0.98)) - low
    clipped = spread > 0.0 and high > low + 3.0 * spread
    if clipped:
        high = low + 1.5 * spread
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if not high > low:
        half = max(abs(low), 1.0) / 2.0
        low, high = low - half, high + half
    width = (high - low) / (_BINS - 4)
    if threshold is None:
        start = low - 2.0 * width
    else:
        before = math.ceil((threshold - low) / width) + 1
        start = threshold - before * width
    edges = start + width * np.arange(_BINS + 1, dtype=np.float64)
    if threshold is not None:
        edges[before] = threshold  # exactly: the threshold is itself one of the calibration scores
    return edges, clipped


def _bars(row: Series, edges: Float64, top: int) -> list[str]:
    """The base line and the bars of one row; `top` is where its bars may begin."""
    finite = np.clip(row.scores[np.isfinite(row.scores)], edges[0], edges[-1])
    # Bins are open on the left: a score at the threshold is not above it, and stands left of it.
    bins = (np.searchsorted(edges, finite, side="left") - 1).clip(0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    tallest = max(1, int(counts.max()))
    base = top + _ROW_PX
    wide = 100.0 / _BINS
    parts = [
        f'<line class="base" x1="0" x2="100%" y1="{base}" y2="{base}"/>',
    ]
    for index in np.flatnonzero(counts):
        tall = max(2.0, (_ROW_PX - 4) * float(counts[index]) / tallest)
        parts.append(
            f'<rect class="{row.style}" x="{index * wide + 0.12:.3f}%" y="{base - tall:.1f}" '
            f'width="{wide - 0.24:.3f}%" height="{tall:.1f}"><title>'
            f"{counts[index]} between {number(float(edges[index]))} and "
            f"{number(float(edges[index + 1]))}</title></rect>"
        )
    return parts


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between `low` and `high`."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _frame(x_max: float, x_name: str, y_name: str) -> list[str]:
    """Grid, tick labels and axis names of a curve's plot, x from 0 to `x_max`, y from 0 to 1."""
    left, top, right, bottom = _PLOT
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = bottom - tick * (bottom - top)
        parts.append(
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.2f}" y2="{y:.2f}"/>'
            f'<text class="muted" x="{left - 8}" y="{y + 4:.2f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in _ticks(0.0, x_max, 5):
        x = left + tick / x_max * (right - left)
        parts.append(
            f'<line class="grid" x1="{x:.2f}" x2="{x:.2f}" y1="{top}" y2="{bottom}"/>'
            f'<text class="muted" x="{x:.2f}" y="{bottom + 18}" text-anchor="middle">'
            f"{tick:g}</text>"
        )
    middle = (top + bottom) / 2
    parts.append(
        f'<text class="muted" x="{(left + right) / 2}" y="{bottom + 42}" text-anchor="middle">'
        f'{x_name}</text><text class="muted" x="12" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle})">{y_name}</text>'
    )
    return parts


def _curve(x: Float64, y: Float64, *, x_max: float, fill_to: float) -> list[str]:
    """A curve as one line, and the area under it up to `fill_to`."""
    if x.size == 0:
        return []
    left, top, right, bottom = _PLOT
    inside = x <= x_max
    x, y = _thinned(x[inside], y[inside])

    def placed(xs: Float64, ys: Float64) -> str:
        across = left + xs / x_max * (right - left)
        up = bottom - np.clip(ys, 0.0, 1.0) * (bottom - top)
        return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(across, up, strict=True))

    end = min(fill_to, float(x[-1]))
    under_x = np.concatenate([[x[0]], x[x <= end], [end, end]])
    under_y = np.concatenate([[0.0], y[x <= end], [float(np.interp(end, x, y)), 0.0]])
    return [
        f'<polygon class="area" points="{placed(under_x, under_y)}"/>',
        f'<polyline class="curve" points="{placed(x, y)}"/>',
    ]


def _thinned(x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """At most _MAX_POINTS points of a curve, evenly spaced along its length; both ends stay."""
    if x.size <= _MAX_POINTS:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    wanted = np.linspace(0.0, along[-1], _MAX_POINTS)
    keep = np.unique(np.searchsorted(along, wanted).clip(0, x.size - 1))
    return x[keep], y[keep]


def _value_label(name: str, value: float, x: float) -> list[str]:
    """A metric in large type above its name, both ending at `x`."""
    _, _, _, bottom = _PLOT
    return [
        f'<text class="big" x="{x:.2f}" y="{bottom - 34}" text-anchor="end">{metric(value)}</text>',
        f'<text class="muted" x="{x:.2f}" y="{bottom - 14}" text-anchor="end">{name}</text>',
    ]


def _drawing(parts: list[str], described: str) -> Markup:
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{described}">{"".join(parts)}</svg>'
    )
