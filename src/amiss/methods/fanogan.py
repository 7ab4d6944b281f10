"""f-AnoGAN: an encoder that takes an image to the code of the closest one a WGAN-GP can make.

Schlegl, Seeböck, Waldstein, Langs, Schmidt-Erfurth, "f-AnoGAN: Fast Unsupervised Anomaly Detection
with Generative Adversarial Networks", Medical Image Analysis 54, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amiss.learning.adversarial import (
    CRITIC_IMAGES,
    LATENTS,
    Wasserstein,
    mean_answer,
    measured_diversity,
    settling_codes,
)
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.learning.reconstruction import flipped
from amiss.learning.settling import batch_count, settle, settle_on_images, some_batches
from amiss.learning.trained import (
    GenerativeConfig,
    Pair,
    Split,
    drawn,
    in_color,
    job,
    one_by_one,
    restored,
    sampled,
    stored,
    taken,
)
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.gan import halvings
from amiss.nn.residual_gan import ResidualEncoder, ResidualGenerator
from amiss.nn.roi import inside
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import History, Loop, Losses, Player, train
from amiss.types import Prediction, UInt8

SCORES = ("izi_f", "izi", "feature", "z", "latent", "critic")
_OF_ENCODER = ("encoder_training", "encoder_epochs", "encoder_learning_rate", "bound")
_OF_SCORE = ("score", "score_kappa")
_BOUND_TIMES = 3.0  # of tanh3, and where clip cuts


@dataclass(frozen=True, kw_only=True)
class FAnoGANConfig(GenerativeConfig):
    """Options of f-AnoGAN."""

    image_size: tuple[int, int] = option(
        (64, 64), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="64x64",
    )  # fmt: skip
    colors: str = option(
        "rgb", "what of an image is learned: rgb, or gray, its mean", choices=("rgb", "gray"),
        paper="gray",
    )  # fmt: skip
    latent_dim: int = option(128, "d: values of a code", low=1, high=4096, paper="128")
    latent: str = option(
        "normal", "prior of a code: N(0, 1), or uniform, U(-1, 1)", choices=LATENTS,
        paper="normal",
    )  # fmt: skip
    width: int = option(64, "channels of the first layer", low=2, high=512, paper="64")
    batch_size: int = option(64, "images of a step", low=2, high=4096, paper="64")
    epochs: int = option(
        7, "passes over the training images of generator and critic", low=1, high=100_000,
        paper="7, of 270,000 patches",
    )  # fmt: skip
    learning_rate: float = option(1e-4, "of their Adam", low=1e-7, high=1, paper="1e-4")
    beta1: float = option(0.0, "of it", low=0, high=0.9999, paper="0")
    beta2: float = option(0.9, "of it", low=0, high=0.9999, paper="0.9")
    n_critic: int = option(5, "steps of the critic for one of G", low=1, high=1000, paper="5")
    penalty_weight: float = option(10.0, "of the penalty", low=0, high=1e6, paper="10")
    flip: bool = option(
        False, "mirror training images at random, where left and right are alike",
        paper="yes, of retinas",
    )  # fmt: skip
    encoder_training: str = option(
        "izi_f",
        "what E learns: izi_f, image and features made again; izi, the image alone; ziz, codes of "
        "made images",
        choices=("izi_f", "izi", "ziz"),
        paper="izi_f",
    )
    encoder_epochs: int = option(
        10, "passes over the training images of the encoder", low=1, high=100_000,
        paper="50,000 steps",
    )  # fmt: skip
    encoder_learning_rate: float = option(
        5e-5, "of the encoder's RMSprop", low=1e-7, high=1, paper="5e-5"
    )
    kappa: float = option(1.0, "of the features in what E learns", low=0, high=1e6, paper="1")
    bound: str = option(
        "tanh", "what keeps codes of E in bounds: tanh; tanh3, three times that; clip, to "
        "[-3, 3]; none", choices=("tanh", "tanh3", "clip", "none"), paper="tanh",
    )  # fmt: skip
    score: str = option(
        "izi_f",
        "izi_f: A_R + kappa A_D; izi: A_R; feature: A_D; z: the mean squared distance of the code "
        "from that of what is made again; latent: its sum + kappa A_D; critic: mean D of training "
        "images less D(x)",
        choices=SCORES,
        paper="izi_f",
    )
    score_kappa: float = option(1.0, "kappa of the score", low=0, high=1e6, paper="1")

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings(self.image_size)
        if self.encoder_training != "izi_f":
            self.refuse_unused(("kappa",), f"encoder_training is {self.encoder_training}")
        if self.score not in ("izi_f", "latent"):
            self.refuse_unused(("score_kappa",), f"score is {self.score}")


class FAnoGAN(Detector):
    """f-AnoGAN: A(x) = (1/n) ||x - G(E(x))||^2 + kappa (1/n_d) ||f(x) - f(G(E(x)))||^2.

    Options as in `FAnoGANConfig`, same names and defaults.
    """

    id: ClassVar[str] = "fanogan"
    paper: ClassVar[str] = "Schlegl et al., Medical Image Analysis 2019"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = FAnoGANConfig
    config: FAnoGANConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = FAnoGANConfig.image_size,
        resize: str = FAnoGANConfig.resize,
        colors: str = FAnoGANConfig.colors,
        latent_dim: int = FAnoGANConfig.latent_dim,
        latent: str = FAnoGANConfig.latent,
        width: int = FAnoGANConfig.width,
        epochs: int = FAnoGANConfig.epochs,
        batch_size: int = FAnoGANConfig.batch_size,
        learning_rate: float = FAnoGANConfig.learning_rate,
        beta1: float = FAnoGANConfig.beta1,
        beta2: float = FAnoGANConfig.beta2,
        n_critic: int = FAnoGANConfig.n_critic,
        penalty_weight: float = FAnoGANConfig.penalty_weight,
        flip: bool = FAnoGANConfig.flip,
        encoder_training: str = FAnoGANConfig.encoder_training,
        encoder_epochs: int = FAnoGANConfig.encoder_epochs,
        encoder_learning_rate: float = FAnoGANConfig.encoder_learning_rate,
        kappa: float = FAnoGANConfig.kappa,
        bound: str = FAnoGANConfig.bound,
        score: str = FAnoGANConfig.score,
        score_kappa: float = FAnoGANConfig.score_kappa,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(FAnoGANConfig(**options))
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
        return Pair(
            cfg.maker(ResidualGenerator(cfg.image_size, cfg.latent_dim, **shape)),
            ResidualEncoder(cfg.image_size, 1, norm="layer", **shape),
            encoder=ResidualEncoder(cfg.image_size, cfg.latent_dim, norm="batch", **shape),
        )

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        cfg, networks = self.config, self.networks
        rules = Wasserstein(
            cfg.learning_rate, "adam", betas=(cfg.beta1, cfg.beta2), n_critic=cfg.n_critic,
            penalty=cfg.penalty_weight,
        )  # fmt: skip
        first = rules.train(
            cfg.duel(networks, data, self._augmented), run.stage("generator"),
            job(cfg, run, "generator", without=("kappa", *_OF_ENCODER, *_OF_SCORE)), "generator",
        )  # fmt: skip
        spread = measured_diversity(networks.maker, data, cfg.prepared, run)
        second = self._train_encoder(data, run)
        found, of_encoder = first.facts(), second.facts()
        losses = {**found["losses"], **{f"encoder {k}": v for k, v in second.losses.items()}}
        return {
            "losses": losses,
            "training_seconds": round(first.seconds + second.seconds, 3),
            "encoder_seconds": of_encoder["training_seconds"],
            "images_per_second": found["images_per_second"],
            "sample_diversity": spread,
            **self._of_critic(data, run),
        }

    def _of_critic(self, data: TrainingImages, run: Run) -> dict[str, float]:
        """What the score of the critic needs, where that is asked for."""
        cfg, critic = self.config, self.networks.critic
        if cfg.score != "critic":
            return {}
        return {"mean_answer": mean_answer(critic, data, cfg.prepared, run, count=CRITIC_IMAGES)}

    def _augmented(self, batch: ImageBatch) -> ImageBatch:
        """Each image, its region with it, mirrored or not by chance, where that is asked for."""
        return flipped(batch, "horizontal" if self.config.flip else "none")

    def _train_encoder(self, data: TrainingImages, run: Run) -> History:
        """Stage 2: E learns, G and D stay as they are and let gradients through."""
        cfg, networks = self.config, self.networks
        for frozen in (networks.maker, networks.critic):
            frozen.eval().requires_grad_(False)
        optimizer = torch.optim.RMSprop(
            networks.encoder.parameters(), lr=cfg.encoder_learning_rate, alpha=0.9, eps=1e-10
        )

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            encoder: nn.Module = loop.networks["encoder"]
            device = loop.fabric.device
            networks.maker.to(device)
            networks.critic.to(device)
            batch = self._augmented(batch)
            x = cfg.prepared(batch)
            with loop.fabric.autocast():
                loss, reported = self._encoder_loss(encoder, x, batch.rois)
            loop.backward(loss)
            loop.update("encoder")
            return {"loss": loss.detach(), **{k: v.detach() for k, v in reported.items()}}

        history = train(
            {"encoder": Player(networks.encoder, optimizer)}, data, step,
            epochs=cfg.encoder_epochs, batch_size=cfg.batch_size, run=run.stage("encoder"),
            job=job(cfg, run, "encoder", without=_OF_SCORE), stage="encoder",
        )  # fmt: skip
        networks.maker.cpu()
        networks.critic.cpu()
        self._settle_encoder(data, run)
        return history

    def _settle_encoder(self, data: TrainingImages, run: Run) -> None:
        """On what the encoder learned from: training images, or made ones."""
        cfg, encoder, maker = self.config, self.networks.encoder, self.networks.maker
        if cfg.encoder_training != "ziz":
            settle_on_images(encoder, data, cfg.prepared, cfg.batch_size, run)
            return
        codes = settling_codes(maker, data, cfg.batch_size, run)
        images = some_batches(data, cfg.batch_size, run.seed)
        made = ((inside(maker(z), batch.rois),) for (z,), batch in zip(codes, images, strict=True))
        settle(encoder, made, batch_count(data, cfg.batch_size), run)

    def _encoder_loss(
        self, encoder: nn.Module, x: Tensor, rois: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_izi + kappa L_D, or L_ziz; and its parts by name."""
        cfg, networks = self.config, self.networks
        if cfg.encoder_training == "ziz":
            codes = networks.maker.draw(len(x), like=x)
            again = self._bounded(encoder(inside(networks.maker(codes), rois)))
            return (again - codes).float().square().mean(), {}
        made = inside(networks.maker(self._bounded(encoder(x))), rois)
        image = (x - made).float().square().mean()
        if cfg.encoder_training == "izi":
            return image, {}
        critic = networks.critic
        features = (critic.features(x) - critic.features(made)).float().square().mean()
        return image + cfg.kappa * features, {"image": image, "features": features}

    def _bounded(self, codes: Tensor) -> Tensor:
        """What E says (B, d), within the bound."""
        if self.config.bound == "clip":
            return codes.clamp(-_BOUND_TIMES, _BOUND_TIMES)
        if self.config.bound == "none":
            return codes
        return codes.tanh() * (1.0 if self.config.bound == "tanh" else _BOUND_TIMES)

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        networks = self.networks
        code = self._bounded(networks.encoder(x))
        made = inside(networks.maker(code), roi)
        return Prediction(self._score(x, code, made), (x - made).abs().mean(1))

    def _score(self, x: Tensor, code: Tensor, made: Tensor) -> Tensor:
        """(B,), as `score` says, of images, their codes and what is made of these."""
        cfg = self.config
        if cfg.score == "critic":
            below: Tensor = self.facts["mean_answer"] - self.networks.critic(x)[:, 0]
            return below
        if cfg.score == "izi":
            return self._residual(x, made)
        if cfg.score == "feature":
            return self._apart(x, made)
        if cfg.score == "izi_f":
            return self._residual(x, made) + cfg.score_kappa * self._apart(x, made)
        apart = self._code_distance(code, made)
        if cfg.score == "z":
            return apart.mean(1)
        return apart.sum(1) + cfg.score_kappa * self._apart(x, made)

    @staticmethod
    def _residual(x: Tensor, made: Tensor) -> Tensor:
        """A_R = (1/n) ||x - G(E(x))||^2, (B,)."""
        return (x - made).square().mean((1, 2, 3))

    def _apart(self, x: Tensor, made: Tensor) -> Tensor:
        """A_D = (1/n_d) ||f(x) - f(G(E(x)))||^2, (B,)."""
        critic = self.networks.critic
        found: Tensor = (critic.features(x) - critic.features(made)).square().mean(1)
        return found

    def _code_distance(self, code: Tensor, made: Tensor) -> Tensor:
        """(E(x) - E(G(E(x))))^2, value by value (B, d)."""
        return (code - self._bounded(self.networks.encoder(made))).square()

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        networks = self.networks
        code = self._bounded(networks.encoder(self.config.prepared(ImageBatch(images, roi))))
        return in_color(networks.maker(code))

    def score_scale(self) -> float:
        return abs(float(self.facts["mean_answer"])) if self.config.score == "critic" else 0.0

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> UInt8:
        self.require_fitted()
        return sampled(self.networks.maker, n, seed, start)

    def pictures(self) -> list[tuple[int, UInt8]]:
        self.require_fitted()
        return taken(self.networks.maker)

    def summary(self) -> str:
        height, width = self.image_size
        return (
            f"encoder and generator of {height} x {width} px and codes of "
            f"{self.config.latent_dim} values, from {self.facts['images']} images"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
