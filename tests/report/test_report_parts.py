"""What the report is made of: words and numbers, figures, heat maps."""

from __future__ import annotations

import re

import numpy as np
import pytest
from made_report import (
    NBSP,
    text_of,
)

from amiss.errors import OptionError
from amiss.outcome import Report
from amiss.report.figures import Series, histogram, pro_curve, roc_curve
from amiss.report.html import render
from amiss.report.overlay import OPACITY, heat_map, outline, overlay
from amiss.report.phrasing import metric, number, percent, score_format, verdict
from amiss.types import Region

# --- words and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.005, "0.5 %"),
        (0.9996, "99.96 %"),
        (0.0004, "0.04 %"),
        (1e-9, "1e-07 %"),
        (2 / 3, "66.7 %"),
    ],
)
def test_percent_never_rounds_to_certainty(rate: float, text: str) -> None:
    assert percent(rate).replace(NBSP, " ") == text


def test_metric_and_number() -> None:
    assert metric(0.97312) == "0.9731"
    assert metric(0.99997) == "0.99997"
    assert metric(1.0) == metric(1.0 - 1e-12) == "1.0000"
    assert number(-2.5) == "−2.5"
    assert number(None) == "–"
    assert number(float("nan")) == "not finite"
    written = score_format(np.array([5.3951, 0.02, -1.0]))
    assert [written(value) for value in (5.3951, 0.02, -1.0)] == ["5.395", "0.020", "−1.000"]
    assert score_format(np.array([3e-9]))(3e-9) == "3e−9"


def test_verdict_names_other_policies_and_unmet_wishes(full: Report) -> None:
    full.operating_point |= {"policy": "f1"}
    assert verdict(full).startswith("At the threshold with the largest F1 on labelled images")
    assert "false alarms (" not in verdict(full)
    full.operating_point |= {"policy": "cost 1:10"}
    assert verdict(full).startswith("At the threshold of least cost (1:10 for a false alarm and a")
    full.operating_point |= {"policy": "manual"}
    assert verdict(full).startswith("At the threshold set by hand, it caught 2 of 3 anomalous")
    full.operating_point |= {"policy": "max_false_alarm", "max_false_alarm": 0.001}
    full.operating_point |= {"alpha": 0.0083}
    assert verdict(full).replace(NBSP, " ").startswith("At the threshold set for at most 0.8 %")
    words = text_of(render(full))
    assert "0.1 % was asked for; 120 calibration images can promise no less than 0.8 %." in words


# --- figures ----------------------------------------------------------------------------------


def test_curves_of_any_length_stay_small() -> None:
    x = np.linspace(0.0, 1.0, 200_000)
    drawn = roc_curve(x, np.sqrt(x), 0.667, (0.1, 0.3))
    assert len(drawn) < 30_000
    assert "0.6670" in drawn
    assert "limit 0.05" in pro_curve(x, np.sqrt(x), 0.5, 0.05)


@pytest.mark.parametrize(
    "scores", [[1.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.1, 1.2, 1e9], [1e-12, 2e-12], [-5.0, np.nan]]
)
@pytest.mark.parametrize("threshold", [None, 1.05])
def test_histogram_of_odd_scores(scores: list[float], threshold: float | None) -> None:
    drawn = histogram([Series("All", np.array(scores), "normal", "note")], threshold)
    bars = re.findall(r'<rect class="normal" x="(-?[\d.]+)%"', drawn)
    assert bars
    assert all(0.0 <= float(x) <= 100.0 for x in bars)
    assert "nan" not in drawn


def test_a_score_at_the_threshold_stands_left_of_it() -> None:
    # The threshold is an order statistic of the calibration scores, and called normal itself.
    scores = np.random.default_rng(0).normal(size=60)
    threshold = float(np.sort(scores)[-2])
    drawn = histogram([Series("All", scores, "normal", "")], threshold)
    line = float(re.findall(r'class="threshold" x1="([\d.]+)%"', drawn)[0])
    bars = re.findall(r'class="normal" x="([\d.]+)%".*?<title>(\d+) between', drawn)
    assert sum(int(n) for x, n in bars if float(x) > line) == 1
    assert sum(int(n) for _, n in bars) == 60


# --- heat maps --------------------------------------------------------------------------------


def test_heat_map_has_a_fixed_scale() -> None:
    ramp = np.array([[-3.0, 1.0, 2.0, 3.0, 99.0, np.nan]], np.float32)
    colours = heat_map(ramp, 1.0, 3.0)
    assert colours.shape == (1, 6, 3)
    assert colours.dtype == np.uint8
    assert (colours[0, 0] == colours[0, 1]).all()
    assert (colours[0, 3] == colours[0, 4]).all()
    assert (colours[0, 5] == colours[0, 1]).all()
    gray = heat_map(np.linspace(0, 1, 256, dtype=np.float32)[None], 0, 1)[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(gray) > -1.0).all()  # lightness rises
    assert gray[-1] - gray[0] > 200


def test_overlay_leaves_the_normal_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    before = image.copy()
    anomaly_map = np.zeros((4, 6), np.float32)
    anomaly_map[0, 0] = 5.0
    mixed = overlay(image, anomaly_map, 1.0, 3.0)
    assert (image == before).all()
    assert (mixed.reshape(-1, 3)[1:] == image.reshape(-1, 3)[1:]).all()
    hot = heat_map(anomaly_map, 1.0, 3.0)[0, 0]
    expected = np.rint(image[0, 0] * (1 - OPACITY) + hot * OPACITY)
    assert np.abs(mixed[0, 0].astype(float) - expected).max() <= 1


def test_overlay_draws_boxes_also_at_the_border() -> None:
    image = np.full((80, 120, 3), 100, np.uint8)
    cold = np.zeros((80, 120), np.float32)
    inner = Region((20, 30, 40, 60), 600, 2.0, (25, 35))
    whole = Region((0, 0, 80, 120), 9600, 3.0, (0, 0))
    mixed = overlay(image, cold, 1.0, 3.0, [inner])
    assert (mixed[18, 40] == 255).all()
    assert (mixed[[17, 19], 40] == 0).all()
    assert (mixed[20:40, 30:60] == 100).all()
    framed = overlay(image, cold, 1.0, 3.0, [whole])
    for side in (framed[0], framed[-1], framed[:, 0], framed[:, -1]):
        assert (side == 255).all()
    # Two regions are numbered: the tag of the first stands above its box.
    both = overlay(image, cold, 1.0, 3.0, [inner, whole])
    assert (both[5:17, 29:40] != framed[5:17, 29:40]).any()


def test_outline_lies_outside_of_its_mask() -> None:
    image = np.full((10, 12, 3), 90, np.uint8)
    mask = np.zeros((10, 12), np.bool_)
    mask[4:6, 5:8] = True
    drawn = outline(image, mask, (0, 255, 0))
    assert (drawn[mask] == 90).all()
    assert (drawn[3, 5] == (0, 255, 0)).all()
    assert (drawn[2, 5] == 30).all()


def test_wrong_maps_are_named_errors() -> None:
    flat = np.zeros((4, 6), np.float32)
    image = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(OptionError, match="do not match"):
        overlay(image, flat[:3], 0.0, 1.0)
    with pytest.raises(OptionError, match="is empty"):
        heat_map(flat, 1.0, 1.0)
    with pytest.raises(OptionError, match="is empty"):
        overlay(image, flat, 0.0, float("nan"))
    with pytest.raises(OptionError, match="one map"):
        heat_map(flat[None], 0.0, 1.0)
