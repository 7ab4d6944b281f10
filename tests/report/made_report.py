"""Made-up reports for the tests, and ways to read the pages written from them."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amiss.outcome import Judged, Report
from amiss.types import ImageResult, Region

NBSP = "\u00a0"
H, W = 60, 90


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(60, 90, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def judged_row(
    path: Path, label: int, score: float, *, threshold: float | None = 2.0, maps: bool = True
) -> Judged:
    """A test image whose map has one warm rectangle; regions where it is called anomalous."""
    called = None if threshold is None else score > threshold
    anomaly_map = None
    if maps:
        anomaly_map = np.full((32, 48), 0.4, np.float32)
        anomaly_map[8:16, 12:24] = score
    regions = [Region((15, 22, 30, 45), 345, score, (20, 30))] if called and maps else []
    p_value = None if threshold is None else 0.25
    result = ImageResult(path, score, p_value, called, regions)
    return Judged(path, label, "scratch" if label else "good", result, anomaly_map)


def operating_point(rows: list[Judged], threshold: float | None) -> dict[str, Any]:
    normal = [row for row in rows if row.label == 0]
    anomalous = [row for row in rows if row.label == 1]
    if threshold is None:
        return {"threshold": None, "n_normal": len(normal), "n_anomalous": len(anomalous)}
    alarms = sum(bool(row.result.is_anomalous) for row in normal)
    detected = sum(bool(row.result.is_anomalous) for row in anomalous)
    return {
        "threshold": threshold,
        "pixel_threshold": 1.5,
        "policy": "max_false_alarm",
        "max_false_alarm": 0.01,
        "alpha": 0.01,
        "n_calibration": 120,
        "false_alarm_interval": [0.005, 0.022] if normal else None,
        "false_alarm_rate": alarms / len(normal) if normal else None,
        "false_alarms": alarms,
        "n_normal": len(normal),
        "recall": detected / len(anomalous) if anomalous else None,
        "detected": detected,
        "n_anomalous": len(anomalous),
        "recall_by_kind": {"scratch": [detected, len(anomalous)]} if anomalous else {},
    }


def report_of(rows: list[Judged], *, threshold: float | None = 2.0, **changes: Any) -> Report:
    """A report around `rows`; image figures where both labels occur, pixel ones where masks do."""
    labels = {row.label for row in rows}
    metrics: dict[str, float] = {}
    curves = {}
    if labels == {0, 1}:
        metrics |= {"image_auroc": 0.9731, "image_ap": 0.98, "image_f1_max": 0.95}
        curves["roc"] = (np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.0, 0.8, 1.0, 1.0]))
    if any(row.mask is not None for row in rows):
        metrics |= {"pixel_auroc": 0.9642, "aupro": 0.9137}
        fpr = np.linspace(0.0, 0.3, 5000)
        curves["pro"] = (fpr, np.sqrt(fpr / 0.3))
    calibration = threshold is not None
    scores = np.random.default_rng(1).uniform(0.2, 1.9, 120 if calibration else 0)
    values: dict[str, Any] = {
        "detector": {"method": "PatchCore", "config": {"coreset_ratio": 0.01}},
        "dataset": {"name": "screws", "layout": "folders"},
        "metrics": metrics,
        "intervals": {"image_auroc": (0.91, 0.998)} if metrics else {},
        "operating_point": operating_point(rows, threshold),
        "judged": rows,
        "calibration_scores": scores,
        "curves": curves,
        "display": (0.5, 2.5) if calibration else None,
        "seconds": {"score": 1.25, "metrics": 0.3},
        "peak_memory_mib": 512.0,
        "versions": {"amiss": "0.1.0"},
    }
    return Report(**(values | changes))


def text_of(page: str) -> str:
    """The visible words of a page, spaces made plain."""
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.S)
    words = html.unescape(re.sub(r"<[^>]+>", " ", body.replace("<wbr>", "")))
    words = words.replace(NBSP, " ").replace("\u2060", "")
    return re.sub(r"\s+", " ", words)


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def assert_self_contained(page: str) -> None:
    """Nothing in the page makes a browser ask anyone for anything."""
    for tag, attributes in Elements(page).found:
        assert tag not in ("iframe", "object", "embed", "base", "form", "audio", "video"), tag
        if tag in ("img", "script", "link", "image", "use", "a"):
            for name in ("src", "href", "xlink:href", "srcset"):
                value = attributes.get(name)
                assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert "style" not in attributes  # the security policy would drop it
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#heat"}
