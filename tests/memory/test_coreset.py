"""Greedy k-centre: the lazy search makes the picks of the textbook loop."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch

from amiss.errors import OptionError
from amiss.memory import greedy_coreset, k_center_greedy, random_coreset
from amiss.memory.coreset import covering_radius, random_projection

Rows = npt.NDArray[np.float32]


def cloud(n: int, dim: int = 12, seed: int = 0) -> Rows:
    """Clustered rows with a long tail, as embeddings are."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 3, (7, dim))[rng.integers(0, 7, n)]
    return (middles + rng.standard_t(4, (n, dim))).astype(np.float32)


def textbook(
    rows: Rows, size: int, start: int = 0, allowed: npt.NDArray[np.bool_] | None = None
) -> tuple[list[int], list[float], float]:
    """(picks, insertion radii, covering radius) of the plain loop in float64."""
    x = rows.astype(np.float64)
    candidates = np.ones(len(x), dtype=bool) if allowed is None else allowed
    picks, radii = [start], [np.inf]
    nearest = np.linalg.norm(x - x[start], axis=1)
    while len(picks) < size:
        ranked = np.where(candidates, nearest, -1.0)
        ranked[picks] = -1.0
        best = int(ranked.argmax())
        picks.append(best)
        radii.append(float(ranked[best]))
        nearest = np.minimum(nearest, np.linalg.norm(x - x[best], axis=1))
    return picks, radii, float(nearest[candidates].max())


@pytest.mark.parametrize(
    ("n", "size"),
    [
        (1, 1),
        (50, 50),
        (300, 40),
        (2049, 300),  # more than a block of a refresh
        (9000, 60),  # more than the candidates of one round
        (9000, 700),  # more picks than one block of centres
        (20_000, 250),
    ],
)
def test_the_picks_are_those_of_the_textbook_loop(n: int, size: int) -> None:
    rows = cloud(n)
    expected, _, radius = textbook(rows, size)
    found = greedy_coreset(torch.from_numpy(rows), size)
    assert found.indices.tolist() == expected
    assert found.indices.dtype == np.int64
    assert found.radius == pytest.approx(radius, rel=1e-4, abs=1e-4)


def test_more_picks_than_the_pool_holds() -> None:
    # So many picks come down to distances that float32 cannot tell apart: each pick must be
    # farthest up to rounding.
    rows = cloud(3000, dim=6)
    found = greedy_coreset(torch.from_numpy(rows), 2500)
    assert len(set(found.indices.tolist())) == 2500
    x = rows.astype(np.float64)
    nearest = np.linalg.norm(x - x[found.indices[0]], axis=1)
    for pick in found.indices[1:]:
        assert nearest[pick] >= nearest.max() - 1e-3
        nearest = np.minimum(nearest, np.linalg.norm(x - x[pick], axis=1))
    assert found.radius == pytest.approx(nearest.max(), rel=1e-3)


def test_far_from_the_origin_the_picks_stay_the_same() -> None:
    rows = cloud(1500) + np.float32(300)
    assert k_center_greedy(rows, 60).tolist() == textbook(rows, 60)[0]


@pytest.mark.parametrize("start", [0, 17, 399])
def test_the_start_is_the_first_pick(start: int) -> None:
    rows = cloud(400)
    picks = k_center_greedy(rows, 30, start=start)
    assert picks[0] == start
    assert picks.tolist() == textbook(rows, 30, start)[0]


def test_a_shorter_selection_is_the_beginning_of_a_longer_one() -> None:
    rows = cloud(10_000)
    long = k_center_greedy(rows, 200)
    for size in (1, 2, 77, 199):
        assert np.array_equal(k_center_greedy(rows, size), long[:size])


def test_insertion_radii_fall_and_bound_the_covering_radius() -> None:
    rows = cloud(2500)
    found = greedy_coreset(torch.from_numpy(rows), 120)
    x = rows.astype(np.float64)
    picked = x[found.indices]
    inserted = [np.linalg.norm(picked[i] - picked[:i], axis=1).min() for i in range(1, len(picked))]
    assert all(a >= b - 1e-5 for a, b in pairwise(inserted))
    assert found.radius <= inserted[-1] + 1e-5
    assert min(inserted) >= found.radius - 1e-5  # so is every distance between two picks


def test_the_radius_is_the_distance_of_the_farthest_row() -> None:
    rows = cloud(9500)
    found = greedy_coreset(torch.from_numpy(rows), 90)
    x = rows.astype(np.float64)
    nearest = np.min([np.linalg.norm(x - x[i], axis=1) for i in found.indices], axis=0)
    assert found.radius == pytest.approx(nearest.max(), rel=1e-4)
    assert covering_radius(torch.from_numpy(rows), found.indices) == pytest.approx(found.radius)


def test_a_query_is_as_near_to_the_coreset_as_its_radius_says() -> None:
    rows = cloud(1200)
    found = greedy_coreset(torch.from_numpy(rows), 100)
    queries = cloud(80, seed=5).astype(np.float64)
    x = rows.astype(np.float64)
    for q in queries:
        to_all = np.linalg.norm(x - q, axis=1).min()
        to_some = np.linalg.norm(x[found.indices] - q, axis=1).min()
        assert to_all <= to_some <= to_all + found.radius + 1e-5


# --- ties and duplicates ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 2100, 9000])
def test_equal_rows_give_distinct_picks(n: int) -> None:
    rows = np.full((n, 4), 2.5, np.float32)
    size = min(n, 2100)
    found = greedy_coreset(torch.from_numpy(rows), size)
    assert len(set(found.indices.tolist())) == size
    assert found.radius == pytest.approx(0, abs=1e-5)


def test_duplicates_are_picked_only_when_nothing_else_is_left() -> None:
    rows = np.repeat(cloud(40), 5, axis=0)
    picks = k_center_greedy(rows, 60)
    assert len(set(picks.tolist())) == 60
    assert len(set((picks[:40] // 5).tolist())) == 40


def test_a_grid_full_of_ties_is_covered_as_well_as_greedy_must() -> None:
    y, x = np.mgrid[:40, :40]
    rows = np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float32)
    found = greedy_coreset(torch.from_numpy(rows), 100)
    picked = rows[found.indices].astype(np.float64)
    inserted = [np.linalg.norm(picked[i] - picked[:i], axis=1).min() for i in range(1, 100)]
    assert all(a >= b - 1e-6 for a, b in pairwise(inserted))
    assert found.radius <= inserted[-1] + 1e-6


def test_all_rows_have_radius_zero() -> None:
    found = greedy_coreset(torch.from_numpy(cloud(300)), 300)
    assert sorted(found.indices.tolist()) == list(range(300))
    assert found.radius == 0


# --- some rows only --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [400, 9500])
def test_rows_that_are_not_allowed_are_neither_picked_nor_covered(n: int) -> None:
    rows = cloud(n)
    allowed = np.random.default_rng(1).random(n) < 0.4
    rows[~allowed] *= 50
    start = int(np.flatnonzero(allowed)[3])
    expected, _, radius = textbook(rows, 50, start, allowed)
    found = greedy_coreset(torch.from_numpy(rows), 50, start=start, allowed=allowed)
    assert found.indices.tolist() == expected
    assert found.radius == pytest.approx(radius, rel=1e-3)


def test_every_allowed_row_may_be_picked() -> None:
    allowed = np.arange(100) % 3 == 0
    found = greedy_coreset(torch.from_numpy(cloud(100)), int(allowed.sum()), allowed=allowed)
    assert sorted(found.indices.tolist()) == np.flatnonzero(allowed).tolist()
    assert found.radius == 0


# --- going on after an interruption ----------------------------------------------------------


@pytest.mark.parametrize("done", [1, 40, 149, 150])
def test_going_on_equals_never_having_stopped(done: int) -> None:
    rows = torch.from_numpy(cloud(9000))
    whole = greedy_coreset(rows, 150)
    again = greedy_coreset(rows, 150, picks=whole.indices[:done].tolist())
    assert np.array_equal(again.indices, whole.indices)
    assert again.radius == pytest.approx(whole.radius, rel=1e-5)


def test_the_picks_are_in_the_callers_list_when_interrupted() -> None:
    rows = torch.from_numpy(cloud(9000))
    picks: list[int] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        greedy_coreset(rows, 2000, picks=picks, progress=interrupt)
    assert 0 < len(picks) < 2000
    whole = greedy_coreset(rows, 2000).indices
    assert picks == whole[: len(picks)].tolist()
    assert np.array_equal(greedy_coreset(rows, 2000, picks=picks).indices, whole)


def test_progress_ends_at_the_size() -> None:
    said: list[tuple[str, int, int]] = []
    greedy_coreset(torch.from_numpy(cloud(500)), 80, progress=lambda *facts: said.append(facts))
    assert said[-1] == ("coreset", 80, 80)
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


# --- kinds of input --------------------------------------------------------------------------


def test_arrays_and_tensors_give_their_own_kind() -> None:
    rows = cloud(200)
    from_array = k_center_greedy(rows, 20)
    from_tensor = k_center_greedy(torch.from_numpy(rows), 20)
    assert isinstance(from_array, np.ndarray) and from_array.dtype == np.int64
    assert isinstance(from_tensor, torch.Tensor) and from_tensor.dtype == torch.int64
    assert from_array.tolist() == from_tensor.tolist()


def test_a_read_only_and_a_strided_array_are_taken_and_left_alone() -> None:
    rows = cloud(200)
    expected = k_center_greedy(rows, 20)
    before = rows.copy()
    rows.flags.writeable = False
    assert np.array_equal(k_center_greedy(rows, 20), expected)
    assert np.array_equal(rows, before)
    wide = np.repeat(before, 2, axis=1)
    assert np.array_equal(k_center_greedy(wide[:, ::2], 20), expected)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 3), np.float64),
        np.zeros((4, 3), np.int64),
        np.zeros(4, np.float32),
        np.zeros((2, 2, 2), np.float32),
        np.full((4, 3), np.nan, np.float32),
        np.array([[0.0, np.inf], [1, 1]], np.float32),
    ],
)
def test_embeddings_of_another_kind_are_refused(bad: npt.NDArray[np.generic]) -> None:
    with pytest.raises(OptionError):
        k_center_greedy(bad, 1)  # type: ignore[call-overload]
    with pytest.raises(OptionError):
        k_center_greedy(torch.from_numpy(bad), 1)


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_size_out_of_range_names_the_range(size: int) -> None:
    with pytest.raises(OptionError, match="1 to 10"):
        k_center_greedy(cloud(10), size)


@pytest.mark.parametrize("start", [-1, 10])
def test_a_start_out_of_range_is_refused(start: int) -> None:
    with pytest.raises(OptionError, match=f"Start {start}"):
        k_center_greedy(cloud(10), 3, start=start)


def test_a_start_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(OptionError, match="Start 0"):
        greedy_coreset(torch.from_numpy(cloud(10)), 3, allowed=np.arange(10) > 4)
    with pytest.raises(OptionError, match="from 5"):
        greedy_coreset(torch.from_numpy(cloud(10)), 6, start=5, allowed=np.arange(10) > 4)


def test_no_rows_at_all_is_a_named_error() -> None:
    with pytest.raises(OptionError):
        k_center_greedy(np.empty((0, 3), np.float32), 1)


# --- the baseline and the projection ---------------------------------------------------------


def test_a_random_coreset_is_drawn_by_its_seed_among_the_allowed() -> None:
    rows = torch.from_numpy(cloud(500))
    allowed = np.arange(500) % 2 == 1
    one = random_coreset(rows, 60, seed=4, allowed=allowed)
    assert np.array_equal(one.indices, random_coreset(rows, 60, seed=4, allowed=allowed).indices)
    assert not np.array_equal(one.indices, random_coreset(rows, 60, seed=5).indices)
    assert len(set(one.indices.tolist())) == 60 and (one.indices % 2 == 1).all()
    x = rows.double().numpy()
    nearest = np.min([np.linalg.norm(x - x[i], axis=1) for i in one.indices], axis=0)
    assert one.radius == pytest.approx(nearest[allowed].max(), rel=1e-4)


def test_greedy_covers_better_than_random() -> None:
    rows = torch.from_numpy(cloud(3000))
    assert greedy_coreset(rows, 100).radius < random_coreset(rows, 100, seed=0).radius


def test_a_random_projection_keeps_distances_on_average() -> None:
    rows = torch.from_numpy(cloud(400, dim=200))
    projected = random_projection(rows, 128, seed=3)
    assert projected.shape == (400, 128)
    assert torch.equal(projected, random_projection(rows, 128, seed=3))
    ratio = torch.pdist(projected).square() / torch.pdist(rows).square()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
    assert float(ratio.std()) < 0.2


def test_a_random_projection_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    random_projection(torch.zeros(4, 5), 3, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
