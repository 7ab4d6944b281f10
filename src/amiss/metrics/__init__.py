"""Metrics of detection (per image) and localization (per pixel, per region), exact, in numpy alone.

Every distinct score is a threshold and ties are one step, so a strictly monotone change of the
scores changes no result. A metric that is undefined raises `MetricError`; it is never 0 or NaN.
"""

from amiss.metrics.image import (
    bootstrap_interval,
    f1_max_threshold,
    image_ap,
    image_auroc,
    image_f1_max,
    min_max,
    roc_curve,
)
from amiss.metrics.localization import PixelMetrics, pixel_metrics
from amiss.metrics.pixel import pixel_ap, pixel_auroc, pixel_f1_max
from amiss.metrics.region import aupro, label_regions, pro_curve, region_list
from amiss.metrics.resampling import PixelIntervals, pixel_intervals

__all__ = [
    "PixelIntervals",
    "PixelMetrics",
    "aupro",
    "bootstrap_interval",
    "f1_max_threshold",
    "image_ap",
    "image_auroc",
    "image_f1_max",
    "label_regions",
    "min_max",
    "pixel_ap",
    "pixel_auroc",
    "pixel_f1_max",
    "pixel_intervals",
    "pixel_metrics",
    "pro_curve",
    "region_list",
    "roc_curve",
]
