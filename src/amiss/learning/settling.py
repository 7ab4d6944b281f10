"""Statistics of batch norms taken anew when the weights learn no more.

What batch norms gather in a training belongs to weights of the past, to the share of images that
one process saw, and, in a discriminator, to made images as much as to real ones. A finished network
has the statistics of what it learned to take in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from amiss.learning.training_images import ImageBatch, TrainingImages
from amiss.run import Run

BATCHES = 64
"""Batches that the statistics are taken over, or all there are."""


def batch_count(data: TrainingImages, batch_size: int) -> int:
    """How many batches of `data` statistics are taken over."""
    return min(len(data) // min(batch_size, len(data)), BATCHES)


def some_batches(data: TrainingImages, batch_size: int, seed: int) -> Iterator[ImageBatch]:
    """Up to 64 whole batches of training images, drawn by the seed; alike in all processes."""
    size = min(batch_size, len(data))
    numbers = np.random.default_rng(seed).permutation(len(data))
    for number in range(batch_count(data, batch_size)):
        yield data.at(np.sort(numbers[number * size : (number + 1) * size]))


def settle_on_images(
    network: nn.Module, data: TrainingImages, prepare: Callable[[ImageBatch], Tensor],
    batch_size: int, run: Run,
) -> None:  # fmt: skip
    """`settle` a network that takes in images, on training images as `prepare` makes them ready."""
    images = some_batches(data, batch_size, run.seed)
    inputs = ((prepare(batch),) for batch in images)
    settle(network, inputs, batch_count(data, batch_size), run)


@torch.no_grad()
def settle(network: nn.Module, inputs: Iterable[tuple[Tensor, ...]], count: int, run: Run) -> None:
    """Set running means and variances of all batch norms of `network` to their means over what the
    `inputs` are there, each normalised by its own statistics as in training. Leaves the network in
    eval mode; nothing but batch norms leaves it on the way, such as dropout.

    Args:
        network: called as `network(*given)`.
        inputs: at least one batch of two or more.
        count: how many batches they are.
        run: is told how far it is.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean over all batches
        norm.train()
    try:
        for done, given in enumerate(inputs, 1):
            network(*given)
            run.progress("batch norms", done, count)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
