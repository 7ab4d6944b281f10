"""The networks that FYD trains: transformers for the image and after each stage, and the heads of
its fine alignment.

Zheng et al., "Focus Your Distribution: Coarse-to-Fine Non-Contrastive Learning for Anomaly
Detection and Localization", ICME 2022, arXiv 2110.04538.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.nn.backbone import FeatureExtractor
from amiss.nn.folded import FoldedNetwork, Step
from amiss.nn.stn import SpatialTransformer, compose, inverse, warp

_COARSE_PX = 64  # side at which images are looked at, and compared, for the image-level alignment


class Aligned(NamedTuple):
    """Feature maps (B, C_l, h_l, w_l) after alignment, the image as it was aligned, small; where
    the cells of the first map lie in the input, theta (B, 2, 3), None for where they are; and what
    each transformer did, theta (B, 2, 3)."""

    maps: list[Tensor]
    coarse: Tensor
    theta: Tensor | None
    moves: list[Tensor]


class AlignmentNetwork(nn.Module):
    """`forward` gives the losses of a batch; `align` what the density is made of.

    `image_level` and `feature_level` say which transformers there are. The backbone is frozen: its
    gradients flow through to the transformers, its weights stay.
    """

    def __init__(  # noqa: PLR0913 - what `FYDConfig` says of the networks
        self,
        extractor: FeatureExtractor,
        *,
        image_level: bool,
        feature_level: bool,
        max_degrees: float,
        max_shift: float,
        head_dim: int,
        feature_share: float,
        ica_weight: float,
        drift_weight: float,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.ica_weight, self.drift_weight = ica_weight, drift_weight
        self.is_moving = False  # some transformer has left the identity; see `settle`
        wide = {"max_degrees": max_degrees, "max_shift": max_shift}
        narrow = {name: feature_share * bound for name, bound in wide.items()}
        self.image_stn = SpatialTransformer(3, **wide) if image_level else None
        self.feature_stns = nn.ModuleList(
            [SpatialTransformer(c, **narrow) for c in extractor.channels] if feature_level else []
        )
        self.projector = _projector(extractor.channels[-1], head_dim)
        self.predictor = _predictor(head_dim)

    def settle(self) -> Self:
        """For use: nothing learns any more, and it is known whether anything moves at all."""
        self.eval().requires_grad_(False)
        stns = [*([] if self.image_stn is None else [self.image_stn]), *self.feature_stns]
        last = [parameter for stn in stns for parameter in list(stn.parameters())[-2:]]
        self.is_moving = any(bool(parameter.any()) for parameter in last)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 3, H, W) uint8 -> `loss`, its parts `fine`, `coarse` and `drift`; and
        `spread`, the standard deviation of the projections' directions: 1 is healthy, 0 is
        collapsed."""
        found = self.align(images)
        z = self.projector(found.maps[-1])
        p = self.predictor(z)
        fine = fine_loss(p, z)
        coarse = pairwise_distance(found.coarse)
        moved = drift(found.moves)
        loss = fine + self.drift_weight * moved
        if self.image_stn is not None:
            loss = loss + self.ica_weight * coarse
        return {
            "loss": loss, "fine": fine, "coarse": coarse, "drift": moved, "spread": spread(z),
        }  # fmt: skip

    def align(self, images: Tensor) -> Aligned:
        """images (B, 3, H, W) uint8 -> the aligned feature maps."""
        x = images.to(torch.float32, memory_format=torch.channels_last)
        theta: Tensor | None = None
        moves: list[Tensor] = []
        if self.image_stn is not None:
            theta = self.image_stn.theta(_small(x))
            moves.append(theta)
            x = warp(x, theta)
        coarse = _small(x)
        network = self.extractor.network
        assert isinstance(network, FoldedNetwork)
        x = torch.addcmul(self.extractor.shift, x, self.extractor.scale)
        x = x.contiguous(memory_format=torch.channels_last)
        if not self.feature_stns:
            return Aligned(list(network(x)), coarse, theta, moves)
        outputs: list[int] = network.outputs
        first = theta

        def run_step(number: int, step: Step, inputs: list[Tensor]) -> Tensor:
            nonlocal first
            value = network.run_step(number, step, inputs)
            if number not in outputs:
                return value
            level = outputs.index(number)
            moved: Tensor
            moved, own = self.feature_stns[level](value)
            moves.append(own)
            if level == 0:
                first = own if theta is None else compose(theta, own)
            return moved

        maps = network.walk(x, run_step)
        return Aligned(maps, coarse, first, moves)


def _small(x: Tensor) -> Tensor:
    """(B, 3, H, W) levels -> about `_COARSE_PX` on the shorter side, in [-1, 1]."""
    factor = max(1, min(x.shape[2:]) // _COARSE_PX)
    pooled: Tensor = F.avg_pool2d(x, factor)
    small: Tensor = pooled / 127.5 - 1
    return small


def _projector(channels: int, dim: int) -> nn.Sequential:
    """Three 1 x 1 convolutions with batch norm, ReLU after the first two."""
    return nn.Sequential(
        nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(),
        nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(),
        nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim),
    )  # fmt: skip


def _predictor(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 1)
    )


def fine_loss(p: Tensor, z: Tensor) -> Tensor:
    """L_F = 1/2 D(p_A, sg(z_B)) + 1/2 D(p_B, sg(z_A)), over pairs of neighbours in the batch.

    p, z (B, C, h, w); D is minus the cosine at corresponding positions, averaged; sg stops the
    gradient. Every image is A of one pair and B of another, so both halves are in the mean.
    """
    other = z.detach().roll(1, dims=0)
    forth = F.cosine_similarity(p, other, dim=1).mean()
    back = F.cosine_similarity(p.roll(1, dims=0), z.detach(), dim=1).mean()
    return -0.5 * (forth + back)


def pairwise_distance(x: Tensor) -> Tensor:
    """L_ICA: the distance of two images at a position, ||A_ij - B_ij||_2 over the channels,
    averaged over positions and over all pairs of the batch (B, C, H, W).

    All pairs of a position are one batched distance matrix, without a loop over pairs. It is the
    paper's sum but for a constant factor.
    """
    B = len(x)
    at_each = x.flatten(2).permute(2, 0, 1)  # (H W, B, C)
    first, second = torch.triu_indices(B, B, offset=1)
    if not len(first):
        return x.sum() * 0
    return (at_each[:, first] - at_each[:, second]).square().sum(2).add(1e-12).sqrt().mean()


def drift(moves: list[Tensor]) -> Tensor:
    """How far the mean of each transformer's theta (B, 2, 3) over the batch lies from the identity:
    the sum of squares, summed over transformers.

    Images agree on where they stand just as well when all are moved alike, and then maps lie beside
    what they show: the mean pose is to stay where it is.
    """
    found = torch.zeros(())
    for theta in moves:
        identity = torch.eye(2, 3, device=theta.device)
        found = found.to(theta.device) + (theta.mean(dim=0) - identity).square().sum()
    return found


def spread(z: Tensor) -> Tensor:
    """The standard deviation of each channel of z / |z| over all positions, averaged and times
    sqrt(C): about 1 where directions vary in all channels, 0 where all are the same."""
    directions = F.normalize(z.detach(), dim=1).permute(0, 2, 3, 1).flatten(0, 2)  # (N, C)
    healthy: float = z.shape[1] ** -0.5
    return directions.std(dim=0).mean() / healthy


def move_mask(mask: Tensor, theta: Tensor | None) -> Tensor:
    """(B, H, W) bool, in the frame of the aligned maps."""
    if theta is None:
        return mask
    moved: Tensor = warp(mask[:, None].float(), theta)[:, 0] > 0.5
    return moved


def move_back(maps: Tensor, theta: Tensor | None) -> Tensor:
    """(B, h, w) in the frame of the aligned maps -> in that of the input; what the alignment has
    moved out of the frame is 0."""
    if theta is None:
        return maps
    moved: Tensor = warp(maps[:, None], inverse(theta), padding="zeros")
    return moved[:, 0]
