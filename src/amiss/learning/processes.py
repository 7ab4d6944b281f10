"""Several processes that learn together, such as those of `torchrun`: who does what, and merging.

Everything here does the obvious thing in a single process.
"""

from __future__ import annotations

import atexit
import os
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor

from amiss.memory.gaussians import Moments
from amiss.types import Int64

T = TypeVar("T")


def join_others() -> None:
    """Meet the other processes of a job that `torchrun` or the like has started, if there are any.

    Over gloo, which needs no GPU. The group is taken apart before the interpreter is: threads that
    it still ran then would end the process by a signal, after all its work was done.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if several and dist.is_available() and not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """This process's number, from 0, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(n: int) -> Int64:
    """Which of n pieces of work this process does: every size-th, from its rank on."""
    rank, size = rank_and_size()
    return np.arange(rank, n, size, dtype=np.int64)


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks, in every one of them."""
    size = rank_and_size()[1]
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def merged(moments: Moments) -> Moments:
    """The moments of what all processes have seen, the same bits in every one of them."""
    rank, size = rank_and_size()
    if size == 1:
        return moments
    total = Moments(*moments.mean.shape)
    for source in range(size):
        part = moments if source == rank else Moments(*moments.mean.shape)
        for tensor in (part.count, part.mean, part.scatter):
            dist.broadcast(tensor, src=source)
        total.merge(part)
    return total


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(tensor)
    return tensor
