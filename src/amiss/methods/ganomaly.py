"""GANomaly: an image whose code changes when it is made again was not among the normal ones.

Akcay, Atapour-Abarghouei, Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial
Training", ACCV 2018, arXiv 1805.06725.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amiss.errors import DataError
from amiss.learning.held_out import HeldOut, draw_held_out, score_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.gan import ConvEncoder, ConvGenerator, halvings, init_weights
from amiss.nn.levels import as_gray, as_input
from amiss.nn.losses import discriminator_loss, norms
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import Loop, Losses, Player, require_device, train
from amiss.types import Prediction

_FOOLED_NOBODY = 1e-5  # the loss of a discriminator that is made anew by the code


@dataclass(frozen=True, kw_only=True)
class GANomalyConfig(Config):
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
    colors: str = option(
        "rgb", "what of an image is learned: rgb, or gray, its mean", choices=("rgb", "gray")
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
        "channels": 1 if config.colors == "gray" else 3,
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
        self.networks: Autoencoder | None = None
        self.facts: dict[str, Any] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        require_device(run)
        apart = draw_held_out(images.groups().tolist(), run.seed)
        mine = np.setdiff1d(np.arange(len(images)), apart)
        if not len(apart) or len(mine) < 2:
            raise DataError(
                f"{len(images)} images cannot be trained on and kept apart as well.",
                hint="Give at least three different normal images.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            self.networks = Autoencoder(self.config)
            discriminator = self._discriminator()
        data = TrainingImages(images, mine, run)
        self.facts = {"images": len(mine), **self._train(data, discriminator, run)}
        self.networks.requires_grad_(False)
        self.eval()
        return score_held_out(self.forward, images, apart, run, told_held_out(apart, images))

    def _discriminator(self) -> ConvEncoder:
        return ConvEncoder(self.image_size, 1, **_shape(self.config))

    def _train(self, data: TrainingImages, discriminator: ConvEncoder, run: Run) -> dict[str, Any]:
        """Generator and second encoder against the discriminator; the facts of it."""
        cfg, networks = self.config, self.networks
        assert networks is not None
        players = {
            name: Player(
                network,
                torch.optim.Adam(network.parameters(), lr=cfg.learning_rate, betas=(0.5, 0.999)),
            )
            for name, network in (("generator", networks), ("discriminator", discriminator))
        }

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            x = self._input(batch.images, batch.rois)
            made: Made = loop.networks["generator"](x)
            losses = self._losses(loop, x, made, batch.rois)
            loop.backward(losses["loss"])
            loop.update("generator")
            judge = loop.networks["discriminator"]
            loss = discriminator_loss(judge(x), judge(self._seen(made, batch.rois).detach()))
            loop.backward(loss / 2 if cfg.variant == "code" else loss)
            loop.update("discriminator")
            if cfg.variant == "code" and self._has_won(loop, loss):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(run.seed + loop.step)  # alike in all processes
                    init_weights(discriminator)
            reported = {name: value.detach() for name, value in losses.items()}
            return reported | {"discriminator": loss.detach()}

        history = train(
            players, data, step, epochs=cfg.epochs, batch_size=cfg.batch_size, run=run,
            job=cfg.as_dict() | {"seed": run.seed},
        )  # fmt: skip
        return history.facts()

    def _has_won(self, loop: Loop, loss: Tensor) -> bool:
        """Whether all processes together say that the discriminator knows everything."""
        mean = loop.fabric.all_reduce(loss.detach())
        assert isinstance(mean, Tensor)
        return float(mean) / 2 < _FOOLED_NOBODY

    def _losses(self, loop: Loop, x: Tensor, made: Made, rois: Tensor | None) -> dict[str, Tensor]:
        """L_adv, L_con, L_enc and their weighted sum, the means over the batch."""
        cfg = self.config
        seen = self._seen(made, rois)
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

    def _input(self, images: Tensor, rois: Tensor | None) -> Tensor:
        """Levels -> x (B, C, H, W) in [-1, 1], 0 outside the regions of interest."""
        x = as_input(images)
        if self.config.colors == "gray":
            x = as_gray(x)
        return x if rois is None else x * rois[:, None]

    def _seen(self, made: Made, rois: Tensor | None) -> Tensor:
        """What was made, 0 outside the regions of interest as the image is."""
        again = made.reconstruction
        return again if rois is None else again * rois[:, None]

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        # One by one: no score depends on batch-mates in its last bit. An exported graph must not
        # ask for the size of its batch.
        if torch.compiler.is_compiling():
            return self._judged(images, roi)
        rois = [None] * len(images) if roi is None else roi.split(1)
        found = [self._judged(x, r) for x, r in zip(images.split(1), rois, strict=True)]
        maps = [one.anomaly_map for one in found if one.anomaly_map is not None]
        return Prediction(torch.cat([one.score for one in found]), torch.cat(maps))

    def _judged(self, images: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        assert self.networks is not None
        x = self._input(images, roi)
        made: Made = self.networks(x)
        coded = made.code - made.code_again
        score = coded.square().mean(1) if self.config.variant == "code" else coded.abs().sum(1)
        return Prediction(score, (x - self._seen(made, roi)).abs().mean(1))

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
        assert self.networks is not None
        tensors = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        return {"training": self.facts}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        with torch.random.fork_rng(devices=[]):
            networks = Autoencoder(self.config).requires_grad_(False)
        networks.load_state_dict({k.removeprefix("networks."): v for k, v in tensors.items()})
        self.networks = networks.eval()
        self.facts = dict(facts["training"])
