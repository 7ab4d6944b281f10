"""All metrics of localization at once, against the functions that compute one each."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amiss.errors import MetricError
from amiss.metrics import aupro, pixel_ap, pixel_auroc, pixel_f1_max, pixel_metrics, pro_curve


def in_pieces():
    """Blocks, ranges and batches so small that a few images need many of each."""
    small = {"_BLOCK_PX": 40, "_GATHER_BYTES": 64, "_SAMPLE_PX": 50, "_QUERIES": 3}
    return (
        mock.patch.multiple("amiss.metrics.pixel", **small),
        mock.patch("amiss.metrics.region._BATCH_PX", 5),
    )


@st.composite
def mapped_images(draw):
    B, H, W = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 6, 1000]))
    masks = rng.random((B, H, W)) < draw(st.sampled_from([0.03, 0.2, 0.5, 0.9]))
    masks[0, 0, :2] = [False, True]
    maps = rng.integers(-levels, levels, (B, H, W)) / 8 + masks * rng.integers(-2, 2)
    return maps.astype(draw(st.sampled_from([np.float16, np.float32, np.float64]))), masks


@settings(max_examples=150, deadline=None)
@given(
    mapped_images(), st.sampled_from([0.01, 0.05, 0.25, 0.3, 0.5, 1.0]), st.booleans(),
    st.sampled_from([None, 0.7]),
)  # fmt: skip
def test_together_they_are_what_they_are_alone(images, limit, pieces, share):
    maps, masks = images
    rois = None
    if share is not None:
        rois = np.random.default_rng(0).random(maps.shape) < share
        rois[0, 0, :2] = True
    alone = [metric(maps, masks, rois=rois) for metric in (pixel_auroc, pixel_ap, pixel_f1_max)]
    alone.append(aupro(maps, masks, limit, rois=rois))
    curve = pro_curve(maps, masks, rois=rois, limit=limit)
    blocks, batches = in_pieces() if pieces else (mock.MagicMock(), mock.MagicMock())
    with blocks, batches:
        found = pixel_metrics(maps, masks, rois=rois, limit=limit)
    np.testing.assert_allclose(found[:4], alone, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.pro_curve, curve, rtol=0, atol=1e-12)


def test_a_curve_without_a_defect_pixel_below_the_limit_is_level():
    masks = np.zeros((1, 2, 5), dtype=bool)
    masks[0, 0, 0] = True
    maps = np.where(masks, 0.0, 1.0)
    found = pixel_metrics(maps, masks, limit=0.3)
    np.testing.assert_array_equal(found.pro_curve, [[0.0, 0.3], [0.0, 0.0]])
    assert found.aupro == 0.0 and found.auroc == 0.0


def test_arguments_are_checked_as_by_aupro():
    maps, masks = np.zeros((2, 3, 4)), np.eye(3, 4, dtype=bool)[None].repeat(2, axis=0)
    for limit in (0.0, 1.1, float("nan")):
        with pytest.raises(MetricError, match="limit"):
            pixel_metrics(maps, masks, limit=limit)
    with pytest.raises(MetricError, match="no defect pixel"):
        pixel_metrics(maps, np.zeros_like(masks))
    with pytest.raises(MetricError, match="rois have shape"):
        pixel_metrics(maps, masks, rois=masks[:1])


def test_memory_beside_the_maps_stays_small():
    rng = np.random.default_rng(0)
    maps = rng.random((160, 256, 256), dtype=np.float32)  # 40 MiB
    masks = np.zeros(maps.shape, dtype=bool)
    masks[:, 100:110, :100] = True
    with (
        mock.patch("amiss.metrics.pixel._GATHER_BYTES", 2**22),
        mock.patch("amiss.metrics.region._BATCH_PX", 2**14),
    ):
        tracemalloc.start()
        pixel_metrics(maps, masks)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 56 * 2**20  # one argsort of all pixels would take 80 MiB
