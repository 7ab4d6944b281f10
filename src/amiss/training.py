"""`train`: the one loop of all methods that learn by gradients, on Lightning Fabric.

What a step does is the method's own: `train` hands it a batch and a `Loop`, and the step calls
`loop.backward(loss)` and `loop.update(name)` as often as its paper says. The loop owns order,
checkpoints, progress and the machine: device, precision, and several processes, which share every
batch and average their gradients.

Everything random in a step follows from the seed and the number of the step. So a training that was
killed goes on from its last checkpoint and ends, on a CPU with as many threads, with the same bits
as one that was not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from amiss.errors import OptionError, naming_extra
from amiss.learning.checkpoints import Checkpoints, Player
from amiss.learning.partial import Partial
from amiss.learning.processes import rank_and_size
from amiss.learning.step_memory import StepMemory
from amiss.learning.training_images import Batches
from amiss.learning.training_log import Losses, TrainingLog
from amiss.run import Run
from amiss.types import Int64

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "CHECKPOINT_S",
    "History",
    "Loop",
    "Losses",
    "Player",
    "require_device",
    "steps_of",
    "train",
]

CHECKPOINT_S = 60.0
"""Seconds between two checkpoints, which an interruption adds one to."""


Given = TypeVar("Given")


def steps_of(n: int, epochs: int, batch_size: int) -> int:
    """Steps of `epochs` epochs over n images, each of whole batches."""
    return epochs * max(1, n // min(batch_size, n))


class Loop:
    """What a step may use. `networks` are to be called, not those of the players: they hold what
    device, precision and other processes need."""

    def __init__(self, fabric: Fabric, players: Mapping[str, Player]) -> None:
        self.fabric = fabric
        self.players = players
        self.networks: dict[str, Any] = {}
        self._optimizers: dict[str, Any] = {}
        self.step = 0
        self.memory: StepMemory | None = None  # of the step that it is measured in
        self.moved: set[str] = set()  # players that have learned something in this process
        for name, player in players.items():
            player.network.train()
            self.networks[name], self._optimizers[name] = fabric.setup(
                player.network, player.optimizer
            )

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those there are."""
        self.fabric.backward(loss)
        if self.memory is not None:
            self.memory.forget()

    def update(self, name: str) -> None:
        """One step of a player's optimizer, whose gradients are then forgotten."""
        player, optimizer = self.players[name], self._optimizers[name]
        if player.clip_norm is not None:
            # Half precision overflows by design in its first steps; `train` looks at the losses.
            self.fabric.clip_gradients(
                self.networks[name], optimizer, max_norm=player.clip_norm, error_if_nonfinite=False
            )
        optimizer.step()
        optimizer.zero_grad()
        self.moved.add(name)

    @contextmanager
    def frozen(self, name: str) -> Iterator[nn.Module]:
        """A player's network that gradients pass through and that does not learn from them: a
        discriminator while its generator learns."""
        network = self.players[name].network
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        network.requires_grad_(False)
        try:
            with self.fabric.autocast():
                yield network
        finally:
            for weight in learning:
                weight.requires_grad_(True)


@dataclass(frozen=True)
class History:
    """What a training went through: the mean of each loss over each epoch, and its pace.

    `seconds` are those of all stretches of a training that was interrupted, up to its checkpoints.
    """

    losses: dict[str, list[float]]
    steps: int
    seconds: float
    images_per_second: float

    def last(self) -> dict[str, float]:
        """Each loss in the last epoch."""
        return {name: values[-1] for name, values in self.losses.items() if values}

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it, of JSON types."""
        return {
            "losses": {k: [_rounded(v) for v in values] for k, values in self.losses.items()},
            "training_seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


def _rounded(value: float) -> float:
    """To six digits that count: losses of clipped critics are small in all of theirs."""
    return float(f"{value:.6g}")


def train(  # noqa: PLR0913 - what learns, on what, how long, and the job
    players: Mapping[str, Player],
    data: Batches[Given],
    step: Callable[[Loop, Given], Losses],
    *,
    epochs: int,
    batch_size: int,
    run: Run,
    job: dict[str, Any],
    stage: str = "training",
) -> History:
    """Call `step` for every batch of `epochs` epochs, with what `data` holds there, on the device;
    it returns what to report, by name.

    Each epoch goes over the data in an order of its own, drawn by the seed, without the rest that
    does not fill a batch. `batch_size` counts the images of all processes together; each gets its
    share. `job` names everything the result depends on, for work that was interrupted.

    Raises:
        OptionError: a batch of which not every process gets two images, or as many as the others.
        TrainingError: a loss or a weight is not finite; the last good checkpoint is kept.
        MemoryLimitError: a step on a CPU takes more memory than is granted.
    """
    rank, size = rank_and_size()
    n = len(data)
    batch_size = _shared(min(batch_size, n), size, n)
    total = steps_of(n, epochs, batch_size)
    loop = Loop(_fabric(run), players)
    what = job | data.reading() | {"device": run.device, "precision": run.precision,
                                   "processes": size}  # fmt: skip
    log = TrainingLog(run, total // epochs, epochs)
    partial = Partial(run.partial, what, list(data.records), run.say)
    checkpoints = Checkpoints(players, log, partial)
    loop.step = checkpoints.resume()
    if loop.step:
        run.say(f"going on after step {loop.step} of {total}")
    first, saved = loop.step, time.perf_counter()
    gauge = _Gauge(loop, run, stage)
    with torch.random.fork_rng(devices=[]), _Interruption() as interruption:
        while loop.step < total:
            batch = _places(n, run.seed, loop.step, batch_size)
            torch.manual_seed(_seed_of(run.seed, loop.step, rank))
            given = loop.fabric.to_device(data.at(batch[rank::size]))
            losses = gauge.take(step, given)
            loop.step += 1
            checkpoints.take_in(losses, loop.step)
            log.tell(loop.step)
            log.foretell(loop.step - first, total - loop.step, stage)
            interruption.watch(run.progress, stage, loop.step, total)
            # At the end too: a later stage of the job may be interrupted.
            is_due = loop.step == total or time.perf_counter() - saved > CHECKPOINT_S
            if rank == 0 and (is_due or interruption.came):
                checkpoints.save(loop.step)
                saved = time.perf_counter()
            if interruption.came:
                run.say(f"{stage}: stopped after step {loop.step} of {total}")
                raise KeyboardInterrupt
    for player in players.values():
        player.network.cpu().eval()
    return _history(log, loop.step, batch_size)


def _history(log: TrainingLog, steps: int, batch_size: int) -> History:
    seconds = log.seconds()
    pace = steps * batch_size / max(seconds, 1e-9)
    return History(log.epochs, steps, round(seconds, 3), round(pace, 2))


class _Gauge:
    """Takes steps, and measures the memory of the first ones on a CPU: until every player has
    learned something, for a generator may wait for its turn."""

    def __init__(self, loop: Loop, run: Run, stage: str) -> None:
        self.loop, self.run, self.stage = loop, run, stage
        self.is_done = run.device != "cpu"
        self.peak_mib = 0.0

    def take(self, step: Callable[[Loop, Given], Losses], given: Given) -> Losses:
        """One step; raises MemoryLimitError where it takes more than is granted."""
        loop = self.loop
        if self.is_done:
            return step(loop, given)
        optimizers = [player.optimizer for player in loop.players.values()]
        with StepMemory(self.run, self.stage, optimizers) as memory:
            loop.memory = memory
            losses = step(loop, given)
            loop.memory = None
        self.peak_mib = max(self.peak_mib, memory.peak_mib)
        self.is_done = loop.moved == loop.players.keys()
        if self.is_done:
            self.run.say(
                f"memory: about {round(self.peak_mib)} MiB at the peak of the {self.stage}"
            )
        return losses


def _shared(batch_size: int, size: int, n: int) -> int:
    """The batch size, where each of `size` processes gets its share of it."""
    if size > 1 and (batch_size % size or batch_size < 2 * size):
        raise OptionError(
            f"A batch of {batch_size} images cannot be shared by {size} processes.",
            hint=f"Choose a multiple of {size}, two images for each, and at most {n}.",
        )
    return batch_size


class _Interruption:
    """Within `with`, Ctrl-C lets the step under way come to its end, so that what is saved is what
    an uninterrupted training had at that point. A second one interrupts at once."""

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None
        self._is_mine = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_mine:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_mine:
            signal.signal(signal.SIGINT, self._before or signal.SIG_DFL)

    def _note(self, *_: object) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    def watch(self, call: Callable[..., object], *arguments: object) -> None:
        """Call something that may itself ask for the end."""
        try:
            call(*arguments)
        except KeyboardInterrupt:
            self.came = True


def require_device(run: Run) -> None:
    """Raises OptionError, before any work, for a device that is not there or cannot do the
    precision."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(run.device, True):
        raise OptionError(f"device={run.device}: torch finds none.", hint="Use the device cpu.")
    if run.device == "cpu" and run.precision == "16-mixed":
        raise OptionError(
            "precision=16-mixed is for GPUs.", hint="On the cpu use 32-true or bf16-mixed."
        )


def _fabric(run: Run) -> Fabric:
    require_device(run)
    with naming_extra("Training", "train"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    size = rank_and_size()[1]
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    fabric = Fabric(
        accelerator=run.device, precision=run.precision,  # type: ignore[arg-type]
        devices=local if size > 1 else 1, num_nodes=size // local,
        strategy=DDPStrategy(broadcast_buffers=False) if size > 1 else "auto",
    )  # fmt: skip
    fabric.launch()
    return fabric


def _places(n: int, seed: int, step: int, batch_size: int) -> Int64:
    """Which images a step sees: every epoch has an order of its own, of the seed and the epoch
    alone."""
    epoch, place = divmod(step, max(1, n // batch_size))
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return order[place * batch_size : (place + 1) * batch_size]


def _seed_of(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
