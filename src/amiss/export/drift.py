"""How far an export of lower precision moves the scores and maps of normal images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from amiss.engines import ExportedDetector
from amiss.export.parity import framed
from amiss.runtime import Runtime
from amiss.types import Float64, UInt8


class Values(NamedTuple):
    """The score of an image and the largest value of its map (0 without one)."""

    score: float
    peak: float


class Line(NamedTuple):
    """after = slope * before + offset; `residual`: the largest of what remains, relative."""

    slope: float
    offset: float
    residual: float


def paired(
    reference: Runtime, candidate: ExportedDetector, image: UInt8, *, resizes: bool
) -> tuple[Values, Values]:
    """What both say of one image (H, W, 3) uint8."""
    frame, inside = framed(reference, image)
    roi = None if inside is None else inside[None]
    old = reference(frame[None], roi)
    if resizes:
        new = candidate(image[None], None)
    else:
        new = candidate(frame[None], roi if candidate.takes_roi else None)
    return _values(old), _values(new)


def _values(found: Any) -> Values:
    maps = found.anomaly_map
    return Values(float(found.score[0]), 0.0 if maps is None else float(maps.max()))


def line(before: Float64, after: Float64) -> Line:
    """The least-squares line from `before` (n,) to `after` (n,); through the origin where the
    values do not spread enough to tell a slope from an offset."""
    if len(before) < 3 or float(np.ptp(before)) <= 0.05 * float(np.abs(before).max()):
        slope = float((before * after).sum() / max(float((before * before).sum()), 1e-30))
        offset = 0.0
        if not before.any():
            slope = 1.0
    else:
        slope, offset = (float(v) for v in np.polyfit(before, after, 1))
    scale = np.maximum(np.abs(after), 1e-12)
    residual = float((np.abs(slope * before + offset - after) / scale).max()) if len(after) else 0.0
    return Line(slope, offset, residual)
