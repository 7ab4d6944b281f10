"""EGBAD: a generator and an encoder that learn to undo one another, and what they cannot.

Zenati, Foo, Lecouat, Manek, Chandrasekhar, "Efficient GAN-Based Anomaly Detection", 2018,
arXiv 1802.06222.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.errors import OptionError
from amiss.learning.adversarial import (
    Maker,
    adam,
    measured_diversity,
    settle_on_codes,
    tell_moves,
)
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
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
from amiss.nn.bigan import Averaged, PairDiscriminator, SmallEncoder, SmallGenerator, quarter
from amiss.nn.gan import ConvEncoder, ConvGenerator, halvings
from amiss.nn.losses import discriminator_loss, generator_loss
from amiss.nn.roi import inside
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import Loop, Losses, Player, steps_of, train
from amiss.types import Prediction, UInt8

_LARGEST_SMALL = 64  # side of an image for the networks of MNIST
_FIRST_LEFT = 0.01  # of the running mean: a larger share of first weights is told


@dataclass(frozen=True, kw_only=True)
class EGBADConfig(GenerativeConfig):
    """Options of EGBAD."""

    image_size: tuple[int, int] = option(
        (28, 28), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="28x28",
    )  # fmt: skip
    network: str = option(
        "small",
        "small: the authors' networks for MNIST; or deep: DCGAN's, for larger images",
        choices=("small", "deep"),
        paper="small",
    )
    latent_dim: int = option(200, "d: values of a code", low=1, high=4096, paper="200")
    width: int = option(
        64, "channels of the first layer, of small networks the discriminator's", low=2, high=512,
        paper="64",
    )  # fmt: skip
    epochs: int = option(
        100, "passes over the training images, each of whole batches", low=1, high=100_000
    )
    batch_size: int = option(100, "images of a step", low=2, high=4096, paper="100")
    learning_rate: float = option(1e-5, "of every Adam", low=1e-7, high=1, paper="1e-5")
    beta1: float = option(0.5, "of it", low=0, high=0.9999, paper="0.5")
    average: float = option(
        0.999, "of the running mean of all weights, which judges", low=0, high=0.99999,
        paper="0.999",
    )  # fmt: skip
    cycle_weight: float = option(
        0.0, "of mean |x - G(E(x))| in the losses of G and E, which the paper has not", low=0,
        high=1e6, paper="0",
    )  # fmt: skip
    discrimination_weight: float = option(
        0.1, "w: the share of the discriminator in the score", low=0, high=1, paper="0.1"
    )
    discrimination: str = option(
        "features",
        "the second term: features of the discriminator, or logits, how little it takes what is "
        "made again for a pair",
        choices=("features", "logits"),
        paper="features",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network == "small":
            quarter(self.image_size)
            if max(self.image_size) > _LARGEST_SMALL:
                raise OptionError(
                    f"network=small, image_size={self.image_size[0]},{self.image_size[1]}: their "
                    f"layers grow with the image; they are for sides of up to {_LARGEST_SMALL}.",
                    hint="Use network=deep for larger images.",
                )
        else:
            halvings(self.image_size)


class EGBAD(Detector):
    """EGBAD: A(x) = (1 - w) ||x - G(E(x))||_1 + w ||f(x, E(x)) - f(G(E(x)), E(x))||_1.

    Options as in `EGBADConfig`, same names and defaults.
    """

    id: ClassVar[str] = "egbad"
    paper: ClassVar[str] = "Zenati et al., arXiv 1802.06222"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = EGBADConfig
    config: EGBADConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = EGBADConfig.image_size,
        resize: str = EGBADConfig.resize,
        colors: str = EGBADConfig.colors,
        network: str = EGBADConfig.network,
        latent_dim: int = EGBADConfig.latent_dim,
        latent: str = EGBADConfig.latent,
        width: int = EGBADConfig.width,
        epochs: int = EGBADConfig.epochs,
        batch_size: int = EGBADConfig.batch_size,
        learning_rate: float = EGBADConfig.learning_rate,
        beta1: float = EGBADConfig.beta1,
        average: float = EGBADConfig.average,
        cycle_weight: float = EGBADConfig.cycle_weight,
        discrimination_weight: float = EGBADConfig.discrimination_weight,
        discrimination: str = EGBADConfig.discrimination,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(EGBADConfig(**options))
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
        size, dim, is_small = cfg.image_size, cfg.latent_dim, cfg.network == "small"
        shape: dict[str, Any] = {"channels": cfg.channels}
        critic = PairDiscriminator(size, dim, width=cfg.width, is_small=is_small, **shape)
        if is_small:
            maker = cfg.maker(SmallGenerator(size, dim, **shape))
            return Pair(maker, critic, encoder=SmallEncoder(size, dim, **shape))
        maker = cfg.maker(ConvGenerator(size, dim, width=cfg.width, **shape))
        return Pair(maker, critic, encoder=ConvEncoder(size, dim, width=cfg.width, **shape))

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        cfg = self.config
        pair = self.networks
        learning = {
            "generator": Averaged(pair.maker),
            "encoder": Averaged(pair.encoder),
            "critic": Averaged(pair.critic),
        }
        players = {
            name: Player(one, adam(one.network, cfg.learning_rate, (cfg.beta1, 0.999)))
            for name, one in learning.items()
        }
        steps = steps_of(len(data), cfg.epochs, cfg.batch_size)
        self._tell_beforehand(steps, run)

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            losses = self._step(loop, batch, data)
            for one in learning.values():
                one.follow(cfg.average)
            cast(Maker, learning["generator"].average).remember(loop.step + 1, steps)
            return losses

        history = train(
            players, data, step, epochs=cfg.epochs, batch_size=cfg.batch_size, run=run,
            job=job(cfg, run, without=("discrimination", "discrimination_weight")),
        )  # fmt: skip
        averages = {name: one.average for name, one in learning.items()}
        self.networks = Pair(
            cast(Maker, averages["generator"]), averages["critic"], encoder=averages["encoder"]
        )
        self._settle(data, run)
        spread = measured_diversity(self.networks.maker, data, self.config.prepared, run)
        return {**history.facts(), "sample_diversity": spread}

    def _tell_beforehand(self, steps: int, run: Run) -> None:
        """Say what a short training would leave undone."""
        tell_moves(run, "training", steps)
        left = self.config.average**steps
        if left > _FIRST_LEFT:
            run.say(
                f"training: {left:.0%} of the running mean that judges will be first, random "
                "weights; raise epochs or lower average."
            )

    def _settle(self, data: TrainingImages, run: Run) -> None:
        """Batch norms of the running means, the encoder's first: the discriminator sees codes."""
        cfg, networks = self.config, self.networks
        settle_on_codes(networks.maker, data, cfg.batch_size, run)
        settle_on_images(networks.encoder, data, cfg.prepared, cfg.batch_size, run)
        images = map(cfg.prepared, some_batches(data, cfg.batch_size, run.seed))
        pairs = ((x, networks.encoder(x)) for x in images)
        settle(networks.critic, pairs, batch_count(data, cfg.batch_size), run)

    def _step(self, loop: Loop, batch: ImageBatch, data: TrainingImages) -> dict[str, Tensor]:
        """D on the batch; then G and E, each against the new D, on another draw of images."""
        judge = loop.networks["critic"]
        generator, encoder = loop.networks["generator"], loop.networks["encoder"]
        x = self.config.prepared(batch)
        codes = self._draw(len(x), x)
        with torch.no_grad():
            made, coded = inside(generator(codes), batch.rois), encoder(x)
        loss = discriminator_loss(judge(x, coded), judge(made, codes))
        loop.backward(loss)
        loop.update("critic")
        other = data.at(torch.randperm(len(data))[: len(x)].numpy())
        again: ImageBatch = loop.fabric.to_device(other)
        x = self.config.prepared(again)
        codes = self._draw(len(x), x)
        reported = {"discriminator": loss.detach()}
        # One after the other, each with a backward pass of its own, as scaled gradients want it;
        # G is as it was for both.
        with loop.frozen("critic") as wrapped, loop.frozen("generator") as kept:
            frozen = cast(Averaged, wrapped).network
            coded = encoder(x)
            of_encoder = F.softplus(frozen(x, coded).float()).mean()
            reported["encoder"] = of_encoder.detach()
            if self.config.cycle_weight > 0:
                cycle = self._cycle(x, kept(coded), again)
                of_encoder = of_encoder + self.config.cycle_weight * cycle
                reported["cycle"] = cycle.detach()
        loop.backward(of_encoder)
        loop.update("encoder")
        with loop.frozen("critic") as wrapped:
            frozen = cast(Averaged, wrapped).network
            of_maker = generator_loss(frozen(inside(generator(codes), again.rois), codes))
            reported["generator"] = of_maker.detach()
            if self.config.cycle_weight > 0:
                cycle = self._cycle(x, generator(coded.detach()), again)
                of_maker = of_maker + self.config.cycle_weight * cycle
        loop.backward(of_maker)
        loop.update("generator")
        return reported

    @staticmethod
    def _cycle(x: Tensor, made: Tensor, batch: ImageBatch) -> Tensor:
        """mean |x - G(E(x))|."""
        return (x - inside(made, batch.rois)).abs().float().mean()

    def _draw(self, n: int, like: Tensor) -> Tensor:
        maker: Maker = self.networks.maker
        return maker.draw(n, like=like)

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        cfg, networks = self.config, self.networks
        code = networks.encoder(x)
        again = inside(networks.maker(code), roi)
        apart = (x - again).abs()
        features = networks.critic.features(again, code)
        if cfg.discrimination == "logits":
            said = F.softplus(-networks.critic.head(features))[:, 0]
        else:
            said = (networks.critic.features(x, code) - features).abs().sum(1)
        w = cfg.discrimination_weight
        return Prediction((1 - w) * apart.sum((1, 2, 3)) + w * said, apart.mean(1))

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        code = self.networks.encoder(self.config.prepared(ImageBatch(images, roi)))
        return in_color(self.networks.maker(code))

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
