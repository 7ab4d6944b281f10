"""What detectors share whose networks learn by gradients from the normal images alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from amiss.errors import DataError
from amiss.learning.adversarial import LATENTS, Duel, Maker, as_levels
from amiss.learning.held_out import HeldOut, draw_held_out, score_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.methods.base import Detector
from amiss.nn.levels import as_gray, as_input
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import require_device
from amiss.types import Int64, Prediction, UInt8

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(Config):
    """Options of all methods whose networks learn from the images alone."""

    image_size: tuple[int, int] = option(
        (32, 32), "height and width of the networks' input, in pixels", low=16, high=256
    )
    colors: str = option(
        "rgb", "what of an image is learned: rgb, or gray, its mean", choices=("rgb", "gray")
    )

    @property
    def channels(self) -> int:
        """Of what is learned: 3 or 1."""
        return 1 if self.colors == "gray" else 3


class TrainedDetector(Detector):
    """A detector whose `networks` learn by gradients from the normal images alone.

    A fifth of the images is held out for the threshold. A subclass makes `networks` in `_untrained`
    with everything that scoring needs, trains them in `_train`, and judges in `_judged`.
    """

    learns_from_anomalies: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    config: TrainedConfig

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__(config)
        self.networks: Any = None  # nn.Module, once there is one
        self.facts: dict[str, Any] = {}

    # --- what a method writes ----------------------------------------------------------------

    @abstractmethod
    def _untrained(self) -> nn.Module:
        """The networks, drawn from torch's global generator."""

    @abstractmethod
    def _train(self, data: TrainingImages, run: Run) -> dict[str, Any]:
        """Teach `networks`; the facts of it, of JSON types."""

    @abstractmethod
    def _judged(self, x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        """Scores, and maps at the input size, of x (B, C, H, W) in [-1, 1], 0 outside of `roi`."""

    # --- learning ----------------------------------------------------------------------------

    def learn(self, images: Normals, run: Run) -> HeldOut:
        require_device(run)
        apart = draw_held_out(images.groups().tolist(), run.seed)
        mine = np.setdiff1d(np.arange(len(images)), apart)
        if not len(apart) or len(mine) < 2:
            raise DataError(
                f"{len(images)} images cannot be trained on and kept apart as well.",
                hint="Give at least three different normal images.",
            )
        self.networks = drawn(self._untrained, run.seed)
        data = TrainingImages(images, mine, run)
        self.facts = {"images": len(mine), **self._train(data, run)}
        self.networks.requires_grad_(False)
        self.eval()
        return self._calibration(images, apart, run)

    def _calibration(self, images: Normals, apart: Int64, run: Run) -> HeldOut:
        """What the images held out score."""
        return score_held_out(self.forward, images, apart, run, told_held_out(apart, images))

    def prepared(self, batch: ImageBatch) -> Tensor:
        """Images as they are kept -> x (B, C, H, W) in [-1, 1], 0 outside of what is looked at."""
        x = as_input(batch.images)
        if self.config.colors == "gray":
            x = as_gray(x)
        return x if batch.rois is None else x * batch.rois[:, None]

    # --- scoring -----------------------------------------------------------------------------

    def forward(self, images: Tensor, roi: Tensor | None = None) -> Prediction[Tensor]:
        self.require_fitted()
        # One by one: no score depends on batch-mates in its last bit. An exported graph must not
        # ask for the size of its batch.
        if torch.compiler.is_compiling():
            return self._judged(self.prepared(ImageBatch(images, roi)), roi)
        rois = [None] * len(images) if roi is None else list(roi.split(1))
        found = [
            self._judged(self.prepared(ImageBatch(x, r)), r)
            for x, r in zip(images.split(1), rois, strict=True)
        ]
        maps = [one.anomaly_map for one in found if one.anomaly_map is not None]
        score = torch.cat([one.score for one in found])
        return Prediction(score, torch.cat(maps) if maps else None)

    # --- storing -----------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self.networks is not None

    def artifact(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.networks is not None
        tensors = {f"networks.{k}": v for k, v in self.networks.state_dict().items()}
        return {"learned": self.facts}, tensors

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        with torch.random.fork_rng(devices=[]):
            networks = self._untrained().requires_grad_(False)
        networks.load_state_dict({k.removeprefix("networks."): v for k, v in tensors.items()})
        self.networks = networks.eval()
        self.facts = dict(facts["learned"])


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig(TrainedConfig):
    """Options of all methods with a generator of images."""

    latent_dim: int = option(100, "d: values of a code", low=1, high=4096, paper="100")
    latent: str = option(
        "normal", "prior of a code: N(0, 1), or uniform, U(-1, 1)", choices=LATENTS
    )
    width: int = option(64, "channels of the first layer", low=2, high=512, paper="64")
    epochs: int = option(
        25, "passes over the training images, each of whole batches", low=1, high=100_000
    )
    batch_size: int = option(64, "images of a step", low=2, high=4096, paper="64")


class Pair(nn.Module):
    """A generator and its discriminator or critic, and what else scoring needs."""

    def __init__(self, maker: Maker, critic: nn.Module, **others: nn.Module) -> None:
        super().__init__()
        self.maker, self.critic = maker, critic
        for name, other in others.items():
            self.add_module(name, other)


class GenerativeDetector(TrainedDetector):
    """A detector with a generator, whose `networks` are a `Pair`."""

    config: GenerativeConfig
    networks: Any

    def _maker(self, generator: nn.Module) -> Maker:
        cfg = self.config
        return Maker(generator, cfg.latent_dim, cfg.latent, (cfg.channels, *cfg.image_size))

    def _duel(self, data: TrainingImages) -> Duel:
        cfg, networks = self.config, self.networks
        return Duel(
            networks.maker, networks.critic, data, self.prepared, cfg.epochs, cfg.batch_size
        )

    def _job(self, run: Run, stage: str = "", *, without: Sequence[str] = ()) -> dict[str, Any]:
        """What a training's result depends on: all options but those of no matter to it."""
        options = {k: v for k, v in self.config.as_dict().items() if k not in without}
        return options | {"seed": run.seed, "stage": stage}

    def sample(self, n: int, *, seed: int = 0) -> UInt8:
        self.require_fitted()
        maker: Maker = self.networks.maker
        return _as_pictures(as_levels(maker.make(maker.draw(n, seed=seed))))

    def pictures(self) -> list[tuple[int, UInt8]]:
        self.require_fitted()
        maker: Maker = self.networks.maker
        taken = zip(maker.taken_at.tolist(), maker.pictures, strict=True)
        return [(step, _as_pictures(found)) for step, found in taken if step]


def _as_pictures(levels: Tensor) -> UInt8:
    """(n, C, H, W) uint8 -> (n, H, W, 3)."""
    rgb = levels.expand(-1, 3, -1, -1)
    return rgb.permute(0, 2, 3, 1).cpu().numpy().copy()


def inside(x: Tensor, roi: Tensor | None) -> Tensor:
    """x (B, C, H, W), 0 outside of `roi` (B, H, W)."""
    return x if roi is None else x * roi[:, None]


def drawn(make: Callable[[], Network], seed: int, number: int = 0) -> Network:
    """A network whose first weights follow from the seed; `number` tells apart those of one fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        return make()
