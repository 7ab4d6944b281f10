"""`Report` and `Judged`: what an evaluation found, ready for a page, a terminal or JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amiss.data.geometry import Geometry
from amiss.types import ANOMALOUS, NORMAL, Float32, Float64, ImageResult, Int64, Region, UInt8

_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


class DeferredResult(ImageResult):
    """An `ImageResult` whose regions are listed when they are first asked for.

    Of thousands of judged images a report shows a few. `list_regions` is called at most once.
    """

    __slots__ = ("_regions", "list_regions")
    list_regions: Callable[[], list[Region]] | None

    @property
    def regions(self) -> list[Region]:
        """As in `ImageResult`."""
        if self.list_regions is not None:
            self.regions = self.list_regions()
        return self._regions

    @regions.setter
    def regions(self, regions: list[Region]) -> None:
        self._regions = regions
        self.list_regions = None


@dataclass(slots=True)
class Judged:
    """One test image: the truth, the detector's decision and the evidence for it.

    `result.anomaly_map` is None here; `map` (h, w) float32 is the map at the detector's input
    size. `mask` is the file of the truth, or several, as in `Record`. `nearest` names the normal
    training image, and the patch of it, that the most anomalous patch was compared with (methods
    with a memory bank): keys `path` (str), `box` (top, left, bottom, right in pixels of that
    image), `distance` (float); None elsewhere. `made` (h, w, 3) is what the detector's networks
    make of the image, at the input size; None where they make nothing.
    """

    path: Path
    label: int
    kind: str | None
    result: ImageResult
    map: Float32 | None = None
    mask: Path | tuple[Path, ...] | None = None
    crop: tuple[int, int, int, int] | None = None
    geometry: Geometry | None = None
    roi: Path | None = None
    nearest: dict[str, Any] | None = None
    made: UInt8 | None = None


@dataclass(slots=True)
class Report:
    """The outcome of `evaluate`: every figure with what it was computed on.

    `metrics` holds the names of the public list (`image_auroc`, `image_ap`, `image_f1_max`,
    `pixel_auroc`, `pixel_ap`, `pixel_f1_max`, `aupro`), the pixel ones only where masks exist;
    `intervals` their bootstrap 95 % intervals, over images. Rates are fractions in [0, 1].

    `operating_point` describes the threshold in force: `threshold`, `pixel_threshold` (or None),
    `policy` (text), `max_false_alarm` (alpha asked for), `alpha` (alpha in force),
    `n_calibration`, `false_alarm_interval` ([low, high], where 95 % of realised rates on this many
    test normals lie), `false_alarm_rate` (realised on the test normals, or None without any),
    `false_alarms`, `n_normal`, `recall` (or None), `detected`, `n_anomalous`,
    `recall_by_kind` {kind: [detected, total]}.

    `curves` holds arrays: `roc` (fpr, tpr) and, with masks, `pro` (fpr, pro), each float64.
    `display` is the fixed heat-map scale (low, high), the pixel threshold in its middle.
    """

    detector: dict[str, Any]
    dataset: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    operating_point: dict[str, Any]
    judged: list[Judged]
    calibration_scores: Float64
    curves: dict[str, tuple[Float64, Float64]]
    display: tuple[float, float] | None
    seconds: dict[str, float]
    peak_memory_mib: float
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)
    pictures: list[tuple[int, UInt8]] = field(default_factory=list)  # see `Detector.pictures`
    judged_at: str = ""  # date and time, UTC, ISO 8601

    @property
    def scores(self) -> Float64:
        """(B,) raw scores of the judged images, in their order."""
        return np.array([row.result.score for row in self.judged], dtype=np.float64)

    @property
    def labels(self) -> Int64:
        """(B,) 0 normal, 1 anomalous."""
        return np.array([row.label for row in self.judged], dtype=np.int64)

    def other_rates(self) -> list[dict[str, Any]]:
        """What thresholds for other false-alarm rates would have done to these images: rows of
        `max_false_alarm`, `threshold`, `false_alarms`, `detected`.

        Each threshold comes from the calibration's normal images alone, as that of a fit does. Only
        rates that these support are listed; none where a policy or nothing set the threshold.
        """
        ordered, n = np.sort(self.calibration_scores), len(self.calibration_scores)
        if self.operating_point.get("policy") != "max_false_alarm" or not n:
            return []
        scores, labels = self.scores, self.labels
        found = []
        for rate in _RATES:
            k = min(n, int(rate * (n + 1) + 1e-9))
            if k:
                above = scores > ordered[n - k]
                found.append(
                    {
                        "max_false_alarm": rate,
                        "threshold": float(ordered[n - k]),
                        "false_alarms": int((above & (labels == NORMAL)).sum()),
                        "detected": int((above & (labels == ANOMALOUS)).sum()),
                    }
                )
        return found

    def describe(self) -> str:
        """The main figures, for a person."""
        lines = []
        for name, value in self.metrics.items():
            low_high = self.intervals.get(name)
            says_something = low_high is not None and low_high[0] < low_high[1]
            interval = "  [{:.4f}, {:.4f}]".format(*low_high or ()) if says_something else ""
            lines.append(f"{name:<16}{value:.4f}{interval}")
        point = self.operating_point
        if point.get("threshold") is not None:
            lines.append(f"threshold       {point['threshold']:.4g} ({point['policy']})")
        if point.get("false_alarm_rate") is not None:
            span = point["false_alarm_interval"]
            expected = "" if span is None else f" (expected {span[0]:.1%} to {span[1]:.1%})"
            lines.append(
                f"false alarms    {point['false_alarms']} of {point['n_normal']} normal{expected}"
            )
        if point.get("recall") is not None:
            lines.append(f"caught          {point['detected']} of {point['n_anomalous']} anomalous")
            for kind, (detected, total) in point["recall_by_kind"].items():
                lines.append(f"  {kind:<20}{detected} of {total}")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(
            f"{len(self.judged)} images in {self.seconds['total']:.1f} s, "
            f"peak memory {self.peak_memory_mib:.0f} MiB"
        )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report without maps and curves, of plain Python types, for JSON.

        The metrics stand under their own names, and once more together under `metrics`; `seconds`
        is the whole time, `timings` its parts.
        """
        return {
            **self.metrics,
            "metrics": self.metrics,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            **self.operating_point,
            "other_rates": self.other_rates(),
            "dataset": self.dataset,
            "detector": self.detector,
            "seconds": self.seconds["total"],
            "timings": self.seconds,
            "peak_memory_mib": self.peak_memory_mib,
            "versions": self.versions,
            "judged_at": self.judged_at,
            "notes": self.notes,
        }
