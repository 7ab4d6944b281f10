"""The gallery of SPADE against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amiss.memory import gallery as module
from amiss.memory.gallery import Gallery, join_layers

IMAGES = np.array([3, 0, 2])


def smooth_maps(n: int = 5, size: int = 40) -> list[Tensor]:
    """(n, h, w, C) on three grids, correlated between positions as features are."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for channels, factor in ((6, 1), (10, 2), (24, 4)):
        noise = torch.randn(n, 4, size // 4 // factor + 1, size // 4 // factor + 1,
                            generator=generator)  # fmt: skip
        mix = torch.randn(channels, 4, generator=generator)
        coarse = torch.einsum("ck,nkhw->nchw", mix, noise)
        grid = (size // factor, size // factor + 4 // factor)
        fine = torch.nn.functional.interpolate(coarse, size=grid, mode="bilinear")
        fine = fine + 0.05 * torch.randn(fine.shape, generator=generator)
        maps.append(fine.permute(0, 2, 3, 1).contiguous())
    return maps


def brute_force(maps: list[Tensor], queries: Tensor, images: np.ndarray) -> Tensor:
    """(Q, rows of the images): squared distances in float64."""
    rows = torch.cat([join_layers(Gallery(maps).image(int(i)))[0] for i in images])
    assert len(rows) == len(images) * maps[0].shape[1] * maps[0].shape[2]
    return torch.cdist(queries.double(), rows.double()).square()


@pytest.fixture(scope="module")
def maps() -> list[Tensor]:
    return smooth_maps()


@pytest.fixture(scope="module")
def queries() -> Tensor:
    return join_layers(Gallery(smooth_maps(6)).image(5))[0]


@pytest.mark.parametrize("has_bounds", [True, False])
def test_the_nearest_vectors_are_those_of_brute_force(
    maps: list[Tensor], queries: Tensor, monkeypatch: pytest.MonkeyPatch, *, has_bounds: bool
) -> None:
    if not has_bounds:
        monkeypatch.setattr(module, "choose_directions", lambda *_: None)
    gallery = Gallery(maps)
    squared, image, cell = gallery.nearest(queries, IMAGES)
    assert (gallery._directions is not None) == has_bounds
    truth = brute_force(maps, queries, IMAGES)
    torch.testing.assert_close(squared.double(), truth.amin(1), rtol=1e-4, atol=1e-5)
    P = maps[0].shape[1] * maps[0].shape[2]
    column = torch.tensor([IMAGES.tolist().index(i) for i in image.tolist()]) * P + cell
    chosen = truth.gather(1, column[:, None])[:, 0]
    torch.testing.assert_close(chosen, truth.amin(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 10_000])
def test_the_mean_of_several_nearest_is_that_of_brute_force(
    maps: list[Tensor], queries: Tensor, count: int
) -> None:
    found = Gallery(maps).mean_of_nearest(queries[:50], IMAGES, count)
    truth = brute_force(maps, queries[:50], IMAGES)
    smallest = truth.topk(min(count, truth.shape[1]), largest=False).values
    torch.testing.assert_close(found.double(), smallest.mean(1), rtol=1e-4, atol=1e-4)


def test_the_order_of_the_images_does_not_matter(maps: list[Tensor], queries: Tensor) -> None:
    gallery = Gallery(maps)
    one, other = gallery.nearest(queries, IMAGES), gallery.nearest(queries, IMAGES[::-1].copy())
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)


def test_where_the_vectors_lie_does_not_matter(queries: Tensor) -> None:
    # One layer, so that positions can be shuffled without changing what lies at them.
    (coarse,) = (m for m in smooth_maps() if m.shape[3] == 6)
    flat = coarse.flatten(1, 2)
    order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(2))
    shuffled = flat[:, order].view(coarse.shape)
    asked = queries[:, :6].contiguous()
    one = Gallery([coarse]).nearest(asked, IMAGES)[0]
    other = Gallery([shuffled]).nearest(asked, IMAGES)[0]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_several_nearest_as_distances_instead_of_squares(
    maps: list[Tensor], queries: Tensor
) -> None:
    found = Gallery(maps).mean_of_nearest(queries[:50], IMAGES, 3, root=True)
    truth = brute_force(maps, queries[:50], IMAGES).sqrt().topk(3, largest=False).values.mean(1)
    torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-4)
    own = join_layers(Gallery(maps).image(2))[0][:20]
    assert not Gallery(maps).mean_of_nearest(own, IMAGES, 1).any()


def test_an_image_of_the_gallery_lies_in_it(maps: list[Tensor]) -> None:
    gallery = Gallery(maps)
    squared, image, cell = gallery.nearest(join_layers(gallery.image(2))[0], IMAGES)
    assert not squared.any() and (image == 2).all()
    assert torch.equal(cell, torch.arange(len(cell)))


def test_cells_that_are_not_looked_at_are_not_found(maps: list[Tensor]) -> None:
    P = maps[0].shape[1] * maps[0].shape[2]
    inside = torch.zeros(5, P, dtype=torch.bool)
    inside[:, : P // 2] = True
    inside[0] = False
    gallery = Gallery(maps, inside)
    for layer in (None, 0, 1):
        queries, _ = Gallery(maps).vectors(2, layer)
        squared, image, cell = gallery.nearest(queries, IMAGES, layer)
        assert set(image.tolist()) <= {2, 3}
        assert cell.max() < len(queries) * 0.6  # the deeper cell over the border counts
        half = len(queries) // 2 - maps[layer or 0].shape[2]
        assert not squared[:half].any() and squared[-1] > 0


def test_layers_apart_are_never_farther_than_the_layers_together(
    maps: list[Tensor], queries: Tensor
) -> None:
    # sum over layers of the least distance <= the least sum, on one grid; equal for one vector.
    same_grid = [m[:, ::f, ::f] for m, f in zip(maps, (4, 2, 1), strict=True)]
    gallery = Gallery([m.contiguous() for m in same_grid])
    maps_of_query = gallery.image(4)
    joint = gallery.nearest(join_layers(maps_of_query)[0], IMAGES)[0]
    apart = sum(
        gallery.nearest(maps_of_query[i][0].permute(1, 2, 0).flatten(0, 1), IMAGES, i)[0]
        for i in range(3)
    )
    assert isinstance(apart, Tensor)
    assert (apart <= joint * (1 + 1e-5) + 1e-6).all() and (apart < 0.99 * joint).any()
    single = Gallery([m[:1, :1, :1].contiguous() for m in same_grid])
    one = single.nearest(join_layers(maps_of_query)[0], np.array([0]))[0]
    parts = sum(
        single.nearest(maps_of_query[i][0].permute(1, 2, 0).flatten(0, 1), np.array([0]), i)[0]
        for i in range(3)
    )
    torch.testing.assert_close(parts, one, rtol=1e-4, atol=1e-4)
