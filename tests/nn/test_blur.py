"""Upsampling and blur as two matrices, against torch and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from amiss.nn.blur import MapUpsampler, bilinear_matrix, gaussian_matrix


def grid(h: int, w: int, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, h, w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.0, 0.6, 4.0, 11.0])
@pytest.mark.parametrize(
    ("cells", "size"),
    [((8, 12), (64, 96)), ((5, 3), (37, 50)), ((7, 7), (7, 7)), ((1, 2), (9, 16))],
)
def test_the_map_is_bilinear_and_then_blurred_like_scipy(
    cells: tuple[int, int], size: tuple[int, int], sigma: float
) -> None:
    x = grid(*cells)
    found = MapUpsampler(cells, size, sigma)(x)
    assert found.shape == (3, *size) and found.dtype == torch.float32
    up = F.interpolate(x[:, None].double(), size=size, mode="bilinear", align_corners=False)[:, 0]
    expected = [gaussian_filter(one, sigma) if sigma else one for one in up.numpy()]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


def test_a_blur_wider_than_the_map_is_reflected_again_and_again() -> None:
    x = np.random.default_rng(0).random((6, 9))
    expected = gaussian_filter(x, 5.0)  # 20 pixels reach, on 6 rows
    found = gaussian_matrix(6, 5.0) @ x @ gaussian_matrix(9, 5.0).T
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 4.0])
def test_rows_sum_to_one(sigma: float) -> None:
    assert np.allclose(gaussian_matrix(20, sigma).sum(axis=1), 1)
    assert np.allclose(bilinear_matrix(7, 20).sum(axis=1), 1)


def test_no_blur_is_the_identity() -> None:
    assert np.array_equal(gaussian_matrix(5, 0.0), np.eye(5))
    assert np.array_equal(bilinear_matrix(5, 5), np.eye(5))


def test_a_constant_stays_constant_inside_a_mask() -> None:
    inside = torch.zeros(1, 8, 12)
    inside[:, 2:7, 3:9] = 1
    distances = torch.where(inside > 0, 2.5, 900.0)  # what lies outside must not leak in
    found = MapUpsampler((8, 12), (64, 96), 4.0)(distances, inside)
    torch.testing.assert_close(found[:, 16:56, 24:72], torch.full((1, 40, 48), 2.5))


def test_a_mask_of_everything_changes_nothing() -> None:
    upsample, x = MapUpsampler((6, 5), (40, 30), 4.0), grid(6, 5)
    torch.testing.assert_close(upsample(x, torch.ones_like(x)), upsample(x))


def test_an_empty_mask_gives_zeros_and_not_nan() -> None:
    x = grid(6, 5)
    assert not MapUpsampler((6, 5), (40, 30), 4.0)(x, torch.zeros_like(x)).any()
