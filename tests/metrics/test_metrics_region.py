"""Regions against scipy and scikit-image; AU-PRO against its definition, sorted and cumulated."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops
from sklearn.metrics import auc

from amiss.errors import MetricError
from amiss.metrics import aupro, label_regions, pixel_auroc, pro_curve, region_list

CORNERS_TOO = np.ones((3, 3), dtype=int)


def full_sort_curve(maps, masks):
    """The PRO curve as MVTec defines it: every pixel sorted, the last of each tie kept."""
    maps, masks = np.asarray(maps, dtype=np.float64), np.asarray(masks) > 0
    gain = np.zeros(maps.shape)
    regions = 0
    for index, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=CORNERS_TOO)
        for number in range(1, count + 1):
            gain[index][labels == number] = 1 / (labels == number).sum()
        regions += count
    order = np.argsort(-maps.ravel(), kind="stable")
    ranked = maps.ravel()[order]
    fpr = np.cumsum(~masks.ravel()[order]) / (~masks).sum()
    pro = np.cumsum(gain.ravel()[order]) / regions
    last = np.append(ranked[1:] != ranked[:-1], True)
    return np.concatenate([[0], fpr[last], [1]]), np.concatenate([[0], pro[last], [1]])


def area_up_to(fpr, pro, limit):
    inside = int((fpr <= limit).sum())
    fpr, pro, after = fpr[:inside], pro[:inside], (fpr[inside:], pro[inside:])
    if fpr[-1] < limit:
        slope = (after[1][0] - pro[-1]) / (after[0][0] - fpr[-1])
        pro = np.append(pro, pro[-1] + slope * (limit - fpr[-1]))
        fpr = np.append(fpr, limit)
    return auc(fpr, pro)


def full_sort_aupro(maps, masks, limit=0.3):
    return area_up_to(*full_sort_curve(maps, masks), limit) / limit


def in_pieces(gather_bytes=64, sample_px=50):
    return mock.patch.multiple(
        "amiss.metrics.pixel", _BLOCK_PX=40, _GATHER_BYTES=gather_bytes, _SAMPLE_PX=sample_px
    ), mock.patch("amiss.metrics.region._BATCH_PX", 5)


@st.composite
def mapped_images(draw):
    B, H, W = draw(st.integers(1, 4)), draw(st.integers(1, 10)), draw(st.integers(2, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 6, 1000]))
    masks = rng.random((B, H, W)) < draw(st.sampled_from([0.03, 0.2, 0.5, 0.9]))
    masks[0, 0, :2] = [False, True]
    maps = rng.integers(-levels, levels, (B, H, W)) / 8 + masks * rng.integers(0, 2)
    return maps.astype(draw(st.sampled_from([np.float16, np.float32, np.float64]))), masks


LIMITS = st.sampled_from([0.01, 0.05, 0.25, 0.3, 0.5, 1.0])


@settings(max_examples=200, deadline=None)
@given(mapped_images(), LIMITS, st.booleans())
def test_aupro_equals_a_full_sort(images, limit, pieces):
    maps, masks = images
    if pieces:
        blocks, batches = in_pieces()
        with blocks, batches:
            value = aupro(maps, masks, limit)
    else:
        value = aupro(maps, masks, limit)
    assert value == pytest.approx(full_sort_aupro(maps, masks, limit), abs=1e-12)
    assert 0.0 <= value <= 1.0


@settings(max_examples=60, deadline=None)
@given(mapped_images(), LIMITS)
def test_aupro_is_the_area_under_the_curve(images, limit):
    maps, masks = images
    fpr, pro = pro_curve(maps, masks, limit=limit)
    assert fpr[0] == pro[0] == 0
    assert fpr[-1] == limit
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(pro) >= 0).all()
    assert auc(fpr, pro) / limit == pytest.approx(aupro(maps, masks, limit), abs=1e-12)
    blocks, batches = in_pieces(gather_bytes=32)
    with blocks, batches:
        again = pro_curve(maps, masks, limit=limit)
    np.testing.assert_allclose(again, (fpr, pro), atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(mapped_images())
def test_curve_runs_through_every_point_of_the_definition(images):
    maps, masks = images
    fpr, pro = pro_curve(maps, masks)
    expected_fpr, expected_pro = full_sort_curve(maps, masks)
    for x in np.unique(expected_fpr):  # vertical parts: compare both ends
        ends = expected_pro[expected_fpr == x][[0, -1]]
        ours = pro[fpr == x]
        if len(ours):
            assert ours[-1] == pytest.approx(ends[-1], abs=1e-12)
        else:  # a point on a straight line
            assert np.interp(x, fpr, pro) == pytest.approx(ends[-1], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(mapped_images(), LIMITS)
def test_strictly_monotone_change_of_scores_changes_nothing(images, limit):
    maps, masks = images
    maps = maps.astype(np.float64)
    value = aupro(maps, masks, limit)
    assert aupro(np.exp(maps / 100), masks, limit) == pytest.approx(value, abs=1e-13)
    assert aupro(np.arctan(maps) - 7, masks, limit) == pytest.approx(value, abs=1e-13)


def test_hand_case():
    # regions {1} and {5, 6, 7}; eight pixels without defect, so FPR moves in steps of 1 / 8
    maps = np.full((1, 1, 12), 0.1)
    for place, score in {1: 0.9, 5: 0.8, 6: 0.6, 7: 0.2, 0: 0.7}.items():
        maps[0, 0, place] = score
    masks = np.zeros((1, 1, 12), dtype=bool)
    masks[0, 0, [1, 5, 6, 7]] = True
    assert aupro(maps, masks) == pytest.approx(31 / 36, abs=1e-15)
    assert aupro(maps.astype(np.float32), masks) == pytest.approx(31 / 36, abs=1e-15)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_perfect_constant_and_random_maps(limit):
    rng = np.random.default_rng(0)
    masks = np.zeros((20, 40, 30), dtype=bool)
    masks[::2, 5:12, 3:20] = True
    masks[::4, 30:33, 1:4] = True
    assert aupro(masks.astype(np.float32), masks, limit) == pytest.approx(1.0, abs=1e-12)
    assert aupro(np.where(masks, 0.0, 1.0), masks, limit) == 0.0
    assert aupro(np.ones(masks.shape), masks, limit) == pytest.approx(limit / 2, abs=1e-12)
    noise = aupro(rng.random(masks.shape), masks, limit)
    assert noise == pytest.approx(limit / 2, abs=0.03)


def test_one_region_and_limit_one_is_pixel_auroc():
    rng = np.random.default_rng(3)
    masks = np.zeros((3, 12, 17), dtype=bool)
    masks[1, 2:9, 4:6] = True
    maps = np.round(rng.normal(size=masks.shape) + masks, 1)
    assert aupro(maps, masks, 1.0) == pytest.approx(pixel_auroc(maps, masks), abs=1e-13)


def test_regions_are_8_connected():
    # two pixels that touch at a corner weigh 1 / 2 each; as two regions they would be all of PRO
    masks = np.zeros((1, 4, 4), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 3, 3] = True
    maps = np.zeros((1, 4, 4))
    maps[0, 0, 0] = 1.0
    fpr, pro = pro_curve(maps, masks)
    np.testing.assert_allclose(pro[fpr == 0], [0, 1 / 4])


def test_regions_end_with_their_image():
    # the last row of one image and the first row of the next are no neighbours
    masks = np.zeros((2, 2, 3), dtype=bool)
    masks[0, 1] = masks[1, 0] = True
    maps = np.zeros((2, 2, 3))
    maps[0, 1, 0] = 1.0
    fpr, pro = pro_curve(maps, masks)
    np.testing.assert_allclose(pro[fpr == 0], [0, 1 / 6])
    maps[1, 0] = 1.0  # of two regions one is found whole, the other by a third
    fpr, pro = pro_curve(maps, masks)
    np.testing.assert_allclose(pro[fpr == 0], [0, 2 / 3])


def test_realistic_maps_equal_a_full_sort_to_1e_9():
    rng = np.random.default_rng(5)
    blobs = ndimage.gaussian_filter(rng.random((24, 96, 128)), (0, 5, 5))
    masks = blobs > np.quantile(blobs, 0.97)
    masks[::2] = False
    maps = (blobs + 0.01 * rng.normal(size=blobs.shape)).astype(np.float32)
    for limit in (0.05, 0.3, 1.0):
        expected = full_sort_aupro(maps, masks, limit)
        assert aupro(maps, masks, limit) == pytest.approx(expected, abs=1e-9)
        with mock.patch("amiss.metrics.pixel._GATHER_BYTES", 2**16):
            assert aupro(maps, masks, limit) == pytest.approx(expected, abs=1e-9)


def test_regions_are_formed_inside_the_region_of_interest():
    # a bar cut in two by the border of the region of interest: two regions, not one
    masks = np.zeros((1, 3, 9), dtype=bool)
    masks[0, 1, 1:8] = True
    rois = np.ones((1, 3, 9), dtype=bool)
    rois[:, :, 3] = False
    maps = np.zeros((1, 3, 9))
    maps[0, 1, 1:3] = 1.0  # finds the left one: 2 pixels of 6, one region of two
    fpr, pro = pro_curve(maps, masks, rois=rois)
    np.testing.assert_allclose(pro[fpr == 0], [0, 0.5])
    # from there a straight line to (1, 1): PRO(0.3) = 0.5 + 0.5 * 0.3
    assert aupro(maps, masks, rois=rois) == pytest.approx((0.5 + 0.65) / 2, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(mapped_images(), st.integers(0, 2**32 - 1), LIMITS)
def test_outside_the_region_of_interest_nothing_counts(images, seed, limit):
    maps, masks = images
    rois = np.random.default_rng(seed).random(maps.shape) < 0.7
    rois[0, 0, :2] = True
    # a full sort of what is left: outside pixels score below all others and are taken off again
    gone = int((~rois).sum())
    lowest = float(maps.astype(np.float64).min()) - 1
    fpr, pro = full_sort_curve(np.where(rois, maps, lowest), masks & rois)
    ok = (~(masks & rois)).sum()
    fpr = np.minimum(fpr * ok / (ok - gone), 1.0)
    expected = area_up_to(fpr, pro, limit) / limit
    assert aupro(maps, masks, limit, rois=rois) == pytest.approx(expected, abs=1e-12)
    elsewhere = np.where(rois, maps, np.float32(99)).astype(maps.dtype)
    assert aupro(elsewhere, masks, limit, rois=rois) == aupro(maps, masks, limit, rois=rois)


def test_limit_is_checked():
    maps, masks = np.zeros((1, 2, 2)), np.array([[[True, False], [False, False]]])
    for limit in (0.0, -0.1, 1.0001, float("nan")):
        with pytest.raises(MetricError, match="limit"):
            aupro(maps, masks, limit)
        with pytest.raises(MetricError, match="limit"):
            pro_curve(maps, masks, limit=limit)


def spiral(size):
    """One arm, one pixel wide, one pixel of gap: the longest way through a square."""
    mask = np.zeros((size, size), dtype=bool)
    row, column, step = 0, -1, (0, 1)
    lengths = [size, *(n for k in range(size - 1, 0, -2) for n in (k, k))]
    for length in lengths:
        for _ in range(length):
            row, column = row + step[0], column + step[1]
            mask[row, column] = True
        step = (step[1], -step[0])
    return mask


def comb(size):
    mask = np.zeros((size, size + 7), dtype=bool)
    mask[:, ::2] = mask[-1] = True
    return mask


SHAPES = {
    "empty": np.zeros((5, 8), dtype=bool),
    "full": np.ones((6, 4), dtype=bool),
    "one pixel": np.ones((1, 1), dtype=bool),
    "one row": np.array([[1, 0, 1, 1, 0, 0, 1]], dtype=bool),
    "one column": np.array([[1, 0, 1, 1, 0, 0, 1]], dtype=bool).T,
    "diagonal": np.eye(9, 14, dtype=bool),
    "antidiagonal": np.eye(9, 14, dtype=bool)[:, ::-1],
    "wraps": np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=bool),
    "rows end to begin": np.array([[0, 0, 1], [1, 0, 0]], dtype=bool),
    "checker": np.indices((20, 31)).sum(0) % 2 == 0,
    "dots": (np.indices((20, 31)) % 2 == 0).all(0),
    "rings": np.indices((20, 31)).max(0) % 2 == 0,
    "spiral": spiral(61),
    "spiral flipped": spiral(60)[::-1, ::-1].copy(),
    "comb": comb(50),
    "comb flipped": comb(50)[::-1],
    "comb turned": comb(50).T,
}


def assert_same_labels(mask):
    labels, count = label_regions(mask)
    expected, expected_count = ndimage.label(mask, structure=CORNERS_TOO)
    assert labels.dtype == np.int32
    assert count == expected_count
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("name", SHAPES)
def test_labels_of_shapes_equal_scipy(name):
    assert_same_labels(SHAPES[name])


def test_a_diagonal_touch_is_one_region():
    assert label_regions(np.array([[1, 0], [0, 1]], dtype=bool))[1] == 1
    assert label_regions(np.array([[0, 1], [1, 0]], dtype=bool))[1] == 1


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_labels_of_random_masks_equal_scipy(H, W, share, seed):
    assert_same_labels(np.random.default_rng(seed).random((H, W)) < share)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.45, 0.7])
def test_labels_of_a_large_mask_equal_scipy(share):
    assert_same_labels(np.random.default_rng(0).random((400, 517)) < share)


def test_labels_accept_integers_and_refuse_the_rest():
    labels, count = label_regions(np.array([[255, 0, 0], [0, 0, -3]], dtype=np.int16))
    assert count == 1
    np.testing.assert_array_equal(labels, [[1, 0, 0], [0, 0, 0]])
    for wrong in (np.zeros((2, 2)), np.zeros((1, 2, 2), dtype=bool), np.zeros(3, dtype=bool)):
        with pytest.raises(MetricError, match="mask has shape"):
            label_regions(wrong)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 25),
    st.integers(1, 25),
    st.sampled_from([2, 5, 1000]),
    st.floats(-1, 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_region_list_equals_scikit_image(H, W, levels, threshold, seed, dtype):
    rng = np.random.default_rng(seed)
    scores = (rng.integers(-levels, levels + 1, (H, W)) / levels).astype(dtype)
    roi = rng.random((H, W)) < 0.8 if seed % 2 else None
    mask = (scores.astype(np.float64) > threshold) & (True if roi is None else roi)
    labels, _ = ndimage.label(mask, structure=CORNERS_TOO)
    expected = []
    for prop in regionprops(labels):
        values = np.where(labels == prop.label, scores.astype(np.float64), -np.inf)
        place = np.unravel_index(np.argmax(values), values.shape)
        box = tuple(int(edge) for edge in prop.bbox)
        expected.append((box, int(prop.area), float(values.max()), tuple(map(int, place))))
    expected.sort(key=lambda row: -row[2])  # stable: raster order among equals
    found = region_list(scores, threshold, roi)
    assert [(r.box, r.area_px, r.peak, r.peak_at) for r in found] == expected


def test_region_fields_are_plain_python():
    scores = np.zeros((4, 6), dtype=np.float32)
    scores[1, 2:4] = [0.5, 0.75]
    scores[2, 4] = 0.625
    scores[3, 0] = 2.0
    high, wide = region_list(scores, 0.25)
    assert (high.box, high.area_px, high.peak, high.peak_at) == ((3, 0, 4, 1), 1, 2.0, (3, 0))
    assert (wide.box, wide.area_px, wide.peak, wide.peak_at) == ((1, 2, 3, 5), 3, 0.75, (1, 3))
    assert {type(edge) for edge in (*wide.box, wide.area_px, *wide.peak_at)} == {int}
    assert type(wide.peak) is float
    assert region_list(scores, 2.0) == []  # the threshold itself is not above it
    assert region_list(scores, float("inf")) == []
    assert len(region_list(scores, float("-inf"))) == 1
    assert region_list(scores, 1e300) == []  # outside float32
    tenth = np.full((2, 2), 0.1, dtype=np.float32)  # a little above 0.1
    assert len(region_list(tenth, 0.1)) == 1
    assert region_list(tenth, float(tenth[0, 0])) == []


def test_region_list_refuses_what_it_cannot_use():
    good = np.zeros((3, 4), dtype=np.float32)
    for scores in (good[None], good.astype(complex), np.full((3, 4), np.nan)):
        with pytest.raises(MetricError, match="anomaly_map"):
            region_list(scores, 0.5)
    with pytest.raises(MetricError, match="NaN"):
        region_list(good, float("nan"))
    for roi in (np.ones((4, 3), dtype=bool), np.ones((3, 4), dtype=np.uint8)):
        with pytest.raises(MetricError, match="roi"):
            region_list(good, 0.5, roi)
