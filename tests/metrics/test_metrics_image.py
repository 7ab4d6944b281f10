"""Image metrics against scikit-learn, and what must hold for any scores."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from amiss.errors import MetricError
from amiss.metrics import (
    bootstrap_interval,
    f1_max_threshold,
    image_ap,
    image_auroc,
    image_f1_max,
    min_max,
    roc_curve,
)

METRICS = (image_auroc, image_ap, image_f1_max)
NAMES = ("image_auroc", "image_ap", "image_f1_max")


@st.composite
def scored_images(draw):
    """Scores with many ties, and labels of both classes."""
    B = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-6, 6), min_size=B, max_size=B))
    labels = draw(st.lists(st.integers(0, 1), min_size=B, max_size=B))
    labels[:2] = [0, 1]
    return np.array(scores, dtype=np.float64), np.array(labels)


def sklearn_f1_max(scores, labels):
    precision, recall, _ = precision_recall_curve(labels, scores)
    total = precision + recall
    return (2 * precision * recall / np.where(total > 0, total, 1)).max()


@settings(max_examples=150, deadline=None)
@given(scored_images())
def test_equal_to_sklearn_under_heavy_ties(images):
    scores, labels = images
    assert image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    reference = average_precision_score(labels, scores)
    assert image_ap(scores, labels) == pytest.approx(reference, abs=1e-12)
    assert image_f1_max(scores, labels) == pytest.approx(sklearn_f1_max(scores, labels), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(scored_images())
def test_range_and_monotone_invariance(images):
    scores, labels = images
    for metric in METRICS:
        value = metric(scores, labels)
        assert 0.0 <= value <= 1.0
        assert metric(np.exp(scores), labels) == value
        assert metric(scores**3 - 100, labels) == value
    reversed_order = image_auroc(scores[::-1], labels[::-1])
    assert reversed_order == image_auroc(scores, labels)
    assert image_auroc(-scores, labels) == pytest.approx(1 - image_auroc(scores, labels))


@settings(max_examples=60, deadline=None)
@given(scored_images())
def test_curve_equals_sklearn_at_every_distinct_score(images):
    scores, labels = images
    fpr, tpr = roc_curve(scores, labels)
    expected_fpr, expected_tpr, _ = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(fpr, expected_fpr, atol=1e-15)
    np.testing.assert_allclose(tpr, expected_tpr, atol=1e-15)
    assert auc(fpr, tpr) == pytest.approx(image_auroc(scores, labels))


@settings(max_examples=60, deadline=None)
@given(scored_images())
def test_threshold_reaches_the_best_f1(images):
    scores, labels = images
    predicted = scores >= f1_max_threshold(scores, labels)
    tp = (predicted & (labels == 1)).sum()
    f1 = 2 * tp / (predicted.sum() + labels.sum())
    assert f1 == pytest.approx(image_f1_max(scores, labels))


def test_threshold_is_the_highest_of_equals_and_exact_in_float32():
    scores = np.array([0.9, 0.3, 0.1, 0.0], dtype=np.float32)
    assert f1_max_threshold(scores, [1, 1, 0, 0]) == float(np.float32(0.3))
    assert (scores >= f1_max_threshold(scores, [1, 1, 0, 0])).sum() == 2
    # TP 1 of 1 predicted (F1 2/3) and TP 2 of 4 predicted (F1 2/3)
    assert f1_max_threshold([4, 3, 2, 1], [1, 0, 0, 1]) == 4


def test_known_answers():
    assert image_auroc([0, 1], [0, 1]) == 1.0
    assert image_auroc([1, 0], [0, 1]) == 0.0
    assert image_auroc([5, 5, 5], [0, 1, 0]) == 0.5
    assert image_ap([5, 5, 5], [0, 1, 0]) == pytest.approx(1 / 3)
    assert image_f1_max([5, 5, 5], [0, 1, 0]) == 0.5
    assert image_auroc([-0.0, 0.0], [0, 1]) == 0.5  # they are one score


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("label_dtype", [bool, np.int64, np.uint8, np.float32])
def test_any_number_type(dtype, label_dtype):
    scores = np.array([3, 1, 2, 2, 0], dtype=dtype)
    labels = np.array([1, 0, 1, 0, 0], dtype=label_dtype)
    assert image_auroc(scores, labels) == pytest.approx(5.5 / 6)


@pytest.mark.parametrize("metric", [*METRICS, roc_curve, f1_max_threshold])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [0, 0], "no anomalous image"),
        ([0.1, 0.2], [1, 1], "no normal image"),
        ([], [], "no anomalous image"),
        ([0.1, 0.2, 0.3], [0, 1], "shape"),
        ([[0.1], [0.2]], [[0], [1]], "shape"),
        ([0.1, np.nan], [0, 1], "score 1 is nan"),
        ([np.inf, 0.1], [0, 1], "score 0 is inf"),
        ([0.1, 0.2], [0, 2], "0 and 1"),
        ([0.1, 0.2], [-1, 1], "0 and 1"),
        ([0.1, 0.2], [0, None], "0 and 1"),
        (["a", "b"], [0, 1], "type"),
    ],
)
def test_undefined_is_a_named_error_with_a_hint(metric, scores, labels, message):
    with pytest.raises(MetricError, match=message) as caught:
        metric(scores, labels)
    assert caught.value.hint


def overlapping_scores(B):
    rng = np.random.default_rng(7)
    labels = np.arange(B) % 3 == 0
    return np.round(rng.normal(size=B) + 1.2 * labels, 2), labels


@pytest.mark.parametrize("name", NAMES)
def test_interval_equals_a_plain_stratified_bootstrap(name):
    scores, labels = overlapping_scores(120)
    low, high = bootstrap_interval(name, scores, labels, rounds=1500)
    metric = METRICS[NAMES.index(name)]
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(1500):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(labels == kind), (labels == kind).sum()) for kind in (0, 1)]
        )
        plain.append(metric(scores[drawn], labels[drawn]))
    assert low < metric(scores, labels) < high
    np.testing.assert_allclose([low, high], np.quantile(plain, [0.025, 0.975]), atol=0.015)


def test_interval_repeats_narrows_and_ignores_the_size_of_a_batch(monkeypatch):
    scores, labels = overlapping_scores(90)
    interval = bootstrap_interval("image_auroc", scores, labels, rounds=400, seed=3)
    assert interval == bootstrap_interval("image_auroc", scores, labels, rounds=400, seed=3)
    assert interval != bootstrap_interval("image_auroc", scores, labels, rounds=400, seed=4)
    half = bootstrap_interval("image_auroc", scores, labels, rounds=400, seed=3, level=0.5)
    assert interval[0] < half[0] < half[1] < interval[1]
    many = overlapping_scores(3000)
    narrow = bootstrap_interval("image_auroc", *many, rounds=400)
    assert narrow[1] - narrow[0] < interval[1] - interval[0]
    monkeypatch.setattr("amiss.metrics.image._BOOTSTRAP_CELLS", 1)  # one round at a time
    np.testing.assert_allclose(
        bootstrap_interval("image_auroc", scores, labels, rounds=400), interval, atol=0.03
    )


def test_interval_of_separated_classes_is_one():
    assert bootstrap_interval("image_auroc", [0, 1, 2, 3], [0, 0, 1, 1]) == (1.0, 1.0)
    assert bootstrap_interval("image_ap", [0, 1], [0, 1]) == (1.0, 1.0)


def test_three_intervals_of_a_thousand_images_take_under_a_second():
    scores, labels = overlapping_scores(1000)
    start = time.process_time()
    for name in NAMES:
        bootstrap_interval(name, scores, labels)
    assert time.process_time() - start < 1.0


def test_interval_refuses_what_is_out_of_range():
    scores, labels = overlapping_scores(9)
    with pytest.raises(MetricError, match="metric is 'aupro'"):
        bootstrap_interval("aupro", scores, labels)
    with pytest.raises(MetricError, match="level"):
        bootstrap_interval("image_ap", scores, labels, level=1.0)
    with pytest.raises(MetricError, match="rounds"):
        bootstrap_interval("image_ap", scores, labels, rounds=0)
    with pytest.raises(MetricError, match="no anomalous"):
        bootstrap_interval("image_ap", scores, np.zeros(9))


def test_min_max_shows_scores_between_0_and_1_in_their_order() -> None:
    scores = np.array([3.0, -1.0, 7.0, 3.0])
    scaled = min_max(scores)
    assert scaled.min() == 0 and scaled.max() == 1
    order, same = (np.sign(np.subtract.outer(x, x)) for x in (scores, scaled))
    assert np.array_equal(order, same)
    assert scaled.tolist() == [0.5, 0, 1, 0.5]
    assert min_max([2.0, 2.0]).tolist() == [0, 0]  # the same everywhere: no division by nothing
    for bad in ([], [np.nan, 1.0], [[1.0, 2.0]]):
        with pytest.raises(MetricError):
            min_max(bad)
