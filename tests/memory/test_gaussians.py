"""Moments in one pass, Mahalanobis' distance, and leaving images out without learning again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis
from torch import Tensor

from amiss.memory import gaussians
from amiss.memory.gaussians import (
    Moments,
    leave_group_out,
    leave_one_out,
    left_out_cholesky,
    mahalanobis,
    whitening,
)
from amiss.nn.mahalanobis import GaussianGrid

EPSILON = 0.01


def vectors(n: int, cells: int, dim: int, seed: int = 0) -> Tensor:
    """(n, P, D) float64, correlated, of another scale and place at every cell."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(cells, dim, dim))
    x = np.einsum("pde,npe->npd", mix, rng.normal(size=(n, cells, dim)))
    return torch.from_numpy(x + 5 * rng.normal(size=(cells, dim)))


def moments_of(x: Tensor, inside: Tensor | None = None) -> Moments:
    found = Moments(x.shape[1], x.shape[2])
    found.add(x, inside)
    return found


def distances(moments: Moments, x: Tensor) -> Tensor:
    """Under all that the moments have seen, in float64."""
    factor = whitening(moments.covariance(slice(0, moments.cells), EPSILON))
    return mahalanobis(x, moments.mean, factor)


# --- moments and distances -------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 40])  # fewer images than dimensions, and more
def test_the_distance_is_scipys(n: int) -> None:
    x, query = vectors(n, 3, 9), vectors(2, 3, 9, seed=1)
    found = distances(moments_of(x), query)
    for cell in range(3):
        covariance = np.cov(x[:, cell].numpy(), rowvar=False) + EPSILON * np.eye(9)
        mean, inverse = x[:, cell].mean(0).numpy(), np.linalg.inv(covariance)
        for row in range(2):
            expected = scipy_mahalanobis(query[row, cell].numpy(), mean, inverse)
            assert float(found[row, cell]) == pytest.approx(expected, rel=1e-9)


def test_without_epsilon_the_mean_square_over_the_images_is_known() -> None:
    # The trace of the hat matrix: the mean of M^2 over N images is C (N - 1) / N, 19.5 here.
    N, C = 40, 20
    x = vectors(N, 5, C)
    moments = moments_of(x)
    factor = whitening(moments.covariance(slice(0, 5), 0.0))
    square = mahalanobis(x, moments.mean, factor).square().mean(dim=0)
    torch.testing.assert_close(square, torch.full((5,), 19.5, dtype=torch.float64))


def test_the_covariance_is_symmetric_and_bounded_below() -> None:
    moments = moments_of(vectors(7, 4, 12))
    covariance = moments.covariance(slice(0, 4), EPSILON)
    torch.testing.assert_close(covariance, covariance.mT, rtol=1e-12, atol=1e-12)
    assert float(torch.linalg.eigvalsh(covariance).min()) >= EPSILON * (1 - 1e-9)


def test_any_order_in_any_pieces_gives_the_moments_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = vectors(23, 5, 6) + 1e4  # a mean that is large beside the spread must not cancel
    whole = moments_of(x)
    monkeypatch.setattr(gaussians, "CELLS", 2)
    streamed = Moments(5, 6)
    for piece in x.flip(0).split([1, 4, 11, 7]):
        streamed.add(piece)
    left, right = moments_of(x[:9]), moments_of(x[9:])
    left.merge(right)
    empty = Moments(5, 6)
    empty.merge(left)
    for other in (streamed, empty):
        for name in ("count", "mean", "scatter"):
            torch.testing.assert_close(
                getattr(other, name), getattr(whole, name), rtol=1e-8, atol=1e-8
            )
    expected = np.cov(x[:, 2].numpy(), rowvar=False)
    np.testing.assert_allclose(whole.covariance(slice(2, 3), 0.0)[0].numpy(), expected, rtol=1e-8)


def test_cells_count_only_where_they_are_looked_at() -> None:
    x = vectors(12, 3, 4)
    inside = torch.rand(12, 3, generator=torch.Generator().manual_seed(1)) > 0.4
    inside[:, 2] = False
    streamed = Moments(3, 4)
    for part, mask in zip(x.split(5), inside.split(5), strict=True):
        streamed.add(part, mask)
    for cell in range(2):
        alone = moments_of(x[inside[:, cell]][:, cell : cell + 1])
        torch.testing.assert_close(streamed.mean[cell], alone.mean[0])
        torch.testing.assert_close(streamed.scatter[cell], alone.scatter[0])
    assert streamed.count[2] == 0
    grid = GaussianGrid.from_moments(streamed, EPSILON)
    assert not grid(x.float())[:, 2].any() and (grid(x.float())[:, :2] > 0).all()


# --- leaving out -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_leaving_one_out_is_learning_without_it(n: int) -> None:
    x = vectors(n, 3, 8)
    moments = moments_of(x)
    found = leave_one_out(moments, x, left_out_cholesky(moments, EPSILON, 1))
    for i in range(n):
        others = moments_of(torch.cat([x[:i], x[i + 1 :]]))
        torch.testing.assert_close(
            found[i], distances(others, x[i : i + 1])[0], rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("inside_share", [1.0, 0.6])
def test_leaving_a_group_out_is_learning_without_it(inside_share: float) -> None:
    x = vectors(14, 6, 8)
    generator = torch.Generator().manual_seed(3)
    inside = torch.rand(14, 6, generator=generator) <= inside_share
    moments = moments_of(x, inside)
    group = torch.tensor([2, 3, 9, 11])
    rest = [i for i in range(14) if i not in group.tolist()]
    factors = {k: left_out_cholesky(moments, EPSILON, k) for k in range(1, 5)}
    found = leave_group_out(moments, x[group], inside[group], factors)
    expected = distances(moments_of(x[rest], inside[rest]), x[group])
    known = inside[group] & inside[rest].any(dim=0)
    assert known.any()
    torch.testing.assert_close(found, expected * known, rtol=1e-7, atol=1e-9)


def test_a_group_of_one_is_one_image() -> None:
    x = vectors(9, 4, 5)
    moments = moments_of(x)
    factor = left_out_cholesky(moments, EPSILON, 1)
    alone = leave_one_out(moments, x[3:4], factor)
    inside = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(leave_group_out(moments, x[3:4], inside, {1: factor}), alone)


def test_a_cell_that_no_other_image_shows_has_no_distance() -> None:
    x = vectors(4, 2, 3)
    inside = torch.ones(4, 2, dtype=torch.bool)
    inside[1:, 1] = False
    moments = moments_of(x, inside)
    found = leave_one_out(moments, x, left_out_cholesky(moments, EPSILON, 1))
    assert float(found[0, 1]) == 0 and float(found[0, 0]) > 0


# --- the module ------------------------------------------------------------------------------


def test_the_grid_in_float32_is_within_its_precision_and_comes_back_from_its_tensors() -> None:
    x, query = vectors(8, 5, 20), vectors(3, 5, 20, seed=4)
    moments = moments_of(x)
    grid = GaussianGrid.from_moments(moments, EPSILON)
    found = grid(query.float())
    torch.testing.assert_close(found.double(), distances(moments, query), rtol=1e-5, atol=1e-5)
    again = GaussianGrid.from_tensors(grid.tensors())
    assert torch.equal(again(query.float()), found)
    assert grid.tensors()["factor"].shape == (5, 210)
    with pytest.raises(ValueError, match="Gaussians of shapes"):
        GaussianGrid.from_tensors(grid.tensors() | {"count": torch.ones(4)})


def test_the_moments_come_back_from_the_grid() -> None:
    x, query = vectors(30, 4, 12), vectors(3, 4, 12, seed=5)
    moments = moments_of(x)
    again = GaussianGrid.from_moments(moments, EPSILON).moments(EPSILON)
    torch.testing.assert_close(
        distances(again, query), distances(moments, query), rtol=1e-4, atol=1e-4
    )
