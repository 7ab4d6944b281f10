"""A conditional normalizing flow over the vectors of a feature map, with its exact likelihood.

Coupling blocks as Real-NVP's (Dinh et al., arXiv 1605.08803) with linear subnetworks, soft
clamping, a learned scale and a fixed random rotation of the channels; the condition is a code of
the place, as in CFLOW-AD (Gudovskiy et al., WACV 2022, arXiv 2107.12571). BGAD and NFAD use it on
every level of a network's features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLAMP = 1.9  # alpha: no block scales a channel by more than e^1.9
_DAMPING = 0.1  # of what a subnetwork says, so that an untrained block is nearly the identity
_SOFTNESS = 0.5  # of the softplus behind the learned scale
_LONGEST = 10_000.0  # wave length of the code's slowest sine, over 2 pi


def position_code(grid: tuple[int, int], size: int) -> Tensor:
    """(h * w, size) float32: sines and cosines of the column, then of the row, half the channels
    each; even channels are sines. `size` is a multiple of 4."""
    if size % 4:
        raise ValueError(f"a code of {size} channels cannot be cut into four")
    half = size // 2
    frequency = torch.exp(torch.arange(0, half, 2) * (-math.log(_LONGEST) / half)).double()
    h, w = grid
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    halves = []
    for place in (columns, rows):
        angle = place.flatten()[:, None] * frequency  # (h * w, half / 2)
        halves.append(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))
    return torch.cat(halves, dim=1).float()


def random_rotation(size: int) -> Tensor:
    """(size, size) float32, drawn evenly from SO(size) by torch's global generator."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    q = q * torch.sign(torch.diagonal(r))  # else the choice of QR's signs would show
    if torch.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    rotation: Tensor = q.float()
    return rotation


class CouplingBlock(nn.Module):
    """y = R (psi(g) * [x1, x2 exp(s) + b] + t), where s and b follow from x1 and the condition.

    s = alpha tanh(a_1) and b = a_2, with (a_1, a_2) = 0.1 subnet([x1, c]);
    psi(g) = 0.1 softplus(g), 1 at first; R is a rotation that stays.
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.kept = (channels + 1) // 2
        self.changed = channels - self.kept
        width = 2 * (self.kept + condition)
        # One layer over [x1, c], kept in two parts: the condition's is the same for all images.
        first = nn.Linear(self.kept + condition, width)
        weight = first.weight.detach()
        self.of_features = nn.Parameter(weight[:, : self.kept].clone())
        self.of_place = nn.Parameter(weight[:, self.kept :].clone())
        self.first_bias = nn.Parameter(first.bias.detach().clone())
        self.second = nn.Linear(width, 2 * self.changed)
        at_one = math.log(math.expm1(_SOFTNESS * 10.0)) / _SOFTNESS  # psi(at_one) = 1
        self.scale_logit = nn.Parameter(torch.full((channels,), at_one))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.rotation: Tensor
        self.register_buffer("rotation", random_rotation(channels))

    def place_terms(self, code: Tensor) -> Tensor:
        """What the condition (Q, P) adds in the subnetwork's hidden layer, (Q, width)."""
        return F.linear(code, self.of_place, self.first_bias)

    def forward(self, x: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, Q, C), place terms (Q, width) -> y (B, Q, C), log|det| (B, Q) float32 or more."""
        x1, x2 = x[..., : self.kept], x[..., self.kept :]
        s, b = self._coefficients(x1, place)
        scale = self._scale()
        moved = torch.cat([x1, x2 * s.exp() + b], dim=-1)
        # R (psi x + t) as one product: the scale goes into the matrix, which is small.
        y = F.linear(moved, self.rotation * scale, self.rotation @ self.shift)
        return y, _wide(s).sum(-1) + _wide(scale).log().sum()

    def inverse(self, y: Tensor, place: Tensor) -> Tensor:
        """The x that `forward` makes y of."""
        moved = (F.linear(y, self.rotation.T) - self.shift) / self._scale()
        x1 = moved[..., : self.kept]
        s, b = self._coefficients(x1, place)
        return torch.cat([x1, (moved[..., self.kept :] - b) * (-s).exp()], dim=-1)

    def _coefficients(self, x1: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        # In place: what is largest is written once and read once on the way to the product.
        hidden = F.linear(x1, self.of_features).add_(place).relu_()
        a = self.second(hidden) * _DAMPING
        return CLAMP * torch.tanh(a[..., : self.changed]), a[..., self.changed :]

    def _scale(self) -> Tensor:
        return 0.1 * F.softplus(self.scale_logit, beta=_SOFTNESS)


class ConditionalFlow(nn.Module):
    """Coupling blocks in a row; called, it gives the log-likelihood per channel."""

    def __init__(self, channels: int, *, blocks: int = 8, condition: int = 128) -> None:
        super().__init__()
        self.channels = channels
        self.blocks = nn.ModuleList(CouplingBlock(channels, condition) for _ in range(blocks))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Features x (B, Q, C) of B images at Q places, codes (Q, P) of the places ->
        log p / C = (log|det J| - |z|^2 / 2) / C - ln(2 pi) / 2, (B, Q)."""
        return self.from_terms(x, self.place_terms(code))

    def place_terms(self, code: Tensor) -> list[Tensor]:
        """What the condition adds in each block, (Q, width) each: with weights that stay, it need
        not be computed again for every image."""
        return [block.place_terms(code) for block in self.blocks]  # type: ignore[operator]

    def from_terms(self, x: Tensor, terms: list[Tensor]) -> Tensor:
        """As `forward`, from `place_terms`."""
        z, log_det = self.transform(x, terms)
        squares = _wide(z).square().sum(-1)
        return (log_det - 0.5 * squares) / self.channels - 0.5 * math.log(2 * math.pi)

    def transform(self, x: Tensor, terms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """x (B, Q, C) -> z of the same shape and log|det dz/dx| (B, Q)."""
        log_det = torch.zeros((), device=x.device)
        for block, term in zip(self.blocks, terms, strict=True):
            x, more = block(x, term)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Tensor, terms: list[Tensor]) -> Tensor:
        """The x that `transform` makes z of."""
        for block, term in zip(reversed(self.blocks), reversed(terms), strict=True):
            z = block.inverse(z, term)  # type: ignore[operator]
        return z


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: sums over channels in half precision would lose what is compared."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
