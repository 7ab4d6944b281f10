"""How far students disagree on normal images: what their disagreement is measured in.

Bergmann et al., CVPR 2020, section 3.3: regression error and predictive uncertainty are brought to
mean 0 and standard deviation 1 over the pixels of normal images that were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LEAST = 1e-6  # of a standard deviation: students may agree everywhere


def sums(maps: Tensor, inside: Tensor | None = None) -> Tensor:
    """Sums of maps (L, 2, h, w), over the cells where `inside` (h, w) is True: (L, 2, 3) float64,
    of ones, values and squares. They add up over images."""
    values = maps.double().flatten(2)
    if inside is not None:
        values = values[:, :, inside.flatten()]
    ones = torch.ones_like(values)
    return torch.stack([ones.sum(2), values.sum(2), values.square().sum(2)], dim=2)


def spread(total: Tensor) -> Tensor:
    """(L, 2, 3) sums -> (L, 2, 2) float32: mean and standard deviation."""
    count, first, second = total.unbind(2)
    mean = first / count.clamp_min(1)
    variance = (second / count.clamp_min(1) - mean.square()).clamp_min(0)
    return torch.stack([mean, variance.sqrt().clamp_min(_LEAST)], dim=2).float()


def spreads_without(by_group: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """From the sums of each group of images: the spread over all, and that over all but each group.

    A threshold is set on scores of images that their own statistics have not seen. A single group
    has no others, and is measured by itself.
    """
    total = torch.stack(list(by_group.values())).sum(0)
    if len(by_group) == 1:
        return spread(total), {group: spread(total) for group in by_group}
    return spread(total), {group: spread(total - own) for group, own in by_group.items()}
