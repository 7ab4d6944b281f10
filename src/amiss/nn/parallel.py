"""One image per core: independent images on threads of their own instead of one on all cores.

Sharing every convolution of a small network among cores costs a barrier per layer, and a barrier
waits for the slowest core, which decoding threads keep busy. Whole images need no barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")


class ImageWorkers:
    """A pool of single-threaded torch workers, as many as torch has threads in the caller.

    Use as a context: on leaving it, torch's thread count is what it was before.
    """

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()

    def __enter__(self) -> Self:
        self.pool = ThreadPoolExecutor(
            self.threads, thread_name_prefix="amiss-network", initializer=_single_threaded
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.threads)

    def map(self, function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
        """`function` of each item, in order, without gradients."""

        def call(item: In) -> Out:
            with torch.inference_mode():
                return function(item)

        return list(self.pool.map(call, items))


def _single_threaded() -> None:
    torch.set_num_threads(1)
