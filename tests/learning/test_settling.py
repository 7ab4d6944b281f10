"""Batch norms after a training: statistics of the finished network, of what it will judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amiss.data.index import index
from amiss.data.stream import ImageStream
from amiss.learning import settling
from amiss.learning.normals import Normals
from amiss.learning.settling import settle, some_batches
from amiss.learning.training_images import TrainingImages
from amiss.run import Run


@pytest.fixture
def data(normals: Path) -> TrainingImages:
    images = Normals(ImageStream(index(normals).train, size=(16, 32)))
    return TrainingImages(images, np.arange(12), Run())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.01), nn.ReLU(),
        nn.Linear(4, 2), nn.BatchNorm1d(2),
    )  # fmt: skip


def test_statistics_are_means_over_the_batches() -> None:
    net = network()
    batches = [torch.randn(5, 3) * scale + scale for scale in (1.0, 2.0, 5.0)]
    for batch in batches:  # leaves something behind, as a training does
        net.train()(batch * 7)
    told: list[tuple[int, int]] = []
    run = Run(progress=lambda _, done, total: told.append((done, total)))
    settle(net, ((batch,) for batch in batches), 3, run)
    assert told == [(1, 3), (2, 3), (3, 3)]
    linear, norm, last = net[0], net[2], net[5]
    with torch.no_grad():
        inner = [linear(batch) for batch in batches]  # no dropout on the way
        mean = torch.stack([x.mean(0) for x in inner]).mean(0)
        variance = torch.stack([x.var(0) for x in inner]).mean(0)
        # The second norm sees what the first makes of each batch by that batch's own statistics.
        after = [
            net[4](torch.relu(norm.weight * _normalised(x, norm.eps) + norm.bias)) for x in inner
        ]
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    torch.testing.assert_close(last.running_mean, torch.stack([x.mean(0) for x in after]).mean(0))
    assert (norm.momentum, last.momentum) == (0.01, 0.1)
    assert not any(module.training for module in net.modules())


def _normalised(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt()


def test_networks_without_batch_norms_are_not_asked() -> None:
    def never() -> None:
        raise AssertionError("asked for a batch")

    net = nn.Linear(3, 3).train()
    settle(net, (never() for _ in range(3)), 3, Run())  # type: ignore[misc]
    assert not net.training


def test_batches_are_whole_of_the_seed_and_not_too_many(
    data: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, again = list(some_batches(data, 5, 0)), list(some_batches(data, 5, 0))
    assert [len(batch.images) for batch in one] == [5, 5]
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, again, strict=True))
    other = list(some_batches(data, 5, 1))
    assert not torch.equal(one[0].images, other[0].images)
    assert [len(batch.images) for batch in some_batches(data, 100, 0)] == [12]
    monkeypatch.setattr(settling, "BATCHES", 3)
    assert len(list(some_batches(data, 2, 0))) == 3
