"""Resizing inside a graph gives the levels that Pillow gives."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from amiss.data.geometry import ResizeMode, inner_roi, resize_image
from amiss.export.resizing import resize_frames
from amiss.types import UInt8

SIZES = [
    (64, 80),
    (97, 131),
    (33, 500),
    (500, 33),
    (20, 16),
    (1, 1),
    (128, 160),
    (63, 81),
    (900, 2400),
]


def noise(size: tuple[int, int]) -> UInt8:
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", get_args(ResizeMode))
def test_the_levels_are_those_of_pillow(size: tuple[int, int], mode: ResizeMode) -> None:
    image = noise(size)
    expected, geometry = resize_image(image, (64, 80), mode)
    frames, inside = resize_frames(torch.from_numpy(image)[None], (64, 80), mode)
    assert frames.dtype == torch.uint8 and frames.shape == (1, 3, 64, 80)
    assert np.array_equal(frames[0].permute(1, 2, 0).numpy(), expected)
    inner = inner_roi(geometry)
    if mode == "squash":
        assert inside is None
    else:
        assert inside is not None
        everywhere = np.ones((64, 80), np.bool_) if inner is None else inner
        assert np.array_equal(inside.numpy(), everywhere)


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise((64, 80))
    frames, _ = resize_frames(torch.from_numpy(image)[None], (64, 80), "squash")
    assert np.array_equal(frames[0].permute(1, 2, 0).numpy(), image)


def test_images_of_a_batch_do_not_mix() -> None:
    images = torch.from_numpy(np.stack([noise((70, 90)), np.zeros((70, 90, 3), np.uint8)]))
    together, _ = resize_frames(images, (32, 48), "squash")
    alone, _ = resize_frames(images[:1], (32, 48), "squash")
    assert torch.equal(together[:1], alone) and not together[1].any()
