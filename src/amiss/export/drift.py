"""How far 8-bit arithmetic moves the scores and maps of normal images.

Normal images of one part score much alike, so a line through their scores before and after has no
slope to speak of: all that they tell is a ratio. The spread of the ratios says how far it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from amiss.engines import ExportedDetector
from amiss.export.parity import judge_one
from amiss.runtime import Runtime
from amiss.types import Float64, Prediction, UInt8


class Ratio(NamedTuple):
    """after = factor * before; `residual`: the largest of what remains, as a share of after."""

    factor: float
    residual: float


def ratios(
    reference: Runtime, candidate: ExportedDetector, images: Sequence[UInt8]
) -> tuple[Ratio, Ratio]:
    """Of the scores and of the largest map values of images (H, W, 3) uint8."""
    before = np.array([_values(judge_one(reference, image)) for image in images])
    after = np.array([_values(judge_one(candidate, image)) for image in images])
    return ratio(before[:, 0], after[:, 0]), ratio(before[:, 1], after[:, 1])


def ratio(before: Float64, after: Float64) -> Ratio:
    """The median of after / before over those that are above 0; 1 without any."""
    positive = (before > 0) & (after > 0)
    if not positive.any():
        return Ratio(1.0, 0.0)
    factor = float(np.median(after[positive] / before[positive]))
    rest = np.abs(factor * before[positive] - after[positive]) / after[positive]
    return Ratio(factor, float(rest.max()))


def _values(found: Prediction[Any]) -> tuple[float, float]:
    maps = found.anomaly_map
    return float(found.score[0]), 0.0 if maps is None else float(maps.max())
