"""Gradients by the image, and the opening of maps."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import grey_opening as scipy_opening
from torch import Tensor
from torch.nn import functional as F

from amiss.nn.saliency import grey_opening, guided_gradient, input_gradient, smooth_gradient

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)


def squares(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3))


def test_the_gradient_is_found_where_none_is_asked_for() -> None:
    x = torch.randn(2, 3, 4, 5)
    with torch.inference_mode():
        loss, gradient = input_gradient(squares, x.clone())
    torch.testing.assert_close(loss, squares(x))
    torch.testing.assert_close(gradient, 2 * x)


def test_of_a_linear_loss_noise_changes_nothing() -> None:
    x, weight = torch.rand(2, 3, 4, 5), torch.randn(3, 4, 5)
    _, gradient = smooth_gradient(
        lambda y: (y * weight).sum((1, 2, 3)), x, samples=4, noise=0.1, seed=0
    )
    torch.testing.assert_close(gradient, weight.expand(2, 3, 4, 5))


def test_noise_is_the_same_for_an_image_alone_and_in_a_batch() -> None:
    x = torch.rand(3, 3, 4, 5)
    options = {"samples": 3, "noise": 0.1, "seed": 1}
    _, all_of_them = smooth_gradient(lambda y: y.pow(4).sum((1, 2, 3)), x, **options)
    _, alone = smooth_gradient(lambda y: y.pow(4).sum((1, 2, 3)), x[1:2], **options)
    torch.testing.assert_close(all_of_them[1:2], alone)


def test_a_guided_relu_lets_back_only_what_is_positive() -> None:
    x = torch.tensor([-1.0, 2.0, 3.0, 8.0]).view(1, 1, 1, 4)
    weight = torch.tensor([1.0, 1.0, -1.0, 1.0])

    def of(rectified: object) -> Tensor:
        return guided_gradient(lambda y: (rectified(y) * weight).sum((1, 2, 3)), x)[1].flatten()  # type: ignore[operator]

    assert of(F.relu).tolist() == [0, 1, 0, 1]
    assert of(lambda y: F.relu(y.clone(), inplace=True)).tolist() == [0, 1, 0, 1]
    assert of(F.relu6).tolist() == [0, 1, 0, 0]
    _, plain = input_gradient(lambda y: (F.relu(y) * weight).sum((1, 2, 3)), x)
    assert plain.flatten().tolist() == [0, 1, -1, 1]  # outside, a ReLU is what it was


def test_opening_is_scipys_and_neither_adds_nor_goes_on() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 17, 23))).float()
    opened = grey_opening(maps)
    assert (opened <= maps).all() and not torch.equal(opened, maps)
    assert torch.equal(grey_opening(opened), opened)
    inner = scipy_opening(maps[0].numpy(), footprint=CROSS)[2:-2, 2:-2]
    assert np.array_equal(opened[0, 2:-2, 2:-2].numpy(), inner)


def test_opening_leaves_a_thin_region_and_looks_at_nothing_beside_it() -> None:
    maps = torch.rand(1, 9, 9) + 1
    roi = torch.zeros(1, 9, 9, dtype=torch.bool)
    roi[0, 4, 2:7] = True  # one pixel high: a cross fits nowhere
    opened = grey_opening(maps, roi)
    line = maps[0, 4, 2:7].numpy()
    expected = scipy_opening(np.pad(line, 2, mode="edge"), size=3)[2:-2]
    inner = opened[0, 4, 2:7].numpy()
    assert np.array_equal(inner[1:-1], expected[1:-1]) and (inner > 1).all()
    beside = torch.where(roi, maps, torch.zeros(()))
    assert torch.equal(grey_opening(beside, roi)[roi], opened[roi])
    assert torch.equal(grey_opening(maps, torch.ones_like(roi)), grey_opening(maps))
