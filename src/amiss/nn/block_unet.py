"""Networks of DAAD: a U-Net whose connections are memories, and a discriminator with features.

Hou et al., "Divide-and-Assemble: Learning Block-wise Memory for Unsupervised Anomaly Detection",
ICCV 2021.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from amiss.nn.autoencoder import Decoder, Encoder
from amiss.nn.gan import ConvEncoder
from amiss.nn.memory_module import BlockMemory

_FEATURES = 100  # f_D


class Assembled(NamedTuple):
    """What is made of images, and at each scale the weights of the items for each block."""

    made: Tensor
    weights: list[Tensor]


class BlockUNet(nn.Module):
    """x (B, C, H, W) in [-1, 1] -> `Assembled`: a U-Net each of whose connections, the deepest
    included, is a `BlockMemory`, so that nothing reaches the decoder past one.

    Args:
        channels: of the images, C.
        shapes: (C, H, W) of the maps of all scales, from the largest; see `scales`.
        rates, items, similarity, temperature: of each `BlockMemory`.
    """

    def __init__(
        self,
        channels: int,
        shapes: list[tuple[int, int, int]],
        rates: tuple[int, int, int],
        items: int,
        *,
        similarity: str,
        temperature: float,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, shapes)
        self.memories = nn.ModuleList(
            BlockMemory(shape, rates, items, similarity=similarity, temperature=temperature)
            for shape in shapes
        )
        self.decoder = Decoder(channels, shapes, skip=True)

    def forward(self, x: Tensor) -> Assembled:
        reads = [memory(f) for memory, f in zip(self.memories, self.encoder(x), strict=True)]
        made = self.decoder([read.values for read in reads])
        return Assembled(made, [read.weights for read in reads])


class FeatureDiscriminator(nn.Module):
    """Of images (B, C, H, W), whether they are real: logits (B, 1). `features`: f_D (B, 100)."""

    def __init__(self, size: tuple[int, int], *, channels: int, width: int) -> None:
        super().__init__()
        self.features = ConvEncoder(size, _FEATURES, channels=channels, width=width)
        self.head = nn.Linear(_FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images))
        return found
