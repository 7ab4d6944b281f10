"""How a generator learns against a discriminator or a critic.

Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014; Radford et al., DCGAN, ICLR 2016;
Arjovsky et al., "Wasserstein GAN", ICML 2017; Gulrajani et al., "Improved Training of Wasserstein
GANs", NeurIPS 2017.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amiss.errors import TrainingWarning
from amiss.learning.settling import batch_count, settle, settle_on_images
from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.nn.losses import discriminator_loss, generator_loss, gradient_penalty
from amiss.nn.roi import inside
from amiss.run import Run, warn
from amiss.training import History, Loop, Losses, Player, steps_of, train
from amiss.types import MODE_COLLAPSE

LATENTS = ("normal", "uniform")
"""Priors of a code: N(0, 1), or U(-1, 1)."""

CRITIC_IMAGES = 32_000
"""Training images that what a critic says of a normal image is averaged over."""

_TAKEN = 8  # how often pictures are taken in the course of a training
_SHOWN = 16  # pictures each time, of the same codes
_SIDE = 64  # of a kept picture, at most
_BLOCK = 16  # codes that are drawn at once by a seed
_JUDGED = 64  # samples that diversity is measured on
_WARM_TURNS, _WARM_AGAIN, _WARM_STEPS = 25, 500, 100
_FEW = 500  # moves of a generator

Prepare = Callable[[ImageBatch], Tensor]
"""Images as they are kept -> x (B, C, H, W) in [-1, 1]."""


def draw_codes(
    n: int,
    dim: int,
    latent: str,
    *,
    like: Tensor | None = None,
    seed: int | None = None,
    start: int = 0,
) -> Tensor:
    """n codes (n, dim) from the prior, on the device of `like`: of the global generator, or those
    from number `start` on of a `seed`, each the same however many are asked for."""
    draw = torch.rand if latent == "uniform" else torch.randn
    if seed is None:
        codes = draw(n, dim)
    else:
        blocks = range(start // _BLOCK, (start + n - 1) // _BLOCK + 1)
        rows = []
        for block in blocks:
            of = torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, block]).generate_state(1)[0])
            )
            rows.append(draw(_BLOCK, dim, generator=of))
        codes = torch.cat(rows)[start - blocks.start * _BLOCK :][:n]
    if latent == "uniform":
        codes = codes * 2 - 1
    return codes if like is None else codes.to(like.device)


class Maker(nn.Module):
    """A generator, the prior of its codes, and what it made of the same codes as it learned.

    The pictures are kept as buffers, so that they go into checkpoints and artifacts with it.
    """

    pictures: Tensor
    taken_at: Tensor

    def __init__(
        self, generator: nn.Module, dim: int, latent: str, image: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.generator, self.dim, self.latent = generator, dim, latent
        channels, height, width = image
        self.shrinking = max(1, -(-max(height, width) // _SIDE))
        shape = (channels, height // self.shrinking, width // self.shrinking)
        self.register_buffer("pictures", torch.zeros(_TAKEN, _SHOWN, *shape, dtype=torch.uint8))
        self.register_buffer("taken_at", torch.zeros(_TAKEN, dtype=torch.int64))

    def forward(self, codes: Tensor) -> Tensor:
        found: Tensor = self.generator(codes)
        return found

    def draw(
        self, n: int, *, like: Tensor | None = None, seed: int | None = None, start: int = 0
    ) -> Tensor:
        """n codes (n, dim) from the prior; see `draw_codes`."""
        return draw_codes(n, self.dim, self.latent, like=like, seed=seed, start=start)

    @torch.no_grad()
    def make(self, codes: Tensor) -> Tensor:
        """Images (n, C, H, W) of codes, as the finished generator makes them: by the running
        statistics of its batch norms."""
        was_training = self.generator.training
        self.generator.eval()
        found = torch.cat([self.generator(part) for part in codes.split(_SHOWN)])
        self.generator.train(was_training)
        return found

    def remember(self, step: int, total: int) -> None:
        """Take pictures when `step` of `total` steps are done and it is time for some."""
        number = step * _TAKEN // total - 1
        if number < 0 or number == (step - 1) * _TAKEN // total - 1:
            return
        weights = next(self.generator.parameters())
        made = self.make(self.draw(_SHOWN, like=weights, seed=0)).float()
        self.pictures[number] = as_levels(F.avg_pool2d(made, self.shrinking))
        self.taken_at[number] = step


def as_levels(x: Tensor) -> Tensor:
    """x in [-1, 1] -> uint8 levels."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def diversity(made: Tensor, real: Tensor) -> float:
    """How much made images (n, C, H, W) differ from one another, as a share of how much real ones
    (m, C, H, W) do: the ratio of the mean L1 distances of pairs."""

    def apart(x: Tensor) -> float:
        return float(F.pdist(x.flatten(1).float(), 1).mean()) if len(x) > 1 else 0.0

    return apart(made) / max(apart(real), 1e-12)


def measured_diversity(maker: Maker, data: TrainingImages, prepare: Prepare, run: Run) -> float:
    """`diversity` of 64 samples against as many training images; says so where it is so low that
    the generator makes the same image of whatever code."""
    numbers = np.random.default_rng(run.seed).permutation(len(data))[:_JUDGED]
    made = maker.make(maker.draw(_JUDGED, seed=run.seed))
    found = diversity(made, prepare(data.at(np.sort(numbers))))
    if found < MODE_COLLAPSE:
        warn(
            run,
            f"Samples differ from one another by {found:.1%} of what images do: the generator "
            "makes nearly the same of every code (mode collapse).",
            TrainingWarning,
        )
    return round(found, 4)


def adam(
    network: nn.Module, learning_rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Adam over all weights of a network in one pass over the memory."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, betas=betas, fused=True)


def tell_moves(run: Run, stage: str, moves: int) -> None:
    """Say beforehand where a generator will move too few times to come to anything."""
    if moves < _FEW:
        run.say(
            f"{stage}: the generator will move {moves} times. It takes a thousand and more to "
            "make images; raise epochs or lower batch_size."
        )


@dataclass(frozen=True)
class Duel:
    """Who learns against whom, from what, and for how long."""

    maker: Maker
    critic: nn.Module  # or a discriminator: images -> (B, 1)
    data: TrainingImages
    prepare: Prepare
    epochs: int
    batch_size: int
    augment: Callable[[ImageBatch], ImageBatch] | None = None

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return steps_of(len(self.data), self.epochs, self.batch_size)

    def shown(self, batch: ImageBatch) -> tuple[Tensor, Tensor | None]:
        """x (B, C, H, W) and the regions (B, H, W) that are looked at, or None for everywhere."""
        if self.augment is not None:
            batch = self.augment(batch)
        return self.prepare(batch), batch.rois

    def made(self, loop: Loop, x: Tensor, rois: Tensor | None) -> Tensor:
        """As many made images as x, seen through the same regions."""
        return inside(loop.networks["generator"](self.maker.draw(len(x), like=x)), rois)

    def train(
        self, optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
        step: Callable[[Loop, ImageBatch], Losses], moves: int, run: Run, job: dict[str, Any],
        stage: str,
    ) -> History:  # fmt: skip
        """`train` with the generator and the critic as players, and pictures taken on the way; then
        both are settled, the critic on real images."""

        def pictured(loop: Loop, batch: ImageBatch) -> Losses:
            losses = step(loop, batch)
            self.maker.remember(loop.step + 1, self.steps)
            return losses

        tell_moves(run, stage, moves)
        players = {
            "generator": Player(self.maker, optimizers[0]),
            "critic": Player(self.critic, optimizers[1]),
        }
        history = train(
            players, self.data, pictured, epochs=self.epochs, batch_size=self.batch_size,
            run=run, job=job, stage=stage,
        )  # fmt: skip
        settle_on_codes(self.maker, self.data, self.batch_size, run)
        settle_on_images(self.critic, self.data, self.prepare, self.batch_size, run)
        return history


def settling_codes(
    maker: Maker, data: TrainingImages, batch_size: int, run: Run
) -> Iterator[tuple[Tensor]]:
    """Codes to settle a generator on, as many batches as there are of images."""
    size = min(batch_size, len(data))
    for number in range(batch_count(data, batch_size)):
        yield (maker.draw(size, seed=run.seed, start=number * size),)


def settle_on_codes(maker: Maker, data: TrainingImages, batch_size: int, run: Run) -> None:
    """`settle` a generator that learned from `data`."""
    codes = settling_codes(maker, data, batch_size, run)
    settle(maker, codes, batch_count(data, batch_size), run)


@dataclass(frozen=True)
class Logarithmic:
    """min over G, max over D of E log D(x) + E log(1 - D(G(z))): a step of D, then one of G.

    `kind` of `generator_loss`. Adam with `betas` for both.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.5, 0.999)
    kind: str = "nonsaturating"

    def train(self, duel: Duel, run: Run, job: dict[str, Any], stage: str = "training") -> History:
        """Train both; losses by name: `discriminator`, `generator`."""

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            x, rois = duel.shown(batch)
            made = duel.made(loop, x, rois)
            judge = loop.networks["critic"]
            # Apart: the batch norms of D would mix what is real with what is made.
            loss = discriminator_loss(judge(x), judge(made.detach()))
            loop.backward(loss)
            loop.update("critic")
            with loop.frozen("critic") as frozen:
                of_maker = generator_loss(frozen(made), self.kind)
            loop.backward(of_maker)
            loop.update("generator")
            return {"discriminator": loss.detach(), "generator": of_maker.detach()}

        optimizers = (
            adam(duel.maker, self.learning_rate, self.betas),
            adam(duel.critic, self.learning_rate, self.betas),
        )
        return duel.train(optimizers, step, duel.steps, run, job, stage)


@dataclass(frozen=True)
class Wasserstein:
    """max over D of E D(x) - E D(G(z)), G one step for every `n_critic` of D.

    D is kept from growing steep by cutting its weights to [-clip, clip] after each of its steps, or
    by `penalty` times the gradient penalty; `drift` times E D(x)^2 keeps its zero in place.
    `optimizer`: "rmsprop" or "adam".
    """

    learning_rate: float
    optimizer: str
    betas: tuple[float, float] = (0.0, 0.9)
    n_critic: int = 5
    clip: float | None = None
    penalty: float = 0.0
    penalty_kind: str = "two_sided"
    drift: float = 0.0
    warm: bool = False

    def train(self, duel: Duel, run: Run, job: dict[str, Any], stage: str = "training") -> History:
        """Train both; losses by name, means over the critic's steps: `critic`, which it descends;
        `distance`, E D(x) - E D(G(z)), an estimate of the distance of what is made from what is
        real, up to the unknown steepness of D; `generator`, -E D(G(z)) of the same images, where a
        step of the generator would begin; and `penalty`."""

        def step(loop: Loop, batch: ImageBatch) -> Losses:
            x, rois = duel.shown(batch)
            reported = self._critic_step(loop, duel, x, rois)
            if self.is_makers_turn(loop.step):
                with loop.frozen("critic") as frozen:
                    loop.backward(-frozen(duel.made(loop, x, rois)).float().mean())
                loop.update("generator")
            return reported

        optimizers = (self._optimizer(duel.maker), self._optimizer(duel.critic))
        return duel.train(optimizers, step, self._turns_in(duel.steps), run, job, stage)

    def _critic_step(
        self, loop: Loop, duel: Duel, x: Tensor, rois: Tensor | None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            made = duel.made(loop, x, rois)
        critic = loop.networks["critic"]
        real, fake = critic(x).float(), critic(made).float()
        distance = real.mean() - fake.mean()
        loss = -distance
        reported = {"distance": distance.detach(), "generator": -fake.detach().mean()}
        if self.penalty > 0:
            # In float32, whatever the precision: a gradient of a gradient has little to spare.
            slope = gradient_penalty(duel.critic, x, made, self.penalty_kind)
            loss = loss + self.penalty * slope
            reported["penalty"] = slope.detach()
        if self.drift > 0:
            loss = loss + self.drift * real.square().mean()
        loop.backward(loss)
        loop.update("critic")
        if self.clip is not None:
            with torch.no_grad():
                for weight in duel.critic.parameters():
                    weight.clamp_(-self.clip, self.clip)
        return {"critic": loss.detach(), **reported}

    def is_makers_turn(self, step: int) -> bool:
        """Whether the generator moves after the critic's step of this number, from 0."""
        return self._turns_in(step + 1) > self._turns_in(step)

    def _turns_in(self, steps: int) -> int:
        """How often the generator moves in so many steps of the critic."""
        if not self.warm:
            return steps // self.n_critic
        return bisect.bisect_right(range(1, steps + 1), steps, key=self._steps_until)

    def _steps_until(self, turns: int) -> int:
        """Steps of the critic until the generator has had so many turns: 100 for each of the first
        25 and for every 500th after them, as the authors' code has it."""
        long = min(turns, _WARM_TURNS) + max(0, (turns - 1) // _WARM_AGAIN)
        return self.n_critic * turns + (_WARM_STEPS - self.n_critic) * long

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "rmsprop":
            return torch.optim.RMSprop(network.parameters(), lr=self.learning_rate)
        return adam(network, self.learning_rate, self.betas)


@torch.no_grad()
def mean_answer(
    critic: nn.Module, data: TrainingImages, prepare: Prepare, run: Run, *, count: int
) -> float:
    """Mean D(x) over `count` training images drawn at random, or over all where there are fewer."""
    numbers = np.sort(np.random.default_rng(run.seed).permutation(len(data))[:count])
    total = 0.0
    for start in range(0, len(numbers), _JUDGED):
        batch = data.at(numbers[start : start + _JUDGED])
        total += float(critic(prepare(batch)).double().sum())
        run.progress("mean of the critic", min(start + _JUDGED, len(numbers)), len(numbers))
    return total / len(numbers)
