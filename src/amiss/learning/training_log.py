"""`TrainingLog`: what a training says while it goes on, and what is kept of its losses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amiss.errors import naming_extra
from amiss.learning.processes import rank_and_size
from amiss.run import Run

_PACE_S = 10.0  # after which the pace is known
_PATIENCE_MIN = 3.0
_SAID = 10  # how often the losses are said in the course of a training


Losses = Mapping[str, Tensor | float]


class TrainingLog:
    """Sums the losses of an epoch, says them now and then, and writes them for TensorBoard."""

    def __init__(self, run: Run, per_epoch: int, epochs: int) -> None:
        self.run, self.per_epoch, self.total = run, per_epoch, epochs
        self.epochs: dict[str, list[float]] = {}
        self.sums: dict[str, float] = {}
        self._started, self._is_foretold = time.perf_counter(), False
        self._seconds_before = 0.0  # of the stretches before an interruption
        self._writer: Any = None
        if run.log is not None and rank_and_size()[0] == 0:
            with naming_extra("A log for TensorBoard", "tensorboard"):
                from torch.utils.tensorboard import SummaryWriter
            self._writer = SummaryWriter(str(run.log))

    def add(self, losses: Losses) -> str | None:
        """Take in what a step reports; the name of a loss that is not finite, or None."""
        odd = None
        # All at once: each by itself would make a GPU wait for its answer.
        tensors = {k: v.detach().float() for k, v in losses.items() if isinstance(v, Tensor)}
        told = torch.stack([*tensors.values()]).tolist() if tensors else []
        numbers = {k: float(v) for k, v in losses.items() if not isinstance(v, Tensor)}
        for name, found in (numbers | dict(zip(tensors, told, strict=True))).items():
            odd = odd or (None if math.isfinite(found) else name)
            self.sums[name] = self.sums.get(name, 0.0) + found
        return odd

    def seconds(self) -> float:
        """Of all stretches of the training so far."""
        return self._seconds_before + time.perf_counter() - self._started

    def foretell(self, done: int, left: int, stage: str) -> None:
        """Once, when the pace is known: how long it will take, where that is longer than most would
        wait for."""
        seconds = time.perf_counter() - self._started
        if self._is_foretold or seconds < _PACE_S:
            return
        self._is_foretold = True
        minutes = left * seconds / done / 60
        if minutes > _PATIENCE_MIN:
            long = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.0f} hours"
            self.run.say(
                f"{stage}: about {long} to go at this pace. The page of the method says which "
                "options make it shorter."
            )

    def tell(self, step: int) -> None:
        """After each step; at the end of an epoch its means are kept."""
        epoch, place = divmod(step, self.per_epoch)
        if place:
            return
        means = {name: total / self.per_epoch for name, total in self.sums.items()}
        self.sums = {}
        for name, mean in means.items():
            self.epochs.setdefault(name, []).append(mean)
            if self._writer is not None:
                self._writer.add_scalar(name, mean, epoch)
        if self._writer is not None:
            self._writer.flush()
        if epoch % max(1, self.total // _SAID) == 0 or epoch == self.total:
            told = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
            self.run.say(f"epoch {epoch} of {self.total}: {told}")

    def state(self) -> dict[str, Tensor]:
        """What a training that goes on has to know of the losses so far."""
        epochs = {f"epochs|{name}": means for name, means in self.epochs.items()}
        sums = {f"sums|{name}": total for name, total in self.sums.items()}
        kept = epochs | sums | {"seconds": self.seconds()}
        return {k: torch.tensor(v, dtype=torch.float64) for k, v in kept.items()}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """The reverse of `state`, from whatever else is kept with it."""
        for key, value in kept.items():
            kind, _, name = key.partition("|")
            if kind == "epochs":
                self.epochs[name] = value.tolist()
            elif kind == "sums":
                self.sums[name] = float(value)
            elif kind == "seconds":
                self._seconds_before = float(value)
