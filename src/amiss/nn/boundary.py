"""The losses of BGAD: likelihood, the boundary among normals, and what is pulled and pushed.

Yao, Li, Zhang, Sun, Zhang, "Explicit Boundary Guided Semi-Push-Pull Contrastive Learning for
Supervised Anomaly Detection", CVPR 2023, arXiv 2207.01463. All log-likelihoods are per channel, as
`ConditionalFlow` gives them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LIKELIHOODS = ("nll", "logsigmoid")
REDUCTIONS = ("sum", "mean")


def likelihood_losses(log_p: Tensor, form: str) -> Tensor:
    """L_ml of each vector, of the shape of `log_p`: -log p, or -log sigmoid(log p), which is flat
    where the likelihood is high already."""
    return -log_p if form == "nll" else -F.logsigmoid(log_p)


def boundary_of(scaled: Tensor, beta: float) -> Tensor:
    """b_n: the value at place floor(beta n), from 0, of n ascending normal log-likelihoods."""
    n = scaled.numel()
    place = min(n - 1, math.floor(beta * n + 1e-9))  # 0.29 * 100 is 28.999999999999996
    return scaled.detach().flatten().kthvalue(place + 1).values


def semi_push_pull(
    normal: Tensor,
    anomalous: Tensor,
    boundary: Tensor,
    *,
    margin: float,
    reduction: str,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """L_bg-spp = sum_i |min(log p_i - b_n, 0)| + sum_j |max(log p_j - b_n + tau, 0)|.

    normal (n,) and anomalous (m,) in the units of `boundary`, which no gradient passes through;
    either may be empty. reduction: "sum", or "mean", over those that violate the boundary, 0 where
    none does. `weights` (n,), (m,), or all 1.
    """
    pulled = F.relu(boundary - normal)
    pushed = F.relu(anomalous - boundary + margin)
    if weights is not None:
        pulled, pushed = pulled * weights[0], pushed * weights[1]
    loss = normal.new_zeros(())
    for part in (pulled, pushed):
        total = part.sum()
        if reduction == "mean":
            total = total / (part > 0).sum().clamp_min(1)
        loss = loss + total
    return loss


def focal_weights(normal: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the normal and the anomalous by scaled log-likelihoods u, without gradients: the
    official code's, which count those more that are still on the wrong side."""
    u = normal.detach()
    for_normal = torch.where(u > -0.2, 1.0, 11.7 * (1 - u.clamp_max(-1e-6).exp()).sqrt() * u.abs())
    v = anomalous.detach()
    for_anomalous = torch.where(
        v <= -1, 1.0, 0.53 * (1 + v.exp()).square() / v.abs().clamp_min(1e-6)
    )
    return for_normal, for_anomalous
