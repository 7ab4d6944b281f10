"""Mean and standard deviation over the cells of many images, from sums that add up over them.

Bergmann et al., CVPR 2020, sections 3.2 and 3.3: what teachers say is brought to mean 0 and
standard deviation 1 over the training images, and the students' error and uncertainty over normal
images that were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LEAST = 1e-6  # of a standard deviation: a value may be the same everywhere


def sums(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Sums of maps (..., h, w), over the cells where `inside`, (h, w) or (1, h, w), is True:
    (..., 3) float64, of ones, values and squares. They add up over images."""
    values = maps.double().flatten(-2)
    if inside is not None:
        values = values[..., inside.flatten()]
    ones = torch.ones_like(values)
    return torch.stack([ones.sum(-1), values.sum(-1), values.square().sum(-1)], dim=-1)


def spread(total: Tensor) -> Tensor:
    """(..., 3) sums -> (..., 2) float32: mean and standard deviation."""
    count, first, second = total.unbind(-1)
    mean = first / count.clamp_min(1)
    variance = (second / count.clamp_min(1) - mean.square()).clamp_min(0)
    return torch.stack([mean, variance.sqrt().clamp_min(_LEAST)], dim=-1).float()


def spreads_without(by_group: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """From the sums of each group of images: the spread over all, and that over all but each group.

    A threshold is set on scores of images that their own statistics have not seen. A single group
    has no others, and is measured by itself.
    """
    total = torch.stack(list(by_group.values())).sum(0)
    if len(by_group) == 1:
        return spread(total), {group: spread(total) for group in by_group}
    return spread(total), {group: spread(total - own) for group, own in by_group.items()}
