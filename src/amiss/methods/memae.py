"""MemAE: an autoencoder whose decoder sees no code but what a memory of normal ones answers.

Gong, Liu, Le, Saha, Mansour, Venkatesh, van den Hengel, "Memorizing Normality to Detect Anomaly:
Memory-Augmented Deep Autoencoder for Unsupervised Anomaly Detection", ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from amiss.errors import OptionError, TrainingWarning
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.learning.reconstruction import (
    WATCHED,
    Evenness,
    ReconstructionConfig,
    error_map,
    mean_inside,
    train_reconstructor,
)
from amiss.learning.settling import some_batches
from amiss.learning.trained import Split, drawn, in_color, job, one_by_one, restored, stored
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.autoencoder import Decoder, Encoder, SmallAutoencoder, scales
from amiss.nn.memory_module import SIMILARITIES, BlockMemory, emptied, entropy, shrunk
from amiss.options import Config, option
from amiss.run import Run, warn
from amiss.types import Prediction

_LARGEST_SMALL = 64  # side of an image for the networks of MNIST and CIFAR-10


@dataclass(frozen=True, kw_only=True)
class MemAEConfig(ReconstructionConfig):
    """Options of MemAE."""

    image_size: tuple[int, int] = option(
        (32, 32), "height and width of the networks' input, in pixels", low=16, high=256
    )
    network: str = option(
        "cifar", "mnist, cifar: small ones for images like those; or deep: the autoencoder's, for "
        "larger images", choices=("mnist", "cifar", "deep"),
    )  # fmt: skip
    width: int = option(32, "channels of the first scale of deep networks", low=2, high=512)
    scales: int = option(4, "how often deep networks halve an image", low=1, high=7)
    batch_size: int = option(64, "images of a step", low=2, high=4096)
    learning_rate: float = option(1e-4, "of Adam", low=1e-7, high=1, paper="1e-4")
    items: int = option(
        500, "N: items of the memory", low=1, high=100_000, paper="100 on MNIST, 500 on CIFAR-10"
    )
    query: str = option(
        "image", "what is asked for: the whole code of an image, or position: that of each cell",
        choices=("image", "position"),
    )  # fmt: skip
    similarity: str = option(
        "cosine", "of query and item: cosine, or dot, their product, as the authors' code has it",
        choices=SIMILARITIES, paper="cosine",
    )  # fmt: skip
    temperature: float = option(
        1.0, "what similarities are divided by before the softmax; below 1 the nearest items count "
        "for more", low=1e-4, high=100, paper="1",
    )  # fmt: skip
    shrinkage: float = option(
        0.0025, "lambda: weights up to it become 0; 0: none does", low=0, high=0.99,
        paper="1/N to 3/N",
    )  # fmt: skip
    entropy_weight: float = option(
        2e-4, "alpha, of the entropy of the weights", low=0, high=1e3, paper="2e-4"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network == "deep":
            scales(self.image_size, self.width, self.scales)
            return
        self.refuse_unused(("width", "scales"), f"network is {self.network}")
        if max(self.image_size) > _LARGEST_SMALL:
            raise OptionError(
                f"network={self.network}, image_size={self.image_size[0]},{self.image_size[1]}: "
                f"it is for sides of up to {_LARGEST_SMALL}.",
                hint="Use network=deep for larger images.",
            )


class Recalled(NamedTuple):
    """What is made of images, and the weights of the memory's items for each query."""

    made: Tensor
    weights: Tensor


class _Network(nn.Module):
    """x (B, C, H, W) in [-1, 1] -> `Recalled`."""

    def __init__(self, config: MemAEConfig) -> None:
        super().__init__()
        cfg = config
        if cfg.network == "deep":
            shapes = scales(cfg.image_size, cfg.width, cfg.scales)
            self.encoder: nn.Module = Encoder(cfg.channels, shapes)
            self.decoder: nn.Module = Decoder(cfg.channels, shapes, skip=False)
            shape = shapes[-1]
        else:
            small = SmallAutoencoder(cfg.image_size, cfg.network, channels=cfg.channels)
            self.encoder, self.decoder, shape = small.encoder, small.decoder, small.shape
        self.is_deep = cfg.network == "deep"
        rates = (1, 1, 1) if cfg.query == "image" else (shape[1], shape[2], 1)
        self.memory = BlockMemory(
            shape, rates, cfg.items, similarity=cfg.similarity, temperature=cfg.temperature,
            shrinkage=cfg.shrinkage,
        )  # fmt: skip

    def code(self, x: Tensor) -> Tensor:
        """E(x): (B, C, h, w)."""
        found: Tensor = self.encoder(x)[-1] if self.is_deep else self.encoder(x)
        return found

    def forward(self, x: Tensor) -> Recalled:
        values, weights = self.memory(self.code(x))
        return Recalled(self.decoder([values] if self.is_deep else values), weights)


class MemAE(Detector):
    """MemAE: A(x) = mean (x - G(zh))^2, zh what the memory answers for the code of x.

    Options as in `MemAEConfig`, same names and defaults.
    """

    id: ClassVar[str] = "memae"
    paper: ClassVar[str] = "Gong et al., ICCV 2019, arXiv 1904.02639"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = MemAEConfig
    config: MemAEConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = MemAEConfig.image_size,
        resize: str = MemAEConfig.resize,
        colors: str = MemAEConfig.colors,
        network: str = MemAEConfig.network,
        width: int = MemAEConfig.width,
        scales: int = MemAEConfig.scales,
        epochs: int = MemAEConfig.epochs,
        batch_size: int = MemAEConfig.batch_size,
        learning_rate: float = MemAEConfig.learning_rate,
        flips: str = MemAEConfig.flips,
        items: int = MemAEConfig.items,
        query: str = MemAEConfig.query,
        similarity: str = MemAEConfig.similarity,
        temperature: float = MemAEConfig.temperature,
        shrinkage: float = MemAEConfig.shrinkage,
        entropy_weight: float = MemAEConfig.entropy_weight,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(MemAEConfig(**options))
        self.networks: Any = None  # once there are some
        self.facts: dict[str, Any] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        split = Split.draw(images, run)
        self.networks = drawn(self._untrained, run.seed)
        history = train_reconstructor(
            self.networks, self._losses, self.config, split.data, run, job(self.config, run)
        )
        self.networks.requires_grad_(False)
        self.eval()
        watched = self._watched(split.data, run)
        self.facts = {"images": len(split.data), **history.facts(), **watched}
        return split.judged_by(self.forward, run)

    def _untrained(self) -> _Network:
        return _Network(self.config)

    def _losses(self, network: nn.Module, x: Tensor, rois: Tensor | None) -> dict[str, Tensor]:
        """mean (x - xh)^2 + alpha mean of the queries' entropies."""
        found: Recalled = network(x)
        error = mean_inside(error_map(x, found.made, rois), rois).mean()
        spread = entropy(found.weights.float()).mean()
        return {
            "loss": error + self.config.entropy_weight * spread,
            "reconstruction": error,
            "entropy": spread,
        }

    @torch.no_grad()
    def _watched(self, data: TrainingImages, run: Run) -> dict[str, float]:
        """How the memory is read for training images; warns where shrinking would leave nothing."""
        cfg, memory = self.config, self.networks.memory
        evenness, empty = Evenness(), 0.0
        for batch in islice(some_batches(data, cfg.batch_size, run.seed), WATCHED):
            weights = memory.memory.unshrunk(memory.divide(self.networks.code(cfg.prepared(batch))))
            empty += float(emptied(weights, cfg.shrinkage).sum())
            evenness.add(shrunk(weights, cfg.shrinkage) if cfg.shrinkage > 0 else weights)
        share = empty / evenness.count
        if cfg.shrinkage > 0 and share > 0:
            warn(
                run,
                f"For {share:.1%} of the queries no weight is above shrinkage={cfg.shrinkage}, so "
                "theirs were not shrunk. Lower shrinkage or temperature, or take similarity=dot.",
                TrainingWarning,
            )
        return {"entropy_share": evenness.share(), "unshrunk_share": round(share, 4)}

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        errors = error_map(x, self.networks(x).made, roi)
        return Prediction(mean_inside(errors, roi), errors)

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        return in_color(self.networks(self.config.prepared(ImageBatch(images, roi))).made)

    def summary(self) -> str:
        height, width = self.image_size
        return (
            f"memory of {self.config.items} items, images of {height} x {width} px, from "
            f"{self.facts['images']} images"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
