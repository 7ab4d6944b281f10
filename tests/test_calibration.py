"""Thresholds and what they promise, against definitions, SciPy and simulation."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from amiss.calibration import (
    Calibration,
    calibrate,
    order,
    rate_interval,
    with_false_alarm_rate,
    with_labels,
    with_threshold,
)
from amiss.errors import CalibrationError, OptionError
from amiss.types import Float64, Int64

rates = st.floats(0.001, 0.999)
tied = st.lists(st.integers(0, 6), min_size=1, max_size=40)  # few values, hence many ties


def made(scores: object, alpha: float = 0.1) -> Calibration:
    return calibrate(
        np.asarray(scores, dtype=np.float64), None, None, max_false_alarm=alpha, how="made"
    )


def with_maps(n: int = 50, alpha: float = 0.1) -> Calibration:
    rng = np.random.default_rng(0)
    maxima = rng.normal(5, 1, n)
    return calibrate(rng.normal(0, 1, n), maxima, maxima - 3, max_false_alarm=alpha, how="made")


# --- p-values and the threshold for a rate ---------------------------------------------------


@given(tied, st.lists(st.integers(-1, 7), min_size=1, max_size=10))
def test_p_values_are_the_counts_of_the_definition(held_out: list[int], new: list[int]) -> None:
    found = made(held_out).p_values(np.array(new, dtype=np.float64))
    n = len(held_out)
    assert found.tolist() == [(1 + sum(s_i >= s for s_i in held_out)) / (n + 1) for s in new]


@given(tied, rates, st.floats(-1, 7))
def test_above_the_threshold_is_the_same_as_a_small_p_value(
    held_out: list[int], alpha: float, score: float
) -> None:
    calibration = made(held_out, alpha)
    is_anomalous = score > calibration.threshold
    assert is_anomalous == (calibration.p_values([score])[0] <= calibration.alpha + 1e-12)


@given(st.integers(1, 2000), rates)
def test_the_order_is_the_floor_of_the_definition(n: int, alpha: float) -> None:
    k = order(n, alpha)
    assert k <= alpha * (n + 1) + 1e-8
    assert k + 1 > alpha * (n + 1) - 1e-8 or k == n


def test_the_order_is_not_spoiled_by_rounding() -> None:
    assert order(99, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
    assert order(99, 0.01) == 1
    assert order(98, 0.01) == 0


@pytest.mark.parametrize(("alpha", "threshold"), [(0.1, 10), (0.2, 9), (0.5, 6), (0.95, 1)])
def test_the_threshold_is_the_kth_largest_score(alpha: float, threshold: float) -> None:
    calibration = made([*range(10, 0, -1)], alpha)
    assert calibration.threshold == threshold
    assert calibration.alpha == calibration.max_false_alarm == alpha
    assert calibration.policy == "max_false_alarm" and not calibration.notes


def test_too_few_normals_give_the_least_rate_and_say_so() -> None:
    calibration = made(range(20), 0.01)
    assert calibration.threshold == 19
    assert calibration.alpha == pytest.approx(1 / 21)
    assert calibration.max_false_alarm == 0.01
    (note,) = calibration.notes
    assert (
        "20 judged normal images" in note and "0.01" in note and "0.0476" in note and "99" in note
    )
    assert not made(range(99), 0.01).notes  # as many as the note asked for


@given(tied, rates, rates)
def test_a_smaller_rate_never_lowers_the_threshold(
    held_out: list[int], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert made(held_out, low).threshold >= made(held_out, high).threshold


@given(tied, st.lists(st.floats(-5, 10), min_size=2, max_size=2))
def test_a_higher_score_never_has_a_higher_p_value(held_out: list[int], s: list[float]) -> None:
    low, high = made(held_out).p_values(sorted(s))
    assert 1 / (len(held_out) + 1) <= high <= low <= 1


def test_the_order_of_the_held_out_scores_is_of_no_account() -> None:
    scores = np.random.default_rng(1).normal(size=60)
    one, other = made(np.sort(scores)), made(scores)
    assert one.threshold == other.threshold
    assert np.array_equal(one.scores, other.scores)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_what_is_no_rate_is_refused(alpha: float) -> None:
    with pytest.raises(OptionError):
        made([1, 2, 3], alpha)
    with pytest.raises(OptionError):
        with_false_alarm_rate(made([1, 2, 3]), alpha)


def test_no_scores_and_wild_scores_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no held-out"):
        made([])
    for wild in (np.nan, np.inf):
        with pytest.raises(CalibrationError, match="not finite"):
            made([1.0, wild])


# --- pixels and display ----------------------------------------------------------------------


def test_the_pixel_threshold_is_the_same_order_statistic_of_the_maxima() -> None:
    calibration = with_maps(50, 0.1)
    assert calibration.map_maxima is not None
    assert calibration.pixel_threshold == np.sort(calibration.map_maxima)[-5]
    above = (calibration.map_maxima > calibration.pixel_threshold).sum()
    assert above <= 0.1 * 51


def test_the_pixel_threshold_lies_in_the_middle_of_the_display_scale() -> None:
    calibration = with_maps()
    assert calibration.display is not None and calibration.pixel_threshold is not None
    assert calibration.pixel_threshold == pytest.approx(np.mean(calibration.display))
    assert calibration.map_maxima is not None
    assert calibration.display[0] == pytest.approx(np.median(calibration.map_maxima - 3))


def test_another_threshold_leaves_the_display_scale() -> None:
    calibration = with_maps()
    for changed in (with_false_alarm_rate(calibration, 0.3), with_threshold(calibration, 1.0)):
        assert changed.display == calibration.display
        assert changed.pixel_threshold != calibration.pixel_threshold


def test_without_maps_there_is_no_pixel_threshold() -> None:
    calibration = made(range(50))
    assert calibration.pixel_threshold is None and calibration.display is None


# --- what a threshold will realise -----------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1, 1), (20, 1), (99, 5), (1000, 10), (300, 300)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_long_run_interval_is_that_of_the_beta_distribution(
    n: int, k: int, level: float
) -> None:
    expected = stats.beta(k, n + 1 - k).interval(level)
    assert rate_interval(n, k, level=level) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "k", "m"), [(20, 1, 10), (99, 5, 200), (500, 5, 1), (50, 50, 30)])
def test_the_interval_among_m_is_that_of_the_beta_binomial(n: int, k: int, m: int) -> None:
    counts = stats.betabinom(m, k, n + 1 - k)
    low, high = rate_interval(n, k, m)
    assert low * m == pytest.approx(counts.ppf(0.025), abs=1)
    assert high * m == pytest.approx(counts.ppf(0.975), abs=1)
    inside = counts.cdf(round(high * m)) - counts.cdf(round(low * m) - 1)
    assert inside >= 0.95 - 1e-9


@pytest.mark.parametrize("m", [1, 7, 400])
def test_the_interval_among_m_is_no_wider_than_it_must_be(m: int) -> None:
    counts = stats.betabinom(m, 5, 95)
    low, high = (round(end * m) for end in rate_interval(99, 5, m))
    assert low == 0 or counts.cdf(low) > 0.025
    assert high == m or counts.cdf(high - 1) < 0.975


@given(st.integers(1, 300), st.integers(1, 300), st.one_of(st.none(), st.integers(1, 100)))
@settings(deadline=None)
def test_intervals_lie_between_zero_and_one(n: int, k: int, m: int | None) -> None:
    low, high = rate_interval(n, min(k, n), m)
    assert 0 <= low <= high <= 1


def test_expected_rates_count_ties_as_they_fall() -> None:
    calibration = made([1.0, 2, 2, 2, 3], 0.5)  # the third largest is 2, and one score lies above
    assert calibration.threshold == 2
    assert calibration.expected_rates() == pytest.approx(stats.beta(2, 4).interval(0.95))


def test_a_threshold_set_by_hand_promises_no_rate() -> None:
    assert with_threshold(made(np.arange(40.0)), 20.5).expected_rates() is None


def test_below_all_scores_the_rate_is_only_known_to_be_high() -> None:
    low, high = rate_interval(40, 41)
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 40))


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_realised_rate_lies_where_it_is_said_to(alpha: float) -> None:
    rng = np.random.default_rng(7)
    covered, mean = 0, []
    for _ in range(600):
        scores = rng.gamma(2.0, size=160)
        calibration = made(scores[:80], alpha)
        realised = float((scores[80:] > calibration.threshold).mean())
        low, high = calibration.expected_rates(80)
        covered += low <= realised <= high
        mean.append(realised)
    assert covered >= 0.93 * 600
    assert np.mean(mean) <= alpha * 1.1


# --- thresholds by hand and by labels --------------------------------------------------------


def test_a_threshold_by_hand_says_what_it_costs() -> None:
    changed = with_threshold(made(np.arange(10.0)), 6.5)
    assert changed.threshold == 6.5 and changed.policy == "manual"
    assert changed.alpha == pytest.approx(4 / 11)  # 7, 8, 9 lie above
    for wild in (np.nan, np.inf):
        with pytest.raises(OptionError):
            with_threshold(changed, wild)


@given(
    tied,
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=20).filter(
        lambda rows: any(is_bad for _, is_bad in rows)
    ),
    st.sampled_from(["f1", "recall", "cost"]),
)
@settings(deadline=None)
def test_policies_are_the_best_of_all_thresholds(
    held_out: list[int], rows: list[tuple[int, bool]], policy: str
) -> None:
    scores = np.array([s for s, _ in rows], dtype=np.float64)
    labels = np.array([int(is_bad) for _, is_bad in rows], dtype=np.int64)
    cost = (1.0, 3.0)
    changed = with_labels(made(held_out), scores, labels, policy=policy, cost=cost)
    normal = np.concatenate([np.array(held_out, dtype=np.float64), scores[labels == 0]])
    bad = scores[labels == 1]

    def loss(threshold: float) -> float:
        false_alarms, misses = (normal > threshold).sum(), (bad <= threshold).sum()
        if policy == "recall":
            return float(false_alarms) if misses == 0 else np.inf
        if policy == "cost":
            return float(cost[0] * false_alarms + cost[1] * misses)
        caught = len(bad) - misses
        return float(-2 * caught / (2 * caught + false_alarms + misses))

    everywhere = [loss(t) for t in np.arange(-1.25, 10.5, 0.25)]
    assert loss(changed.threshold) == pytest.approx(min(everywhere))


def test_recall_takes_the_highest_threshold_that_catches_all() -> None:
    scores, labels = np.array([3.0, 9, 7, 8]), np.array([0, 1, 1, 1])
    changed = with_labels(made(range(6)), scores, labels, policy="recall")
    assert changed.threshold == 6 and changed.policy == "recall"  # midway between 5 and 7
    assert "3 labelled anomalous" in changed.notes[0]


def test_dearer_misses_lower_the_threshold() -> None:
    rng = np.random.default_rng(3)
    scores = np.concatenate([rng.normal(0, 1, 80), rng.normal(1.5, 1, 80)])
    labels = np.repeat([0, 1], 80)
    found = [
        with_labels(made(range(-5, 3)), scores, labels, policy="cost", cost=(1, miss)).threshold
        for miss in (0.2, 1, 5, 50)
    ]
    assert all(a >= b for a, b in pairwise(found)) and found[0] > found[-1]


def test_labels_that_cannot_set_a_threshold_are_refused() -> None:
    one: tuple[Float64, Int64] = (np.array([1.0]), np.array([0]))
    with pytest.raises(CalibrationError, match="needs labelled anomalous"):
        with_labels(made([1, 2]), *one, policy="f1")
    bad: tuple[Float64, Int64] = (np.array([1.0]), np.array([1]))
    with pytest.raises(OptionError, match="not known"):
        with_labels(made([1, 2]), *bad, policy="best")
    for cost in ((0, 1), (1, -1), (np.nan, 1), (np.inf, 1)):
        with pytest.raises(OptionError):
            with_labels(made([1, 2]), *bad, policy="cost", cost=cost)


# --- storing ---------------------------------------------------------------------------------


def test_a_calibration_comes_back_from_json() -> None:
    for calibration in (with_maps(), made(range(5), 0.001), with_threshold(with_maps(), 0.3)):
        text = json.dumps(calibration.as_dict(), allow_nan=False)
        again = Calibration.from_dict(json.loads(text), calibration.scores, calibration.map_maxima)
        for field in dataclasses.fields(calibration):
            one, other = getattr(calibration, field.name), getattr(again, field.name)
            assert one is other or one == other, field.name
