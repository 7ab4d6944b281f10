"""Pixels as the networks that are trained here take them in: from -1 to 1, in colour or grey."""

from __future__ import annotations

import torch
from torch import Tensor


def as_input(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 levels -> float32 in [-1, 1], channels last."""
    x = images.to(torch.float32, memory_format=torch.channels_last)
    return x / 127.5 - 1.0


def as_gray(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), the mean of the colours: of a grey image, what it holds."""
    return x.mean(1, keepdim=True)
