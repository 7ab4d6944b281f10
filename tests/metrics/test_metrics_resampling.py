"""Intervals of the pixel metrics, against exact metrics of the same resamples."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from amiss.errors import MetricError
from amiss.metrics import pixel_intervals, pixel_metrics

NAMES = ("auroc", "ap", "f1_max", "aupro")


def defective(images: int, decimals: int, seed: int = 0):
    """Maps (B, 24, 30) that partly find the defects, masks and regions of interest."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(images, 24, 30)) + rng.normal(size=(images, 1, 1))
    masks = np.zeros(maps.shape, dtype=bool)
    for i in range(images * 2 // 3):
        masks[i, 2 + i : 7 + i, 4 : 8 + i] = True
        masks[i, 20:22, 25:28] = i % 2 == 0
    maps += masks * rng.uniform(0.0, 3.0, size=(images, 1, 1))
    return maps.round(decimals).astype(np.float32), masks, rng.random(maps.shape) < 0.8


def drawn_images(masks, rounds: int, seed: int):
    """The images of every round, drawn as `pixel_intervals` draws them."""
    from amiss.metrics.resampling import _times

    times = _times(masks.any(axis=(1, 2)), rounds, seed).astype(int)
    return [np.repeat(np.arange(len(masks)), row) for row in times]


@pytest.mark.parametrize("decimals", [1, 6])  # many ties, and none
@pytest.mark.parametrize("with_rois", [False, True])
def test_they_are_the_quantiles_of_exact_metrics_of_the_resamples(decimals, with_rois):
    maps, masks, rois = defective(9, decimals)
    rois = rois if with_rois else np.ones_like(rois)
    with mock.patch.multiple("amiss.metrics.resampling", _IMAGES=4, _ROUNDS=7):
        found = pixel_intervals(maps, masks, rois=rois, rounds=30, level=0.8, seed=3)
    exact = [
        pixel_metrics(maps[i], masks[i], rois=rois[i]) for i in drawn_images(masks & rois, 30, 3)
    ]
    for name in NAMES:
        expected = np.quantile([getattr(one, name) for one in exact], [0.1, 0.9])
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=1e-12)


def test_shares_of_many_defect_pixels_are_close():
    maps, masks, _ = defective(9, 6)
    with mock.patch("amiss.metrics.resampling._PARTS", 40):
        found = pixel_intervals(maps, masks, rounds=30)
    exact = [pixel_metrics(maps[i], masks[i]) for i in drawn_images(masks, 30, 0)]
    for name in NAMES:
        expected = np.quantile([getattr(one, name) for one in exact], [0.025, 0.975])
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=0.02)


def test_rare_defects_are_told_apart_from_all_else():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(30, 128, 128))
    masks = np.zeros(maps.shape, dtype=bool)
    masks[:10, 3:6, 3:6] = True
    with mock.patch("amiss.metrics.pixel._SAMPLE_PX", 500):
        for shift in (4.0, 20.0):
            moved = maps + shift * masks
            found, whole = pixel_intervals(moved, masks), pixel_metrics(moved, masks)
            for name in NAMES:
                low, high = getattr(found, name)
                assert low <= getattr(whole, name) <= high
        assert all(pair == (1.0, 1.0) for pair in found)  # perfect maps have no width


def test_rounds_without_a_defect_free_pixel_are_left_out():
    maps, masks, _ = defective(2, 6)
    masks[0], masks[1, :5, :5] = True, True
    assert np.isfinite(pixel_intervals(maps, masks)).all()
    with pytest.raises(MetricError, match="none of 1 resamples"):
        pixel_intervals(maps, masks, rounds=1, seed=4)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int32])
def test_maps_of_any_type_and_another_limit_are_taken(dtype):
    maps, masks, _ = defective(6, 6)
    scaled = (maps * 20 + 100).clip(0, 255).astype(dtype)
    found = pixel_intervals(scaled, masks, rounds=20, limit=0.05)
    exact = [pixel_metrics(scaled[i], masks[i], limit=0.05) for i in drawn_images(masks, 20, 0)]
    expected = np.quantile([one.aupro for one in exact], [0.025, 0.975])
    np.testing.assert_allclose(found.aupro, expected, rtol=0, atol=1e-12)


def test_a_round_keeps_the_number_of_images_with_defects_and_without():
    _, masks, _ = defective(9, 3)
    has_defect = masks.any(axis=(1, 2))
    for images in drawn_images(masks, 50, 0):
        assert len(images) == 9
        assert has_defect[images].sum() == has_defect.sum()


def test_the_interval_holds_the_figure_and_narrows_with_more_images():
    widths = []
    for images in (6, 18):
        maps, masks, _ = defective(images, 6)
        found, whole = pixel_intervals(maps, masks), pixel_metrics(maps, masks)
        for name in NAMES:
            low, high = getattr(found, name)
            assert 0 <= low < getattr(whole, name) < high <= 1
        widths.append(found.auroc[1] - found.auroc[0])
    assert widths[1] < widths[0]


def test_the_same_seed_gives_the_same_intervals():
    maps, masks, _ = defective(6, 6)
    first = pixel_intervals(maps, masks, seed=1, rounds=20)
    assert pixel_intervals(list(maps), masks, seed=1, rounds=20) == first
    assert pixel_intervals(maps, masks, seed=2, rounds=20) != first


def test_images_that_all_hold_a_defect_are_judged():
    maps, masks, _ = defective(9, 6)
    low, high = pixel_intervals(maps[:5], masks[:5]).aupro
    assert 0 < low < high < 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"level": 1.0}, "level"), ({"rounds": 0}, "rounds"), ({"limit": 0.0}, "limit")],
)
def test_what_is_out_of_range_is_told(wrong, told):
    maps, masks, _ = defective(3, 6)
    with pytest.raises(MetricError, match=told):
        pixel_intervals(maps, masks, **wrong)
