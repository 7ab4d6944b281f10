"""Locally aware patch embeddings of PatchCore: a neighbourhood of each cell, layers merged.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def embed_concat(maps: Sequence[Tensor], *, neighborhood: int, stride: int) -> Tensor:
    """Mean over each p x p neighbourhood, deeper maps brought to the first grid, concatenated.

    maps: (B, C_l, H_l, W_l) per layer, shallow first -> (B, D, H, W) with D = sum of C_l and
    (H, W) the first grid, every `stride`-th cell of it. The border pads with zeros that count in
    the mean, as in the authors' code, so border cells are damped.
    """
    height, width = maps[0].shape[2:]
    pooled = [F.avg_pool2d(m, neighborhood, stride=1, padding=neighborhood // 2) for m in maps]
    merged = torch.cat([_to_grid(m, height, width) for m in pooled], dim=1)
    return merged[:, :, ::stride, ::stride]


def embed_adaptive(
    maps: Sequence[Tensor], *, neighborhood: int, stride: int, layer_dim: int, target_dim: int
) -> Tensor:
    """The authors' two-step adaptive pooling: each p x p x C block to `layer_dim`, then all
    layers together to `target_dim`.

    maps: (B, C_l, H_l, W_l) per layer -> (B, target_dim, H, W). Blocks are flattened channel by
    channel, so the first pooling averages within a channel's neighbourhood and, where C_l > layer
    dim, over neighbouring channels.
    """
    height, width = maps[0].shape[2:]
    layers = []
    for m in maps:
        B, _, H, W = m.shape
        blocks = F.unfold(m, neighborhood, padding=neighborhood // 2)  # (B, C*p*p, H*W)
        pooled = _pool_channels(blocks, layer_dim).view(B, layer_dim, H, W)
        # Resizing is linear and acts on each channel alone: resizing after pooling equals the
        # authors' resizing of every window offset before it.
        layers.append(_to_grid(pooled, height, width))
    merged = torch.cat(layers, dim=1).flatten(2)  # (B, L*layer_dim, H*W)
    merged = _pool_channels(merged, target_dim).view(-1, target_dim, height, width)
    return merged[:, :, ::stride, ::stride]


def _pool_channels(x: Tensor, size: int) -> Tensor:
    """Adaptive average pooling along the channel axis: (B, C, N) -> (B, size, N)."""
    return F.adaptive_avg_pool1d(x.transpose(1, 2), size).transpose(1, 2)


def _to_grid(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
