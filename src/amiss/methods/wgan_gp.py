"""WGAN-GP: a critic kept from growing steep by a penalty on its gradient, and what it says.

Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of Wasserstein GANs", NeurIPS
2017, arXiv 1704.00028.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from amiss.learning.adversarial import (
    CRITIC_IMAGES,
    Wasserstein,
    mean_answer,
    measured_diversity,
)
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
from amiss.nn.residual_gan import ResidualEncoder, ResidualGenerator
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction, UInt8


@dataclass(frozen=True, kw_only=True)
class WGANGPConfig(GenerativeConfig):
    """Options of WGAN-GP."""

    image_size: tuple[int, int] = option(
        (64, 64), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="64x64; 32x32; 28x28",
    )  # fmt: skip
    latent_dim: int = option(128, "d: values of a code", low=1, high=4096, paper="128")
    width: int = option(64, "channels of the first layer", low=2, high=512, paper="64")
    batch_size: int = option(64, "images of a step", low=2, high=4096, paper="64")
    network: str = option(
        "residual",
        "residual blocks, as the paper has them at 64 px; or convolutional: DCGAN's networks, the "
        "critic without norm",
        choices=("residual", "convolutional"),
        paper="residual at 64 px",
    )
    learning_rate: float = option(1e-4, "of Adam", low=1e-7, high=1, paper="1e-4")
    beta1: float = option(0.0, "of Adam", low=0, high=0.9999, paper="0")
    beta2: float = option(0.9, "of Adam", low=0, high=0.9999, paper="0.9")
    n_critic: int = option(5, "steps of the critic for one of G", low=1, high=1000, paper="5")
    penalty_weight: float = option(10.0, "lambda, of the penalty", low=0, high=1e6, paper="10")
    penalty: str = option(
        "two_sided", "two_sided: gradients shall be 1 long; one_sided: at most 1",
        choices=("two_sided", "one_sided"), paper="two_sided",
    )  # fmt: skip
    drift: float = option(0.0, "weight of E D(x)^2", low=0, high=100, paper="0")

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings(self.image_size)
        if self.penalty_weight == 0:
            self.refuse_unused(("penalty",), "penalty_weight is 0")


class WGANGP(Detector):
    """WGAN-GP: how much less the critic says of an image than of normal ones on average.

    A(x) = mean of D over up to 32,000 random training images, less D(x). A baseline: the critic
    learned to tell images from those of its own generator. Options as in `WGANGPConfig`, same names
    and defaults.
    """

    id: ClassVar[str] = "wgan_gp"
    paper: ClassVar[str] = "Gulrajani et al., NeurIPS 2017, arXiv 1704.00028"
    localizes: ClassVar[bool] = False
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = WGANGPConfig
    config: WGANGPConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = WGANGPConfig.image_size,
        resize: str = WGANGPConfig.resize,
        colors: str = WGANGPConfig.colors,
        latent_dim: int = WGANGPConfig.latent_dim,
        latent: str = WGANGPConfig.latent,
        width: int = WGANGPConfig.width,
        epochs: int = WGANGPConfig.epochs,
        batch_size: int = WGANGPConfig.batch_size,
        network: str = WGANGPConfig.network,
        learning_rate: float = WGANGPConfig.learning_rate,
        beta1: float = WGANGPConfig.beta1,
        beta2: float = WGANGPConfig.beta2,
        n_critic: int = WGANGPConfig.n_critic,
        penalty_weight: float = WGANGPConfig.penalty_weight,
        penalty: str = WGANGPConfig.penalty,
        drift: float = WGANGPConfig.drift,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(WGANGPConfig(**options))
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
        if cfg.network == "convolutional":
            return Pair(
                cfg.maker(ConvGenerator(cfg.image_size, cfg.latent_dim, **shape)),
                ConvEncoder(cfg.image_size, 1, has_norm=False, **shape),
            )
        return Pair(
            cfg.maker(ResidualGenerator(cfg.image_size, cfg.latent_dim, **shape)),
            ResidualEncoder(cfg.image_size, 1, norm="layer", **shape),
        )

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        cfg, networks = self.config, self.networks
        rules = Wasserstein(
            cfg.learning_rate, "adam", betas=(cfg.beta1, cfg.beta2), n_critic=cfg.n_critic,
            penalty=cfg.penalty_weight, penalty_kind=cfg.penalty, drift=cfg.drift,
        )  # fmt: skip
        history = rules.train(
            cfg.duel(networks, data),
            run,
            job(cfg, run),
        )
        return {
            **history.facts(),
            "sample_diversity": measured_diversity(networks.maker, data, cfg.prepared, run),
            "mean_answer": mean_answer(
                networks.critic, data, cfg.prepared, run, count=CRITIC_IMAGES
            ),
        }

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        return Prediction(self.facts["mean_answer"] - self.networks.critic(x)[:, 0], None)

    def score_scale(self) -> float:
        return abs(float(self.facts["mean_answer"]))

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> UInt8:
        self.require_fitted()
        return sampled(self.networks.maker, n, seed, start)

    def pictures(self) -> list[tuple[int, UInt8]]:
        self.require_fitted()
        return taken(self.networks.maker)

    def summary(self) -> str:
        height, width = self.image_size
        return f"critic of {height} x {width} px, from {self.facts['images']} images"

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
