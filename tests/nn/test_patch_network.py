"""Patch networks: the published sizes, and dense evaluation equal to patch by patch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from amiss.nn.levels import as_input
from amiss.nn.patch_network import LAYERS, STRIDES, PatchNetwork

CHAINS = {  # the sides of the activations, layer by layer
    17: [17, 12, 8, 4, 1],
    33: [33, 29, 14, 10, 5, 4, 1],
    65: [65, 61, 30, 26, 13, 9, 4, 1, 1],
}


@pytest.mark.parametrize("patch", LAYERS)
def test_a_patch_shrinks_to_one_cell_as_published(patch: int) -> None:
    side, chain = patch, [patch]
    for layer in LAYERS[patch]:
        side = side // 2 if layer is None else side - layer.kernel + 1
        chain.append(side)
    assert chain == CHAINS[patch]
    assert PatchNetwork(patch, 0.1).describe(torch.zeros(2, 3, patch, patch)).shape == (2, 13)
    assert PatchNetwork(patch).dim == 128


@pytest.mark.parametrize("patch", LAYERS)
@pytest.mark.parametrize("stride", STRIDES)
def test_dense_is_patch_by_patch(patch: int, stride: int) -> None:
    torch.manual_seed(patch)
    network = PatchNetwork(patch, 0.1, stride).double()
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    padded = F.pad(images, (patch // 2,) * 4, mode="reflect")
    with torch.no_grad():
        dense = network(images)
        assert dense.shape == (2, network.dim, 40 // stride, 56 // stride)
        rows = range(0, dense.shape[2], max(1, dense.shape[2] // 4))
        for i in rows:
            top = i * stride + stride // 2
            lefts = [j * stride + stride // 2 for j in range(dense.shape[3])]
            patches = [padded[1, :, top : top + patch, x : x + patch] for x in lefts]
            alone = network.describe(torch.stack(patches))
            torch.testing.assert_close(dense[1, :, i].T, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("patch", LAYERS)
@pytest.mark.parametrize("grid", [1, 2, 3])
def test_a_crop_holds_the_patches_it_is_cut_for(patch: int, grid: int) -> None:
    torch.manual_seed(0)
    network = PatchNetwork(patch, 0.1).double()
    crop = torch.randn(1, 3, patch + 8 * (grid - 1), patch + 8 * (grid - 1), dtype=torch.float64)
    with torch.no_grad():
        found = network.inner(crop, 8)
        assert found.shape[2:] == (grid, grid)
        last = crop[:, :, -patch:, -patch:]
        torch.testing.assert_close(found[:, :, -1, -1], network.describe(last), rtol=0, atol=1e-10)


def test_levels_come_into_a_symmetric_range() -> None:
    levels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    x = as_input(levels)
    assert x.dtype == torch.float32 and x[0].eq(-1).all() and x[1].eq(1).all()
