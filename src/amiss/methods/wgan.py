"""WGAN: a generator led by an estimate of the Wasserstein distance, and its critic as a detector.

Arjovsky, Chintala, Bottou, "Wasserstein GAN", ICML 2017, arXiv 1701.07875.
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
from amiss.options import Config, option
from amiss.run import Run
from amiss.types import Prediction, UInt8


@dataclass(frozen=True, kw_only=True)
class WGANConfig(GenerativeConfig):
    """Options of WGAN."""

    image_size: tuple[int, int] = option(
        (64, 64), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="64x64",
    )  # fmt: skip
    batch_size: int = option(64, "images of a step", low=2, high=4096, paper="64")
    optimizer: str = option(
        "rmsprop", "rmsprop; or adam, of 0.5 and 0.999, which the paper advises against",
        choices=("rmsprop", "adam"), paper="rmsprop",
    )  # fmt: skip
    learning_rate: float = option(5e-5, "of the optimizer", low=1e-7, high=1, paper="5e-5")
    n_critic: int = option(5, "steps of the critic for one of G", low=1, high=1000, paper="5")
    clip: float = option(
        0.01, "every weight of the critic is cut to [-clip, clip]", low=1e-6, high=10, paper="0.01"
    )
    warm_critic: bool = option(
        False, "100 steps of the critic for each of the first 25 of G and for every 500th, as in "
        "the authors' code",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings(self.image_size)


class WGAN(Detector):
    """WGAN: how much less the critic says of an image than of normal ones on average.

    A(x) = mean of D over up to 32,000 random training images, less D(x). A baseline: the critic
    learned to tell images from those of its own generator. Options as in `WGANConfig`, same names
    and defaults.
    """

    id: ClassVar[str] = "wgan"
    paper: ClassVar[str] = "Arjovsky et al., ICML 2017, arXiv 1701.07875"
    localizes: ClassVar[bool] = False
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = WGANConfig
    config: WGANConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = WGANConfig.image_size,
        resize: str = WGANConfig.resize,
        colors: str = WGANConfig.colors,
        latent_dim: int = WGANConfig.latent_dim,
        latent: str = WGANConfig.latent,
        width: int = WGANConfig.width,
        epochs: int = WGANConfig.epochs,
        batch_size: int = WGANConfig.batch_size,
        optimizer: str = WGANConfig.optimizer,
        learning_rate: float = WGANConfig.learning_rate,
        n_critic: int = WGANConfig.n_critic,
        clip: float = WGANConfig.clip,
        warm_critic: bool = WGANConfig.warm_critic,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(WGANConfig(**options))
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
        rules = Wasserstein(
            cfg.learning_rate, cfg.optimizer, betas=(0.5, 0.999), n_critic=cfg.n_critic,
            clip=cfg.clip, warm=cfg.warm_critic,
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
