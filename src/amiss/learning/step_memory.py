"""`StepMemory`: what a training step takes, known before a machine runs out of it.

What autograd keeps between forward and backward can be counted while it is kept; gradients and the
state of optimizers are as large as the weights, and known before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from amiss.errors import MemoryLimitError
from amiss.memory.plan import ceiling_mib, resident_mib
from amiss.run import Run

_MIB = 1 << 20
_COPIES = 3  # of the weights: the gradient, and Adam's two moments
_BACKWARD = 1.3  # what backward adds to what was kept: gradients of maps, while the first go


class StepMemory:
    """Within `with`, for one step on a CPU: counts what autograd keeps, and ends the step when that
    goes over the memory that is granted. `optimizers`: those of the training; what one that has
    stepped already keeps is there and counted.

    Raises MemoryLimitError from within the forward pass, before the memory is used up.
    """

    def __init__(self, run: Run, stage: str, optimizers: Iterable[Optimizer]) -> None:
        self.run, self.stage = run, stage
        self.ceiling = ceiling_mib(run.max_memory_mib)
        self.before = resident_mib()
        self._weights: set[int] = set()  # there already, whoever keeps them
        for optimizer in optimizers:
            weights = [w for group in optimizer.param_groups for w in group["params"]]
            self._weights |= {w.untyped_storage().data_ptr() for w in weights}
            size = sum(w.numel() * w.element_size() for w in weights) / _MIB
            self.before += size if optimizer.state else _COPIES * size
        self.most = 0  # bytes
        self._kept: dict[int, int] = {}  # of each storage, its bytes
        self._now = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, _same)

    @property
    def peak_mib(self) -> float:
        """The size of the process at the peak of the step."""
        return self.before + _BACKWARD * self.most / _MIB

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def forget(self) -> None:
        """A backward pass has freed what was kept."""
        self._kept.clear()
        self._now = 0

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in self._kept and place not in self._weights:
            self._kept[place] = storage.nbytes()
            self._now += storage.nbytes()
            self.most = max(self.most, self._now)
            if self.ceiling is not None and self.peak_mib > self.ceiling:
                raise MemoryLimitError(
                    f"A step of the {self.stage} takes more than {round(self.peak_mib)} MiB, and "
                    f"{round(self.ceiling)} MiB are granted.",
                    hint="Lower batch_size or image_size, or raise max_memory. Before the step "
                    f"the program itself, with images and weights, takes {round(self.before)} MiB.",
                )
        return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor
