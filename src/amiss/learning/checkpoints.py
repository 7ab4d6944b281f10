"""`Checkpoints`: what the rest of a training depends on, written now and then, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from amiss.errors import TrainingError
from amiss.learning.partial import Partial
from amiss.learning.training_log import Losses, TrainingLog


class Player(NamedTuple):
    """A network that learns, and how. `clip_norm`: the norm that gradients are cut to, or None."""

    network: nn.Module
    optimizer: Optimizer
    clip_norm: float | None = None


class Checkpoints:
    """The state of `players` and of what was logged, in the file of `partial`."""

    def __init__(self, players: Mapping[str, Player], log: TrainingLog, partial: Partial) -> None:
        self.players, self.log, self.partial = players, log, partial
        self.last: int | None = None  # the step of the one in the file

    def resume(self) -> int:
        """Go on from what the file holds; how many steps were taken until then, or 0."""
        kept = self.partial.load()
        if not kept:
            return 0
        for name, player in self.players.items():
            under = f"network|{name}|"
            player.network.load_state_dict(
                {k.removeprefix(under): v for k, v in kept.items() if k.startswith(under)}
            )
            state: dict[int, dict[str, Tensor]] = {}
            weights = [w for group in player.optimizer.param_groups for w in group["params"]]
            for key, value in kept.items():
                kind, _, rest = key.partition("|")
                owner, _, rest = rest.partition("|")
                if kind == "optimizer" and owner == name:
                    number, _, what = rest.partition("|")
                    state.setdefault(int(number), {})[what] = _laid_out(value, weights[int(number)])
            groups = player.optimizer.state_dict()["param_groups"]
            player.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.log.restore(kept)
        self.last = int(kept["step"])
        return self.last

    def take_in(self, losses: Losses, step: int) -> None:
        """Log what a step reports; raises TrainingError where it is not finite."""
        odd = self.log.add(losses)
        if odd is not None:
            raise self.broken(f"The loss {odd!r} is not finite", step)

    def save(self, step: int) -> None:
        """Write the state after `step` steps over the last one.

        Raises TrainingError, and leaves the last one, where a weight is not finite.
        """
        kept = {"step": torch.tensor(step)}
        for name, player in self.players.items():
            for key, value in player.network.state_dict().items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise self.broken(f"The weights {key} of {name} are not finite", step)
                kept[f"network|{name}|{key}"] = _copy(value)
            for number, values in player.optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    kept[f"optimizer|{name}|{number}|{key}"] = _copy(torch.as_tensor(value))
        self.partial.save(kept | self.log.state())
        self.last = step if self.partial.path is not None else None

    def broken(self, what: str, step: int) -> TrainingError:
        """The error of a training that came to nothing in `step`."""
        kept = ""
        if self.last is not None:
            kept = (
                f" The last good checkpoint, of step {self.last}, is kept in {self.partial.path}."
            )
        return TrainingError(
            f"{what} in step {step}.",
            hint=f"Lower the learning rate, or train in 32-true.{kept}",
        )


def _copy(value: Tensor) -> Tensor:
    """A copy that can be written: on the CPU, and in plain order whatever its layout."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _laid_out(value: Tensor, weight: Tensor) -> Tensor:
    """In the order of the weight that it belongs to: fused optimizers go through both alike."""
    if value.shape != weight.shape:
        return value
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)
