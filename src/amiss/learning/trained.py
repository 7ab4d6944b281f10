"""Parts of methods whose networks learn by gradients from the normal images alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from amiss.errors import OptionError
from amiss.learning.adversarial import LATENTS, Duel, Maker, as_levels
from amiss.learning.held_out import HeldOut, parted, score_held_out, told_held_out
from amiss.learning.normals import Normals
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.nn.levels import as_gray, as_input
from amiss.nn.roi import inside
from amiss.options import Config, option
from amiss.run import Run
from amiss.training import require_device
from amiss.types import Int64, Prediction, UInt8

_AT_ONCE = 256  # made images, before they are levels

Network = TypeVar("Network", bound=nn.Module)
Judge = Callable[[Tensor, Tensor | None], Prediction[Tensor]]
"""x (B, C, H, W) in [-1, 1], 0 outside of the regions (B, H, W) or None -> scores and maps."""


# --- options -----------------------------------------------------------------------------------


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

    def prepared(self, batch: ImageBatch) -> Tensor:
        """Images as they are kept -> x (B, C, H, W) in [-1, 1], 0 outside of what is looked at."""
        x = as_input(batch.images)
        return inside(as_gray(x) if self.colors == "gray" else x, batch.rois)


@dataclass(frozen=True, kw_only=True)
class GenerativeConfig(TrainedConfig):
    """Options of all methods with a generator of images."""

    latent_dim: int = option(100, "d: values of a code", low=1, high=4096)
    latent: str = option(
        "normal", "prior of a code: N(0, 1), or uniform, U(-1, 1)", choices=LATENTS
    )
    width: int = option(64, "channels of the first layer", low=2, high=512)
    epochs: int = option(
        25, "passes over the training images, each of whole batches", low=1, high=100_000
    )
    batch_size: int = option(64, "images of a step", low=2, high=4096)

    def maker(self, generator: nn.Module) -> Maker:
        """A generator with the prior of its codes."""
        return Maker(generator, self.latent_dim, self.latent, (self.channels, *self.image_size))

    def duel(
        self,
        pair: Pair,
        data: TrainingImages,
        augment: Callable[[ImageBatch], ImageBatch] | None = None,
    ) -> Duel:
        """The training of a pair on images, which `augment` may change first."""
        return Duel(
            pair.maker, pair.critic, data, self.prepared, self.epochs, self.batch_size, augment
        )


def job(
    config: Config, run: Run, stage: str = "", *, without: Sequence[str] = ()
) -> dict[str, Any]:
    """What the result of a training depends on: all options but those of no matter to it."""
    options = {k: v for k, v in config.as_dict().items() if k not in without}
    return options | {"seed": run.seed, "stage": stage}


# --- learning ----------------------------------------------------------------------------------


class Split(NamedTuple):
    """The images to train on, and the numbers of a fifth of all that set the threshold."""

    data: TrainingImages
    images: Normals
    apart: Int64

    @classmethod
    def draw(cls, images: Normals, run: Run) -> Self:
        """By the seed of the run.

        Raises:
            OptionError: the run's device is not there.
            DataError: too few images to hold some apart.
        """
        require_device(run)
        mine, apart = parted(images, run.seed)
        return cls(TrainingImages(images, mine, run), images, apart)

    def judged_by(
        self, model: Callable[[Tensor, Tensor | None], Prediction[Tensor]], run: Run
    ) -> HeldOut:
        """What the images held apart score, one by one."""
        return score_held_out(model, self.images, self.apart, run, self.told())

    def told(self) -> str:
        """Where the scores come from, in words."""
        return told_held_out(self.apart, self.images)


def drawn(make: Callable[[], Network], seed: int, number: int = 0) -> Network:
    """A network whose first weights follow from the seed; `number` tells apart those of one fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        return make()


class Pair(nn.Module):
    """A generator and its discriminator or critic, and the encoder of methods that have one."""

    def __init__(self, maker: Maker, critic: nn.Module, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.maker, self.critic, self.encoder = maker, critic, encoder


# --- scoring -----------------------------------------------------------------------------------


def one_by_one(
    judge: Judge, config: TrainedConfig, images: Tensor, roi: Tensor | None
) -> Prediction[Tensor]:
    """Scores of images (B, 3, H, W) uint8, each judged by itself: none depends on batch-mates in
    its last bit."""
    # An exported graph must not ask for the size of its batch.
    if torch.compiler.is_compiling():
        return judge(config.prepared(ImageBatch(images, roi)), roi)
    rois = [None] * len(images) if roi is None else list(roi.split(1))
    found = [
        judge(config.prepared(ImageBatch(x, r)), r)
        for x, r in zip(images.split(1), rois, strict=True)
    ]
    maps = [one.anomaly_map for one in found if one.anomaly_map is not None]
    score = torch.cat([one.score for one in found])
    return Prediction(score, torch.cat(maps) if maps else None)


def in_color(x: Tensor) -> Tensor:
    """x (B, C, H, W) in [-1, 1] -> (B, 3, H, W) uint8."""
    return as_levels(x).expand(-1, 3, -1, -1)


def sampled(maker: Maker, n: int, seed: int, start: int) -> UInt8:
    """See `Detector.sample`."""
    if n < 1 or seed < 0 or start < 0:
        raise OptionError(
            f"n={n}, seed={seed}, start={start}: at least one image, by a seed and from a number "
            "of 0 or more."
        )
    parts = [
        as_levels(maker.make(maker.draw(min(_AT_ONCE, n - done), seed=seed, start=start + done)))
        for done in range(0, n, _AT_ONCE)
    ]
    return _as_pictures(torch.cat(parts))


def taken(maker: Maker) -> list[tuple[int, UInt8]]:
    """See `Detector.pictures`."""
    moments = zip(maker.taken_at.tolist(), maker.pictures, strict=True)
    return [(step, _as_pictures(found)) for step, found in moments if step]


def _as_pictures(levels: Tensor) -> UInt8:
    """(n, C, H, W) uint8 -> (n, H, W, 3)."""
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy().copy()


# --- storing -----------------------------------------------------------------------------------


def stored(networks: nn.Module, facts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """See `Detector.artifact`."""
    tensors = {f"networks.{k}": v for k, v in networks.state_dict().items()}
    return {"learned": facts}, tensors


def restored(
    make: Callable[[], Network], facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Network, dict[str, Any]]:
    """The reverse of `stored`; raises KeyError where something is missing."""
    networks = drawn(make, 0).requires_grad_(False)
    networks.load_state_dict({k.removeprefix("networks."): v for k, v in tensors.items()})
    return networks.eval(), dict(facts["learned"])
