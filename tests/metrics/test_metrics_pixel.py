"""Pixel metrics against scikit-learn on the pooled pixels, also when they are read in pieces."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from amiss.errors import MetricError
from amiss.metrics import aupro, pixel_ap, pixel_auroc, pixel_f1_max, pro_curve

METRICS = (pixel_auroc, pixel_ap, pixel_f1_max)


def in_pieces(block_px=40, gather_bytes=64, sample_px=50):
    """Blocks, ranges and batches so small that a few images need many of each."""
    return mock.patch.multiple(
        "amiss.metrics.pixel",
        _BLOCK_PX=block_px,
        _GATHER_BYTES=gather_bytes,
        _SAMPLE_PX=sample_px,
        _QUERIES=3,
    )


def sklearn_values(maps, masks):
    scores, labels = np.ravel(maps).astype(np.float64), np.ravel(masks) > 0
    precision, recall, _ = precision_recall_curve(labels, scores)
    total = precision + recall
    f1_max = (2 * precision * recall / np.where(total > 0, total, 1)).max()
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), f1_max


@st.composite
def mapped_images(draw):
    """Maps from a few levels (heavy ties) to none tied, defects from one pixel to nearly all."""
    B, H, W = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(2, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    share = draw(st.sampled_from([0.02, 0.3, 0.5, 0.95]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    rng = np.random.default_rng(seed)
    masks = rng.random((B, H, W)) < share
    masks[0, 0, :2] = [False, True]
    maps = rng.integers(-levels, levels, (B, H, W)) / 8 + masks * rng.integers(0, 2)
    return maps.astype(dtype), masks


@settings(max_examples=120, deadline=None)
@given(mapped_images(), st.booleans())
def test_equal_to_sklearn(images, pieces):
    maps, masks = images
    expected = sklearn_values(maps, masks)
    with in_pieces() if pieces else mock.MagicMock():
        values = [metric(maps, masks) for metric in METRICS]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert all(0.0 <= value <= 1.0 for value in values)


@settings(max_examples=40, deadline=None)
@given(mapped_images(), st.integers(16, 400), st.integers(1, 200))
def test_cuts_never_change_a_result(images, gather_bytes, sample_px):
    maps, masks = images
    whole = [metric(maps, masks) for metric in METRICS]
    with in_pieces(gather_bytes=gather_bytes, sample_px=sample_px):
        values = [metric(maps, masks) for metric in METRICS]
    np.testing.assert_allclose(values, whole, rtol=0, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(mapped_images())
def test_strictly_monotone_change_of_scores_changes_nothing(images):
    maps, masks = images
    maps = maps.astype(np.float64)
    for metric in METRICS:
        value = metric(maps, masks)
        assert metric(np.exp(maps / 100), masks) == pytest.approx(value, abs=1e-13)
        assert metric(maps * 1e-300 - 0.0, masks) == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("metric", METRICS)
def test_large_pool_equals_sklearn(metric):
    rng = np.random.default_rng(0)
    masks = rng.random((7, 211, 307)) < 0.1
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    expected = sklearn_values(maps, masks)[METRICS.index(metric)]
    assert metric(maps, masks) == pytest.approx(expected, abs=1e-12)
    with mock.patch("amiss.metrics.pixel._GATHER_BYTES", 2**17):
        assert metric(maps, masks) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [*METRICS, aupro])
def test_same_result_for_every_way_to_hand_over_the_same_maps(metric, tmp_path):
    rng = np.random.default_rng(1)
    masks = rng.random((3, 8, 5)) < 0.3
    maps = (np.round(rng.random((3, 8, 5)) * 16) + masks).astype(np.float32)
    value = metric(maps, masks)
    np.save(tmp_path / "maps.npy", maps)
    for same in (
        list(maps),
        tuple(maps),
        [maps[0].astype(np.float16), *maps[1:]],
        np.load(tmp_path / "maps.npy", mmap_mode="r"),
        maps.astype(np.float16),
        maps.astype(np.float64),
        maps.astype(">f4"),
        maps.astype(np.uint8),
        maps.astype(np.int32),
        np.asfortranarray(maps),
        np.repeat(maps, 2, axis=2)[:, :, ::2],
    ):
        assert metric(same, masks) == value
    for same in (list(masks), masks.astype(np.uint8) * 255, masks.astype(np.int64)):
        assert metric(maps, same) == value


def test_float64_is_not_rounded_to_float32():
    maps = np.array([[[1.0, 1.0 + 1e-12]]])
    masks = np.array([[[False, True]]])
    assert pixel_auroc(maps, masks) == 1.0
    assert pixel_auroc(maps.astype(np.float32), masks) == 0.5
    assert aupro(maps, masks) == pytest.approx(1.0)


def test_minus_zero_is_zero():
    maps = np.array([[[-0.0, 0.0, 0.0, -0.0]]], dtype=np.float32)
    masks = np.array([[[False, True, False, True]]])
    assert pixel_auroc(maps, masks) == 0.5
    assert pixel_ap(maps, masks) == 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_pixels_outside_the_region_of_interest_do_not_exist(metric):
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(4, 6, 9)).astype(np.float32)
    masks = rng.random((4, 6, 9)) < 0.4
    rois = rng.random((4, 6, 9)) < 0.6
    rois[2] = False
    expected = metric(maps[rois][None, None], masks[rois][None, None])
    assert metric(maps, masks, rois=rois) == pytest.approx(expected, abs=1e-13)
    with in_pieces():
        assert metric(maps, masks, rois=list(rois)) == pytest.approx(expected, abs=1e-13)
    assert metric(maps, masks, rois=np.ones_like(rois)) == metric(maps, masks)


def test_normal_images_are_in_the_pool():
    maps = np.array([[[0.1, 0.9]], [[0.5, 0.95]]])
    masks = np.array([[[False, True]], [[False, False]]])
    assert pixel_auroc(maps[:1], masks[:1]) == 1.0
    assert pixel_auroc(maps, masks) == pytest.approx(2 / 3)


MAPS, MASKS = np.zeros((2, 3, 4)), np.eye(3, 4, dtype=bool)[None].repeat(2, axis=0)


@pytest.mark.parametrize("metric", [*METRICS, aupro, pro_curve])
@pytest.mark.parametrize(
    ("maps", "masks", "rois", "message"),
    [
        (MAPS, np.zeros_like(MASKS), None, "no defect pixel"),
        (MAPS, np.ones_like(MASKS), None, "no defect-free pixel"),
        (MAPS, MASKS, ~MASKS, "no defect pixel"),
        (MAPS, MASKS, MASKS, "no defect-free pixel"),
        (MAPS, MASKS, np.zeros_like(MASKS), "no defect pixel"),
        (MAPS, MASKS[:1], None, "masks have shape"),
        (MAPS, MASKS.transpose(0, 2, 1), None, "masks have shape"),
        (MAPS, MASKS, MASKS[:1], "rois have shape"),
        (MAPS[0], MASKS[0], None, "maps have shape"),
        (MAPS[:, None], MASKS[:, None], None, "maps have shape"),
        (MAPS[:0], MASKS[:0], None, "maps have shape"),
        ([], [], None, "maps have shape"),
        ([MAPS[0], MAPS[0].T], MASKS, None, "differ in size"),
        (np.where(MASKS, np.nan, 0), MASKS, None, "map 0 holds NaN"),
        ([MAPS[0], MAPS[1] - np.inf], MASKS, None, "map 1 holds NaN"),
        (MAPS, MASKS.astype(np.float32), None, "masks are of type float32"),
        (MAPS, MASKS, MASKS.astype(np.uint8), "rois are of type uint8"),
        (MAPS.astype(complex), MASKS, None, "maps are of type complex"),
        (MAPS.astype(np.int64), MASKS, None, "maps are of type int64"),
        (MAPS.astype(str), MASKS, None, "maps are of type"),
    ],
)
def test_undefined_is_a_named_error_with_a_hint(metric, maps, masks, rois, message):
    with in_pieces(block_px=1), pytest.raises(MetricError, match=message) as caught:
        metric(maps, masks, rois=rois)
    assert caught.value.hint


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 here")
def test_longer_floats_than_float64_are_refused():
    with pytest.raises(MetricError, match="maps are of type"):
        pixel_auroc(MAPS.astype(np.longdouble), MASKS)


def test_memory_beside_the_maps_stays_small():
    import tracemalloc

    rng = np.random.default_rng(0)
    maps = rng.random((160, 256, 256), dtype=np.float32)  # 40 MiB
    masks = np.zeros(maps.shape, dtype=bool)
    masks[:, :128] = True  # half of all pixels
    with mock.patch("amiss.metrics.pixel._GATHER_BYTES", 2**22):
        for metric in (*METRICS, aupro):
            tracemalloc.start()
            metric(maps, masks)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 56 * 2**20, metric  # one argsort of all pixels would take 80 MiB
