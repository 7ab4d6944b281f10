"""Spatial transformers: identity at first, rigid and bounded, undone by their inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, shift

from amiss.nn.stn import SpatialTransformer, compose, inverse, rigid, warp


def smooth(size: tuple[int, int] = (48, 64), channels: int = 2) -> torch.Tensor:
    """(1, C, H, W) float32 in [0, 1]."""
    noise = np.random.default_rng(0).normal(size=(channels, *size))
    x = np.stack([gaussian_filter(n, 5) for n in noise])
    x = (x - x.min()) / (x.max() - x.min())
    return torch.from_numpy(x)[None].float()


def one(degrees: float = 0.0, down: float = 0.0, right: float = 0.0) -> torch.Tensor:
    values = [torch.tensor([v]) for v in (math.radians(degrees), down, right)]
    return rigid(*values, aspect=48 / 64)


def test_at_first_it_is_the_identity() -> None:
    x = smooth()
    found, theta = SpatialTransformer(2, max_degrees=30, max_shift=0.2)(x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)
    assert torch.equal(theta, torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]))


def test_it_stays_within_its_bounds() -> None:
    stn = SpatialTransformer(2, max_degrees=10, max_shift=0.05)
    torch.nn.init.normal_(stn.localization[-1].weight, std=100)  # type: ignore[arg-type]
    theta = stn.theta(torch.rand(8, 2, 48, 64))
    angle = torch.acos(theta[:, 0, 0].clamp(-1, 1)).rad2deg()
    assert angle.max() <= 10.01 and theta[:, :, 2].abs().max() <= 0.1001
    assert angle.max() > 9  # and uses them
    determinant = torch.linalg.det(theta[:, :, :2])
    torch.testing.assert_close(determinant, torch.ones(8))


def test_one_image_is_turned_alike_whatever_lies_beside_it() -> None:
    stn = SpatialTransformer(2, max_degrees=10, max_shift=0.05).eval()
    torch.nn.init.normal_(stn.localization[-1].weight)  # type: ignore[arg-type]
    x = torch.rand(3, 2, 48, 64)
    torch.testing.assert_close(stn.theta(x)[1:2], stn.theta(x[1:2]))


def test_a_translation_is_in_shares_of_the_frame() -> None:
    x = smooth()
    found = warp(x, one(down=2 * 6 / 48, right=2 * 4 / 64))  # 6 rows and 4 columns
    expected = shift(x[0, 0].numpy(), (-6, -4), order=1, mode="nearest")
    np.testing.assert_allclose(found[0, 0, 2:-8, 2:-8], expected[2:-8, 2:-8], atol=1e-4)


def test_a_rotation_keeps_distances_in_pixels() -> None:
    # A disc stays a disc though the frame is not square.
    y, x = np.mgrid[:48, :64]
    disc = ((y - 23.5) ** 2 + (x - 31.5 - 12) ** 2 < 36).astype(np.float32)
    found = warp(torch.from_numpy(disc)[None, None], one(degrees=90))[0, 0].numpy()
    rows, columns = np.nonzero(found > 0.5)
    assert abs(rows.mean() - 23.5) > 11 and abs(columns.mean() - 31.5) < 0.6
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1


@pytest.mark.parametrize("degrees", [10.0, -25.0])
def test_the_inverse_undoes_it(degrees: float) -> None:
    x = smooth()
    theta = one(degrees, 0.05, -0.08)
    again = warp(warp(x, theta), inverse(theta))
    inside = (slice(None), slice(None), slice(14, -14), slice(18, -18))
    assert float((again - x)[inside].abs().max()) < 0.02
    torch.testing.assert_close(
        compose(theta, inverse(theta)), torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), atol=1e-6, rtol=0
    )


def test_two_in_a_row_are_their_composition() -> None:
    x = smooth()
    first, second = one(8, 0.03, 0.02), one(-5, 0.0, 0.06)
    inside = (slice(None), slice(None), slice(10, -10), slice(10, -10))
    found, expected = warp(x, compose(first, second)), warp(warp(x, first), second)
    assert float((found - expected)[inside].abs().max()) < 0.02
