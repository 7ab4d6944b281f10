"""Where a loss comes from: its gradient with respect to the image, in several forms, and the grey
opening that takes specks out of such maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LossOf = Callable[[Tensor], Tensor]
"""x (B, 3, H, W) float32 -> loss (B,), each of its own image alone."""


def input_gradient(loss_of: LossOf, x: Tensor) -> tuple[Tensor, Tensor]:
    """loss (B,) and d loss / d x (B, 3, H, W), also where nobody else asks for gradients."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = x.clone().requires_grad_()
        loss = loss_of(x)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), gradient


def smooth_gradient(
    loss_of: LossOf, x: Tensor, *, samples: int, noise: float, seed: int
) -> tuple[Tensor, Tensor]:
    """As `input_gradient`, the gradient a mean over `samples` noisy copies.

    `noise`: the standard deviation, as a share of the range of each image. The noise is the same
    for every image and every call. Smilkov et al., "SmoothGrad", 2017.
    """
    loss, _ = input_gradient(loss_of, x)
    generator = torch.Generator().manual_seed(seed)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    total = torch.zeros_like(x)
    for _ in range(samples):
        thrown = torch.randn(1, *x.shape[1:], generator=generator).to(x.device)
        total += input_gradient(loss_of, x + noise * (high - low) * thrown)[1]
    return loss, total / samples


def guided_gradient(loss_of: LossOf, x: Tensor) -> tuple[Tensor, Tensor]:
    """As `input_gradient`, where every ReLU lets back only what is positive. Springenberg et al.,
    "Striving for Simplicity", 2014."""
    with _Guided():
        return input_gradient(loss_of, x)


class _GuidedReLU(torch.autograd.Function):
    """A ReLU, or one with a ceiling, whose gradient is 0 where it is negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float | None) -> Tensor:
        y = x.clamp(0, ceiling)
        ctx.save_for_backward(y == x)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (passing,) = ctx.saved_tensors
        return gradient.clamp_min(0) * passing, None


class _Guided(TorchFunctionMode):
    """Within `with`, every ReLU and ReLU6 is a guided one, in whichever network it stands."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        ceiling = {F.relu: None, torch.relu: None, F.relu6: 6.0}.get(func, -1.0)
        if ceiling == -1.0:
            return func(*args, **(kwargs or {}))
        return _GuidedReLU.apply(args[0], ceiling)


def grey_opening(maps: Tensor, roi: Tensor | None = None) -> Tensor:
    """Erosion, then dilation, by the 3 x 3 ellipse, which is a cross: maps (B, H, W).

    Never above `maps`, and opening twice changes nothing more. Beyond the border and outside of
    `roi` (B, H, W) nothing counts; there, maps come back as they were.
    """
    if roi is None:
        return _dilate(-_dilate(-maps))
    nothing = torch.full_like(maps, -torch.inf)
    eroded = -_dilate(torch.where(roi, -maps, nothing))
    return torch.where(roi, _dilate(torch.where(roi, eroded, nothing)), maps)


def _dilate(maps: Tensor) -> Tensor:
    padded = F.pad(maps, (1, 1, 1, 1), value=-torch.inf)
    H, W = maps.shape[1:]
    found = maps
    for top, left in ((0, 1), (2, 1), (1, 0), (1, 2)):
        found = torch.maximum(found, padded[:, top : top + H, left : left + W])
    return found
