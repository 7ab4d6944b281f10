"""DAAD: images are put together of blocks that a memory at every scale has for them.

Hou, Zhang, Zhong, Xie, Pu, Zhou, "Divide-and-Assemble: Learning Block-wise Memory for Unsupervised
Anomaly Detection", ICCV 2021, arXiv 2107.13118.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amiss.learning.adversarial import adam
from amiss.learning.held_out import HeldOut
from amiss.learning.normals import Normals
from amiss.learning.reconstruction import (
    FLIPS,
    WATCHED,
    Evenness,
    ReconstructionConfig,
    error_map,
    flipped,
    mean_inside,
    train_reconstructor,
)
from amiss.learning.settling import settle_on_images, some_batches
from amiss.learning.trained import Split, drawn, in_color, job, one_by_one, restored, stored
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.autoencoder import scales
from amiss.nn.block_unet import BlockUNet, FeatureDiscriminator
from amiss.nn.gan import halvings
from amiss.nn.losses import discriminator_loss, generator_loss, norms
from amiss.nn.memory_module import SIMILARITIES, division
from amiss.nn.roi import inside
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import History, Loop, Losses, Player, train
from amiss.types import Prediction

_EVEN = 0.99  # of the largest entropy: every answer is nearly the mean of all items
_RATES = (1e-4, 2e-4)  # of DAAD and of DAAD+
_OF_PLUS = (
    "discriminator_width", "generator_loss", "rec_weight", "adv_weight", "ali_weight", "gamma",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DAADConfig(ReconstructionConfig):
    """Options of DAAD and DAAD+."""

    image_size: tuple[int, int] = option(
        (256, 256), "height and width of the networks' input, in pixels", low=16, high=256,
        paper="256x256",
    )  # fmt: skip
    width: int = option(64, "channels of the first scale", low=2, high=512)
    scales: int = option(4, "how often an image is halved; each scale has a memory", low=1, high=7)
    division: tuple[int, int, int] = option(
        (8, 8, 1), "r_h, r_w, r_c: into how many parts height, width and channels of a map are "
        "cut; a smaller map into as many as it has", low=1, high=512, paper="8,8,1",
    )  # fmt: skip
    items: int = option(500, "N: items of each memory", low=1, high=100_000, paper="500")
    similarity: str = option(
        "cosine", "of block and item: cosine, or dot, their product", choices=SIMILARITIES,
        paper="cosine",
    )  # fmt: skip
    temperature: float = option(
        1.0, "what similarities are divided by before the softmax; below 1 the nearest items count "
        "for more", low=1e-4, high=100, paper="1",
    )  # fmt: skip
    norm: str = option(
        "l2", "of what is apart: l2, the root of the sum of squares of an image; mse, their mean",
        choices=("l2", "mse"), paper="l2",
    )  # fmt: skip
    epochs: int = option(
        1000, "passes over the training images, each of whole batches", low=1, high=100_000,
        paper="1000",
    )  # fmt: skip
    batch_size: int = option(8, "images of a step", low=2, high=4096, paper="8")
    learning_rate: float = option(
        0.0, "of every Adam; 0: 1e-4, or 2e-4 with adversarial", low=0, high=1,
        paper="1e-4; 2e-4",
    )  # fmt: skip
    flips: str = option(
        "none", "mirror training images at random, where a mirrored image is a normal one: "
        "horizontal (left and right), vertical, both, or none",
        choices=FLIPS, paper="both",
    )  # fmt: skip
    adversarial: bool = option(
        False, "DAAD+: a discriminator takes part in the training, and its features in the score"
    )
    discriminator_width: int = option(64, "channels of its first layer", low=2, high=512)
    generator_loss: str = option(
        "nonsaturating",
        "what the networks descend: -log D(xh), or minimax, log(1 - D(xh)), as the formula has it",
        choices=("nonsaturating", "minimax"), paper="minimax",
    )  # fmt: skip
    rec_weight: float = option(50.0, "of L_rec", low=0, high=1e6, paper="50")
    adv_weight: float = option(0.5, "of L_adv", low=0, high=1e6, paper="0.5")
    ali_weight: float = option(0.5, "of L_ali", low=0, high=1e6, paper="0.5")
    gamma: float = option(
        0.9, "the share of the reconstruction in the score", low=0, high=1, paper="0.9"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for shape in scales(self.image_size, self.width, self.scales):
            division(self.division, shape)
        if self.adversarial:
            halvings(self.image_size)
        else:
            self.refuse_unused(_OF_PLUS, "adversarial is False")

    @property
    def rate(self) -> float:
        """See `ReconstructionConfig.rate`."""
        return self.learning_rate or _RATES[self.adversarial]


class _Parts(nn.Module):
    """What is kept: what makes images again, and the discriminator of DAAD+."""

    def __init__(self, config: DAADConfig) -> None:
        super().__init__()
        cfg = config
        self.maker = BlockUNet(
            cfg.channels, scales(cfg.image_size, cfg.width, cfg.scales), cfg.division, cfg.items,
            similarity=cfg.similarity, temperature=cfg.temperature,
        )  # fmt: skip
        self.discriminator = None
        if cfg.adversarial:
            self.discriminator = FeatureDiscriminator(
                cfg.image_size, channels=cfg.channels, width=cfg.discriminator_width
            )


class DAAD(Detector):
    """DAAD: A(x) = ||x - xh||_2; DAAD+: gamma ||x - xh||_2 + (1 - gamma) ||f_D(x) - f_D(xh)||_2.

    Options as in `DAADConfig`, same names and defaults.
    """

    id: ClassVar[str] = "daad"
    paper: ClassVar[str] = "Hou et al., ICCV 2021, arXiv 2107.13118"
    localizes: ClassVar[bool] = True
    exportable: ClassVar[bool | str] = True
    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config_type: ClassVar[type[Config]] = DAADConfig
    config: DAADConfig

    def __init__(  # noqa: PLR0913 - one keyword per option, so that a typo is a TypeError
        self,
        *,
        image_size: tuple[int, int] = DAADConfig.image_size,
        resize: str = DAADConfig.resize,
        colors: str = DAADConfig.colors,
        width: int = DAADConfig.width,
        scales: int = DAADConfig.scales,
        division: tuple[int, int, int] = DAADConfig.division,
        items: int = DAADConfig.items,
        similarity: str = DAADConfig.similarity,
        temperature: float = DAADConfig.temperature,
        norm: str = DAADConfig.norm,
        epochs: int = DAADConfig.epochs,
        batch_size: int = DAADConfig.batch_size,
        learning_rate: float = DAADConfig.learning_rate,
        flips: str = DAADConfig.flips,
        adversarial: bool = DAADConfig.adversarial,
        discriminator_width: int = DAADConfig.discriminator_width,
        generator_loss: str = DAADConfig.generator_loss,
        rec_weight: float = DAADConfig.rec_weight,
        adv_weight: float = DAADConfig.adv_weight,
        ali_weight: float = DAADConfig.ali_weight,
        gamma: float = DAADConfig.gamma,
    ) -> None:
        options = dict(locals())
        options.pop("self")
        options.pop("__class__")
        super().__init__(DAADConfig(**options))
        self.networks: Any = None  # once there are some
        self.facts: dict[str, Any] = {}

    # --- learning --------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        split = Split.draw(images, run)
        self.networks = drawn(self._untrained, run.seed)
        learned = self._train(split.data, run)
        self.networks.requires_grad_(False)
        self.eval()
        self.facts = {"images": len(split.data), **learned}
        return split.judged_by(self.forward, run)

    def _untrained(self) -> _Parts:
        return _Parts(self.config)

    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        cfg, parts = self.config, self.networks
        what = job(cfg, run, without=("gamma",))
        if parts.discriminator is None:
            history = train_reconstructor(parts.maker, self._losses, cfg, data, run, what)
        else:
            history = self._train_plus(data, run, what)
        return {**history.facts(), "entropy_shares": self._entropies(data, run)}

    def _losses(self, network: nn.Module, x: Tensor, rois: Tensor | None) -> dict[str, Tensor]:
        return {"loss": self._residual(x, inside(network(x).made, rois), rois).mean()}

    def _train_plus(self, data: TrainingImages, run: Run, what: dict[str, Any]) -> History:
        """The networks against D, then D on what they made before."""
        cfg, parts = self.config, self.networks
        learning = {"maker": parts.maker, "discriminator": parts.discriminator}
        players = {
            name: Player(one, adam(one, cfg.rate, (0.9, 0.999))) for name, one in learning.items()
        }

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            batch = flipped(batch, cfg.flips)
            x = cfg.prepared(batch)
            made = inside(loop.networks["maker"](x).made, batch.rois)
            with loop.frozen("discriminator") as judge:
                assert isinstance(judge, FeatureDiscriminator)
                with torch.no_grad():
                    wanted = judge.features(x)
                features = judge.features(made)
                adversarial = generator_loss(judge.head(features), cfg.generator_loss)
                aligned = self._apart(wanted, features).mean()
            apart = self._residual(x, made, batch.rois).mean()
            loss = cfg.rec_weight * apart + cfg.adv_weight * adversarial + cfg.ali_weight * aligned
            loop.backward(loss)
            loop.update("maker")
            judging = loop.networks["discriminator"]
            of_judge = discriminator_loss(judging(x), judging(made.detach()))
            loop.backward(of_judge)
            loop.update("discriminator")
            found = {"loss": loss, "reconstruction": apart, "adversarial": adversarial,
                     "alignment": aligned, "discriminator": of_judge}  # fmt: skip
            return {name: value.detach() for name, value in found.items()}

        history = train(
            players, data, step, epochs=cfg.epochs, batch_size=cfg.batch_size, run=run, job=what
        )
        for network in learning.values():
            settle_on_images(network, data, cfg.prepared, cfg.batch_size, run)
        return history

    @torch.no_grad()
    def _entropies(self, data: TrainingImages, run: Run) -> list[float]:
        """Of each scale, how evenly its memory is read for some training images."""
        cfg = self.config
        found = [Evenness() for _ in range(cfg.scales)]
        for batch in islice(some_batches(data, cfg.batch_size, run.seed), WATCHED):
            reads = self.networks.maker(cfg.prepared(batch)).weights
            for evenness, weights in zip(found, reads, strict=True):
                evenness.add(weights)
        return [evenness.share() for evenness in found]

    # --- scoring ---------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        return one_by_one(self._judged, self.config, images, roi)

    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        cfg, parts = self.config, self.networks
        made = inside(parts.maker(x).made, roi)
        score = self._residual(x, made, roi)
        if parts.discriminator is not None:
            features = parts.discriminator.features
            aligned = self._apart(features(x), features(made))
            score = cfg.gamma * score + (1 - cfg.gamma) * aligned
        return Prediction(score, error_map(x, made, roi))

    def _residual(self, x: Tensor, made: Tensor, roi: Tensor | None) -> Tensor:
        """R of each image (B,): ||x - xh||_2, as if its region filled the image, or the mean of the
        squares over the region."""
        if self.config.norm == "mse":
            return mean_inside(error_map(x, made, roi), roi)
        apart = norms(x - made, 2)
        if roi is None:
            return apart
        shares = roi.flatten(1).float().mean(1)
        return apart / shares.clamp_min(1e-6).sqrt()

    def _apart(self, features: Tensor, other: Tensor) -> Tensor:
        """||f - g||_2 of each image, or the mean of the squares: (B, 100) -> (B,)."""
        if self.config.norm == "l2":
            return norms(features.float() - other.float(), 2)
        return (features.float() - other.float()).square().mean(1)

    def reconstruct(self, images: Tensor, roi: Tensor | None = None) -> Tensor | None:
        self.require_fitted()
        return in_color(self.networks.maker(self.config.prepared(ImageBatch(images, roi))).made)

    def summary(self) -> str:
        height, width = self.image_size
        entropies = self.facts["entropy_shares"]
        shares = ", ".join(f"{share:.0%}" for share in entropies)
        even = " (100% is the mean of all items; a lower temperature reads sharper)"
        return (
            f"{self.config.scales} memories of {self.config.items} items, images of {height} x "
            f"{width} px, from {self.facts['images']} images; read with {shares} of the largest "
            f"entropy{even if min(entropies) > _EVEN else ''}"
        )

    # --- storing ---------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return stored(self.networks, self.facts)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.networks, self.facts = restored(self._untrained, facts, tensors)
