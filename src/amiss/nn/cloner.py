"""`Cloner`: a small network that answers at the critical points of a large one.

Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee, "Multiresolution Knowledge Distillation for Anomaly
Detection", CVPR 2021. For the poolings of a VGG-16 it is the paper's, layer for layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.errors import OptionError

_NARROW = 16  # channels of every layer that no critical point asks more of


class Cloner(nn.Module):
    """images (B, 3, H, W), normalised -> a map (B, C_l, h_l, w_l) at each critical point.

    One block of 3 x 3 convolutions without bias for each halving; batch norm and ReLU after each
    but the last of a block, which has the ReLU alone. A block ends with the width of the critical
    point of its stride and a 2 x 2 max pooling.

    Args:
        strides, channels: of the critical points, from shallow to deep; strides are powers of two.
        signed: the source's values have both signs there, so that the ReLU comes after the critical
            point instead of before it.
        ceil: an odd side is rounded up when it is halved.
    """

    def __init__(
        self, strides: Sequence[int], channels: Sequence[int], *, signed: bool, ceil: bool
    ) -> None:
        super().__init__()
        if any(stride < 2 or stride & (stride - 1) for stride in strides):
            raise OptionError(
                f"Critical points at strides {', '.join(map(str, strides))}: only powers of two "
                "can be cloned.",
                hint="Choose layers at strides 2, 4, 8, 16 or 32, each once.",
            )
        if len(set(strides)) < len(strides):
            raise OptionError(
                f"Critical points at strides {', '.join(map(str, strides))}: one of each at most.",
                hint="Choose layers of different strides.",
            )
        self.signed, self.ceil = signed, ceil
        wanted = dict(zip(strides, channels, strict=True))
        self.blocks = nn.ModuleList()
        self.taps = [1 << (i + 1) in wanted for i in range(max(strides).bit_length() - 1)]
        width = 3
        for i in range(len(self.taps)):
            last = wanted.get(1 << (i + 1), _NARROW)
            inner = [_NARROW] if i < 2 else [_NARROW, _NARROW]
            self.blocks.append(_block([width, *inner, last]))
            width = last
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for block, is_tap in zip(self.blocks, self.taps, strict=True):
            # Pooling and ReLU may change places; after the pooling there is less to do.
            x = F.max_pool2d(block(x), 2, 2, ceil_mode=self.ceil)
            rectified = F.relu(x)
            if is_tap:
                found.append(x if self.signed else rectified)
            x = rectified
        return found


def _block(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths), 1):
        layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
        if i + 1 < len(widths):
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
