"""Which patches a bank keeps: how many, which ones, and among which."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amiss.errors import DataError
from amiss.memory.coreset import k_center_greedy
from amiss.memory.selection import Selection, sample_rows


def selection(
    how: str = "greedy",
    *,
    ratio: float = 0.1,
    size: int | None = None,
    projection_dim: int = 0,
    seed: int = 0,
) -> Selection:
    return Selection(how, ratio, size, projection_dim, seed)


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(200, 12, generator=torch.Generator().manual_seed(0))


def everywhere(rows: Tensor) -> np.ndarray:
    return np.ones(len(rows), dtype=np.bool_)


@pytest.mark.parametrize(
    ("ratio", "size", "rows", "kept"),
    [
        (0.1, None, 109, 10),  # rounded down
        (0.001, None, 109, 1),  # at least one
        (1.0, None, 109, 109),
        (0.1, 30, 109, 30),  # a size wins over the ratio
        (0.1, 300, 109, 109),
    ],
)
def test_so_many_rows_are_kept(ratio: float, size: int | None, rows: int, kept: int) -> None:
    assert selection(ratio=ratio, size=size).count(rows) == kept


def test_greedy_starts_at_a_row_drawn_with_the_seed(rows: Tensor) -> None:
    for seed in (0, 1):
        start = int(np.random.default_rng(seed).choice(200))
        chosen = selection(seed=seed).choose(rows, everywhere(rows))
        expected = k_center_greedy(rows, 20, start=start)
        assert chosen.indices.tolist() == expected.tolist()
        nearest = torch.cdist(rows, rows[expected]).amin(1)
        assert chosen.radius == pytest.approx(float(nearest.max()), rel=1e-3)


@pytest.mark.parametrize(("how", "dim"), [("greedy", 0), ("random", 0), ("greedy", 4)])
def test_only_rows_inside_are_kept_counted_and_covered(rows: Tensor, how: str, dim: int) -> None:
    inside = everywhere(rows)
    inside[50:] = False
    rows[50:] += 100  # far away: whoever looked there would pick these
    chosen = selection(how, projection_dim=dim).choose(rows, inside)
    assert chosen.indices.shape == (5,) and len(set(chosen.indices.tolist())) == 5
    assert chosen.indices.max() < 50
    nearest = torch.cdist(rows[:50], rows[torch.from_numpy(chosen.indices)]).amin(1)
    assert chosen.radius == pytest.approx(float(nearest.max()), rel=1e-3)


@pytest.mark.parametrize("how", ["greedy", "random"])
def test_where_all_are_kept_nothing_is_chosen(rows: Tensor, how: str) -> None:
    inside = everywhere(rows)
    inside[::2] = False
    chosen = selection(how, ratio=1.0).choose(rows, inside)
    assert chosen.indices.tolist() == list(range(1, 200, 2)) and chosen.radius == 0.0


@pytest.mark.parametrize(("how", "dim"), [("random", 0), ("greedy", 3)])
def test_the_seed_decides_what_is_drawn(rows: Tensor, how: str, dim: int) -> None:
    one, same, other = (
        selection(how, projection_dim=dim, seed=seed)
        .choose(rows, everywhere(rows))
        .indices.tolist()
        for seed in (5, 5, 6)
    )
    assert one == same != other


def test_a_projection_chooses_otherwise_and_covers_worse(rows: Tensor) -> None:
    plain = selection().choose(rows, everywhere(rows))
    projected = selection(projection_dim=1).choose(rows, everywhere(rows))
    assert plain.indices.tolist() != projected.indices.tolist()
    assert projected.radius > plain.radius  # measured among the rows themselves


def test_interrupted_picks_are_gone_on_with(rows: Tensor) -> None:
    whole = selection().choose(rows, everywhere(rows)).indices.tolist()
    picks = whole[:7]
    steps: list[tuple[str, int, int]] = []
    again = selection().choose(
        rows, everywhere(rows), picks=picks, progress=lambda *step: steps.append(step)
    )
    assert again.indices.tolist() == whole == picks
    assert steps[-1] == ("coreset", 20, 20) and steps[0][1] > 7


def test_a_region_without_patches_is_a_named_error(rows: Tensor) -> None:
    with pytest.raises(DataError, match="no patch to learn from"):
        selection().choose(rows, np.zeros(200, dtype=np.bool_))


def test_a_sample_lies_inside(rows: Tensor) -> None:
    inside = np.zeros(200, dtype=np.bool_)
    inside[[3, 40, 77]] = True
    found = sample_rows(rows, inside, 30, seed=2)
    assert found.shape == (30, 12)
    match = (found[:, None] == rows[None]).all(2)
    assert set(match.nonzero()[:, 1].tolist()) == {3, 40, 77}
    assert torch.equal(found, sample_rows(rows, inside, 30, seed=2))
