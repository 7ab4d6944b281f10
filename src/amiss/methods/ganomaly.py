"""GANomaly: an image whose code changes when it is made again was not among the normal ones.

Akcay, Atapour-Abarghouei, Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial
Training", ACCV 2018, arXiv 1805.06725.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from amiss.learning.adversarial import adam, tell_moves
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.learning.settling import settle_on_images
from amiss.learning.trained import (
    Split,
    TrainedConfig,
    drawn,
    in_color,
    one_by_one,
    restored,
    stored,
)
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.gan import ConvEncoder, ConvGenerator, halvings, init_weights
from amiss.nn.losses import discriminator_loss, norms
from amiss.nn.roi import inside
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import Loop, Losses, Player, steps_of, train
from amiss.types import Prediction

_FOOLED_NOBODY = 1e-5  # the loss of a discriminator that is made anew by the code


@dataclass(frozen=True, kw_only=True)
class GANomalyConfig(TrainedConfig):
    """Options of GANomaly."""

    image_size: tuple[int, int] = option(
        (32, 32), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="32x32 and 64x64",
    )  # fmt: skip
    variant: str = option(
        "paper",
        "paper: norms as the formulas have them; code: mean absolute and squared differences, and "
        "a discriminator that is made anew when it has won",
        choices=("paper", "code"),
        paper="paper",
    )
    latent_dim: int = option(100, "values of a code", low=1, high=4096, paper="100")
    width: int = option(64, "channels of the first layer", low=2, high=512, paper="64")
    extra_layers: int = option(
        0, "further 3 x 3 layers of encoders and decoder", low=0, high=8, paper="0"
    )
    epochs: int = option(
        15,
        "passes over the training images, each of whole batches; the code: 15",
        low=1,
        high=100_000,
    )
    batch_size: int = option(64, "images of a step; the code: 64", low=2, high=4096)
    learning_rate: float = option(2e-4, "of Adam; the code: 2e-4", low=1e-7, high=1)
    adv_weight: float = option(1.0, "of L_adv", low=0, high=1e6, paper="1")
    con_weight: float = option(50.0, "of L_con", low=0, high=1e6, paper="50")
    enc_weight: float = option(1.0, "of L_enc", low=0, high=1e6, paper="1")

    def __post_init__(self) -> None:
        super().__post_init__()
        halvings(self.image_size)


class Made(NamedTuple):
    """x (B, C, H, W): its code z (B, d), made again from that, xh, and the code of this, zh."""

    code: Tensor
    reconstruction: Tensor
    code_again: Tensor


def _shape(config: GANomalyConfig) -> dict[str, Any]:
    return {
        "channels": config.channels,
        "width": config.width,
        "extra_layers": config.extra_layers,
    }


class Autoencoder(nn.Module):
    """G_E, G_D and E: what GANomaly calls its generator, and the second encoder.

    x (B, C, H, W) in [-1, 1] -> `Made`.
    """

    def __init__(self, config: GANomalyConfig) -> None:
        super().__init__()
        size, dim, shape = config.image_size, config.latent_dim, _shape(config)
        self.encoder = ConvEncoder(size, dim, **shape)  # G_E
        self.decoder = ConvGenerator(size, dim, **shape)  # G_D
        self.second_encoder = ConvEncoder(size, dim, **shape)  # E

    def forward(self, x: Tensor) -> Made:
        code = self.encoder(x)
        again = self.decoder(code)
        return Made(code, again, self.second_encoder(again))


class GANomaly(Detector):
    """GANomaly: the distance of an image's code from the code of what is made of it.

    Options as in `GANomalyConfig`, same names and defaults.
    """

    id: ClassVar[str] = "ganomaly"
    paper: ClassVar[str] = "Akcay et al., ACCV 2018, arXiv 1805.06725"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = GANomalyConfig
    config: GANomalyConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = GANomalyConfig.image_size,
        resize: str = GANomalyConfig.resize,
        variant: str = GANomalyConfig.variant,
        colors: str = GANomalyConfig.colors,
        latent_dim: int = GANomalyConfig.latent_dim,
        width: int = GANomalyConfig.width,
        extra_layers: int = GANomalyConfig.extra_layers,
        epochs: int = GANomalyConfig.epochs,
        batch_size: int = GANomalyConfig.batch_size,
        learning_rate: float = GANomalyConfig.learning_rate,
        adv_weight: float = GANomalyConfig.adv_weight,
        con_weight: float = GANomalyConfig.con_weight,
        enc_weight: float = GANomalyConfig.enc_weight,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(GANomalyConfig(**options))
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

    def _untrained(self) -> Autoencoder:
        return Autoencoder(self.config)

    def _discriminator(self) -> ConvEncoder:
        return ConvEncoder(self.image_size, 1, **_shape(self.config))

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        """Generator and second encoder against the discriminator."""
        cfg = self.config
        discriminator = drawn(self._discriminator, run.seed, 1)
        players = {
            name: Player(network, adam(network, cfg.learning_rate, (0.5, 0.999)))
            for name, network in (("generator", self.networks), ("discriminator", discriminator))
        }

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            x = self.config.prepared(batch)
            made: Made = loop.networks["generator"](x)
            losses = self._losses(loop, x, made, batch.rois)
            loop.backward(losses["loss"])
            loop.update("generator")
            judge = loop.networks["discriminator"]
            loss = discriminator_loss(
                judge(x), judge(inside(made.reconstruction, batch.rois).detach())
            )
            loop.backward(loss / 2 if cfg.variant == "code" else loss)
            loop.update("discriminator")
            if cfg.variant == "code" and self._has_won(loop, loss):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(run.seed + loop.step)  # alike in all processes
                    init_weights(discriminator)
            reported = {name: value.detach() for name, value in losses.items()}
            return reported | {"discriminator": loss.detach()}

        tell_moves(run, "training", steps_of(len(data), cfg.epochs, cfg.batch_size))
        history = train(
            players, data, step, epochs=cfg.epochs, batch_size=cfg.batch_size, run=run,
            job=cfg.as_dict() | {"seed": run.seed},
        )  # fmt: skip
        settle_on_images(self.networks, data, cfg.prepared, cfg.batch_size, run)
        return history.facts()

    def _has_won(self, loop: Loop, loss: Tensor) -> bool:
        """Whether all processes together say that the discriminator knows everything."""
        mean = loop.fabric.all_reduce(loss.detach())
        assert isinstance(mean, Tensor)
        return float(mean) / 2 < _FOOLED_NOBODY

    def _losses(self, loop: Loop, x: Tensor, made: Made, rois: Tensor | None) -> dict[str, Tensor]:
        """L_adv, L_con, L_enc and their weighted sum, the means over the batch."""
        cfg = self.config
        seen = inside(made.reconstruction, rois)
        with loop.frozen("discriminator") as judge:
            assert isinstance(judge, ConvEncoder)
            with torch.no_grad():
                wanted = judge.features(x)
            apart = judge.features(seen) - wanted
        coded = made.code - made.code_again
        if cfg.variant == "code":
            adversarial = apart.float().square().mean()
            contextual = (x - seen).float().abs().mean()
            encoded = coded.float().square().mean()
        else:
            adversarial = norms(apart, 2).mean()
            contextual = norms(x - seen, 1).mean()
            encoded = norms(coded, 2).mean()
        loss = cfg.adv_weight * adversarial + cfg.con_weight * contextual + cfg.enc_weight * encoded
        return {"loss": loss, "adversarial": adversarial, "contextual": contextual,
                "encoded": encoded}  # fmt: skip

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        made: Made = self.networks(x)
        coded = made.code - made.code_again
        score = coded.square().mean(1) if self.config.variant == "code" else coded.abs().sum(1)
        return Prediction(score, (x - inside(made.reconstruction, roi)).abs().mean(1))

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        made: Made = self.networks(self.config.prepared(ImageBatch(images, roi)))
        return in_color(made.reconstruction)

    def summary(self) -> str:
        height, width = self.image_size
        return f"codes of {self.config.latent_dim} values of {height} x {width} px, from " + (
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
