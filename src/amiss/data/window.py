"""From 16-bit or float gray to 8 bits: the window of values that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amiss.errors import ImageError, OptionError
from amiss.types import Float32, UInt8

PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True, slots=True)
class Window:
    """The values of a 16-bit or float file that become black (`low`) and white (`high`).

    In units of the file. What lies outside is clipped. 8-bit files are never changed by it.
    """

    low: float
    high: float


def parse_window(text: str) -> Window | None:
    """The window that `text` names; None stands for "percentile", taken from each image.

    "percentile" maps the 0.1 and 99.9 percentiles of the image to black and white. It needs no
    knowledge of the camera, but a large bright defect moves it; where the exposure is fixed,
    "LOW:HIGH" (in units of the file) or "full" (0:65535) keep grey values comparable.

    Raises OptionError for anything else.
    """
    if text == "percentile":
        return None
    if text == "full":
        return Window(0.0, 65535.0)
    low, colon, high = text.partition(":")
    try:
        window = Window(float(low), float(high))
    except ValueError:
        window = Window(np.nan, np.nan)
    if not (colon and np.isfinite([window.low, window.high]).all() and window.low < window.high):
        raise OptionError(
            f'The window is "{text}"; allowed are "percentile", "full" and "LOW:HIGH".',
            hint='LOW must be below HIGH, for example "500:4095" for a 12-bit camera.',
        )
    return window


def apply_window(
    values: npt.NDArray[Any],
    window: Window | None,
    path: str | Path,
) -> UInt8:
    """(H, W) of 16-bit, 32-bit or float values to (H, W) uint8, rounded to the nearest level."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        values = values.astype(np.uint16, copy=False)  # native byte order
        low, high = _limits(values, window)
        # 65,536 levels are fewer than the pixels of most images: compute each once.
        table = _scale(np.arange(65536, dtype=np.float32), low, high)
        return table.take(values)
    levels = values.astype(np.float32)
    finite = levels[np.isfinite(levels)]
    if finite.size == 0:
        raise ImageError(f"{path}: holds no finite value.")
    low, high = _limits(finite, window)
    # Missing pixels of a depth map are usually NaN: they turn black.
    return _scale(np.nan_to_num(levels, nan=low, posinf=high, neginf=low), low, high)


def _limits(values: npt.NDArray[Any], window: Window | None) -> tuple[float, float]:
    if window is not None:
        return window.low, window.high
    if values.dtype == np.uint16:
        # The same order statistics as below, from a histogram: no sorting.
        cumulative = np.cumsum(np.bincount(values.ravel(), minlength=65536))
        ranks = [q / 100 * (values.size - 1) for q in PERCENTILES]
        low, high = (np.searchsorted(cumulative, round(r), side="right") for r in ranks)
    else:
        low, high = np.percentile(values, PERCENTILES, method="nearest")
    return float(low), float(high)


def _scale(values: Float32, low: float, high: float) -> UInt8:
    """Linear from [low, high] to 0..255, clipped; all black where low = high."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.clip(values, low, high) - np.float32(low)) * np.float32(255 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), dtype=np.uint8)
