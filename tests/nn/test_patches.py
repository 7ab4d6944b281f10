"""Patch embeddings against plain code and against the identity of the authors' pooling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.nn.patches import embed_adaptive, embed_concat


def maps(*shapes: tuple[int, int, int], batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


def padded_windows(m: Tensor, p: int) -> Tensor:
    """(B, C, p, p, H, W): the neighbourhood of each cell, zeros outside."""
    B, C, H, W = m.shape
    return F.unfold(m, p, padding=p // 2).view(B, C, p, p, H, W)


@pytest.mark.parametrize("p", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_concat_is_the_mean_of_neighbourhoods_side_by_side(p: int, stride: int) -> None:
    shallow, deep = maps((6, 10, 14), (4, 5, 7))
    found = embed_concat([shallow, deep], neighborhood=p, stride=stride)
    means = [padded_windows(m, p).mean(dim=(2, 3)) for m in (shallow, deep)]
    up = F.interpolate(means[1], size=(10, 14), mode="bilinear", align_corners=False)
    expected = torch.cat([means[0], up], dim=1)[:, :, ::stride, ::stride]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_concat_of_one_layer_and_one_cell_is_the_layer() -> None:
    (m,) = maps((5, 4, 6))
    assert torch.equal(embed_concat([m], neighborhood=1, stride=1), m)


def test_the_border_counts_zeros() -> None:
    m = torch.ones(1, 1, 3, 4)
    found = embed_concat([m], neighborhood=3, stride=1)[0, 0]
    assert float(found[1, 1]) == pytest.approx(1)
    assert float(found[0, 0]) == pytest.approx(4 / 9)
    assert float(found[0, 1]) == pytest.approx(6 / 9)


def test_adaptive_is_the_authors_pooling_on_channels_of_512_and_1024() -> None:
    layer2, layer3 = maps((512, 8, 6), (1024, 4, 3))
    found = embed_adaptive(
        [layer2, layer3], neighborhood=3, stride=1, layer_dim=1024, target_dim=1024
    )
    assert found.shape == (2, 1024, 8, 6)
    windows = padded_windows(layer2, 3)
    doubled = (windows.sum(dim=(2, 3)) + windows[:, :, 1, 1]) / 10  # the centre counts twice
    torch.testing.assert_close(found[:, :512], doubled, rtol=1e-5, atol=1e-5)
    means = padded_windows(layer3, 3).mean(dim=(2, 3))
    pairs = means.view(2, 512, 2, 4, 3).mean(dim=2)
    up = F.interpolate(pairs, size=(8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[:, 512:], up, rtol=1e-5, atol=1e-5)


def test_adaptive_equals_the_authors_order_of_steps() -> None:
    shallow, deep = maps((12, 8, 10), (20, 4, 5))
    found = embed_adaptive([shallow, deep], neighborhood=3, stride=1, layer_dim=15, target_dim=9)
    pooled = []
    for m in (shallow, deep):
        windows = padded_windows(m, 3)  # theirs resizes every window offset, then pools
        B, C, p, _, H, W = windows.shape
        flat = windows.reshape(B, C * p * p, H, W)
        if (H, W) != (8, 10):
            flat = F.interpolate(flat, size=(8, 10), mode="bilinear", align_corners=False)
        cells = flat.permute(0, 2, 3, 1).reshape(-1, 1, C * 9)
        pooled.append(F.adaptive_avg_pool1d(cells, 15).squeeze(1))
    both = torch.stack(pooled, dim=1).reshape(-1, 1, 30)
    expected = F.adaptive_avg_pool1d(both, 9).view(2, 8, 10, 9).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_stride_takes_every_nth_cell() -> None:
    layers = maps((6, 9, 7), (4, 5, 4))
    options = {"neighborhood": 3, "layer_dim": 8, "target_dim": 5}
    whole = embed_adaptive(layers, stride=1, **options)
    assert torch.equal(embed_adaptive(layers, stride=2, **options), whole[:, :, ::2, ::2])
