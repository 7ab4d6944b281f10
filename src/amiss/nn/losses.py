"""Losses of the papers, each as its formula stands there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-12
_TINY = 1e-30  # of a squared norm


def distillation_loss(decoded: Tensor, wanted: Tensor) -> Tensor:
    """L_k = ||D(T(p)) - P(p)||^2, the mean over patches. decoded, wanted (N, C) -> ().

    Bergmann et al., CVPR 2020, equation 1.
    """
    return (decoded - wanted).square().sum(1).mean()


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """L_m = max(0, margin + d+ - d-), the mean over triplets. All (N, D) -> ().

    d+ = ||T(p) - T(p+)||^2, d- = min(||T(p) - T(p-)||^2, ||T(p+) - T(p-)||^2). Bergmann et al.,
    equations 2 to 4.
    """
    near = (anchor - positive).square().sum(1)
    far = (anchor - negative).square().sum(1)
    far = torch.minimum(far, (positive - negative).square().sum(1))
    return (margin + near - far).clamp_min(0).mean()


def compactness_loss(descriptors: Tensor) -> Tensor:
    """L_c = sum over i != j of c_ij^2. descriptors (N, D) -> ().

    c (D, D) is the correlation of the descriptors' entries over the batch. Bergmann et al., CVPR
    2020, equation 5, has no square, with which the sum could fall without end; our choice.
    """
    centred = descriptors - descriptors.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(_LEAST)
    c: Tensor = unit.T @ unit
    return c.square().sum() - c.diagonal().square().sum()


def value_loss(source: Tensor, cloner: Tensor, inside: Tensor | None = None) -> Tensor:
    """L_val at one critical point: (1 / N) sum_j (a_s(j) - a_c(j))^2, image by image.

    source, cloner (B, C, h, w) -> (B,). `inside` (B, 1, h, w), 1 where to look and 0 elsewhere:
    then N counts what lies inside. Salehi et al., CVPR 2021, equation 1.
    """
    apart = (source - cloner).square()
    if inside is None:
        return apart.mean((1, 2, 3))
    area = inside.sum((1, 2, 3)) * source.shape[1]
    return (apart * inside).sum((1, 2, 3)) / area.clamp_min(1)


def direction_loss(source: Tensor, cloner: Tensor, inside: Tensor | None = None) -> Tensor:
    """L_dir at one critical point: 1 - cos of the whole activation vectors, image by image.

    source, cloner (B, C, h, w) -> (B,), in [0, 2]. Salehi et al., CVPR 2021, equation 2.
    """
    if inside is not None:
        source, cloner = source * inside, cloner * inside
    dot = (source * cloner).sum((1, 2, 3))
    # The root has no slope at 0, which either may be.
    one, other = (x.square().sum((1, 2, 3)).clamp_min(_TINY).sqrt() for x in (source, cloner))
    return 1 - dot / one / other


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), of logits (B, ...) -> ().

    Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014; half of it descends as well.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def generator_loss(fake: Tensor, kind: str = "nonsaturating") -> Tensor:
    """What the generator descends, of logits (B, ...) -> (): -E log D(G(z)), or with `kind`
    "minimax" E log(1 - D(G(z)))."""
    if kind == "minimax":
        return -F.softplus(fake.float()).mean()
    return F.softplus(-fake.float()).mean()


def norms(x: Tensor, order: int) -> Tensor:
    """||x||_1 or ||x||_2 of each image: (B, ...) -> (B,)."""
    flat = x.float().flatten(1)
    if order == 1:
        return flat.abs().sum(1)
    # The root has no slope at 0.
    return flat.square().sum(1).clamp_min(_LEAST).sqrt()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, kind: str = "two_sided"
) -> Tensor:
    """E (||grad D(xh)||_2 - 1)^2 at xh = eps x + (1 - eps) G(z), one eps of U(0, 1) per image.

    real, fake (B, C, H, W) -> (). `kind` "one_sided" counts only what is above 1. No gradient
    reaches whoever made `fake`. Gulrajani et al., NeurIPS 2017, equation 3.
    """
    real, fake = real.detach().float(), fake.detach().float()
    eps = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    between = (eps * real + (1 - eps) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    above = norms(slope, 2) - 1
    if kind == "one_sided":
        above = above.clamp_min(0)
    return above.square().mean()
