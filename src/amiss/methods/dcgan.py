"""DCGAN: a generator of images, and its discriminator as the plainest of all detectors.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks", ICLR 2016, arXiv 1511.06434.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from amiss.learning.adversarial import LATENTS, Logarithmic, measured_diversity
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.learning.trained import (
    GenerativeConfig,
    Pair,
    Split,
    drawn,
    job,
    one_by_one,
    restored,
    sampled,
    stored,
    taken,
)
from amiss.learning.training_images import TrainingImages
from amiss.methods.base import Detector
from amiss.nn.gan import ConvEncoder, ConvGenerator, halvings
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction, UInt8


@dataclass(frozen=True, kw_only=True)
class DCGANConfig(GenerativeConfig):
    """Options of DCGAN."""

    image_size: tuple[int, int] = option(
        (64, 64), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="64x64",
    )  # fmt: skip
    latent_dim: int = option(100, "d: values of a code", low=1, high=4096, paper="100")
    latent: str = option(
        "normal", "prior of a code: N(0, 1), or uniform, U(-1, 1)", choices=LATENTS,
        paper="uniform",
    )  # fmt: skip
    width: int = option(64, "channels of the first layer", low=2, high=512, paper="128")
    batch_size: int = option(64, "images of a step", low=2, high=4096, paper="128")
    learning_rate: float = option(2e-4, "of Adam", low=1e-7, high=1, paper="2e-4")
    beta1: float = option(0.5, "of Adam", low=0, high=0.9999, paper="0.5")
    generator_loss: str = option(
        "nonsaturating",
        "what the generator descends: -log D(G(z)), as all code does, or minimax, "
        "log(1 - D(G(z))), as the formula has it",
        choices=("nonsaturating", "minimax"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings(self.image_size)


class DCGAN(Detector):
    """DCGAN: -logit of D(x), of a discriminator that learned to tell images from made ones.

    It was never shown anything amiss, and what it learned to see are the faults of a generator: a
    baseline. Options as in `DCGANConfig`, same names and defaults.
    """

    id: ClassVar[str] = "dcgan"
    paper: ClassVar[str] = "Radford et al., ICLR 2016, arXiv 1511.06434"
    localizes: ClassVar[bool] = False
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = DCGANConfig
    config: DCGANConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = DCGANConfig.image_size,
        resize: str = DCGANConfig.resize,
        colors: str = DCGANConfig.colors,
        latent_dim: int = DCGANConfig.latent_dim,
        latent: str = DCGANConfig.latent,
        width: int = DCGANConfig.width,
        epochs: int = DCGANConfig.epochs,
        batch_size: int = DCGANConfig.batch_size,
        learning_rate: float = DCGANConfig.learning_rate,
        beta1: float = DCGANConfig.beta1,
        generator_loss: str = DCGANConfig.generator_loss,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(DCGANConfig(**options))
        self.networks: Any = None  # once there are some
        self.facts: dict[str, Any] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        split = Split.draw(images, run)
        self.networks = drawn(self._untrained, run.seed)
        self.facts = {"images": len(split.data), **self._train(split.data, run)}
        self.networks.requires_grad_(False)
        self.eval()
        return split.judged_by(self.forward, run)

    def _untrained(self) -> Pair:
        cfg = self.config
        shape: dict[str, Any] = {"channels": cfg.channels, "width": cfg.width}
        generator = ConvGenerator(cfg.image_size, cfg.latent_dim, **shape)
        return Pair(cfg.maker(generator), ConvEncoder(cfg.image_size, 1, **shape))

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        cfg, networks = self.config, self.networks
        rules = Logarithmic(cfg.learning_rate, (cfg.beta1, 0.999), cfg.generator_loss)
        history = rules.train(
            cfg.duel(networks, data),
            run,
            job(cfg, run),
        )
        spread = measured_diversity(networks.maker, data, cfg.prepared, run)
        return {**history.facts(), "sample_diversity": spread}

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        # As log D(x) ranks, and without its end, where many images would have the same score.
        return Prediction(-self.networks.critic(x)[:, 0], None)

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> UInt8:
        self.require_fitted()
        return sampled(self.networks.maker, n, seed, start)

    def pictures(self) -> list[tuple[int, UInt8]]:
        self.require_fitted()
        return taken(self.networks.maker)

    def summary(self) -> str:
        height, width = self.image_size
        return f"discriminator of {height} x {width} px, from {self.facts['images']} images"

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
