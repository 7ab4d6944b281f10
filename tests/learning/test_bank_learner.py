"""How a bank is learned and judged, with an embedding that is only a mean of colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amiss.data.stream import ImageStream
from amiss.errors import MemoryLimitError
from amiss.learning.bank_learner import BankLearner
from amiss.learning.normals import Normals
from amiss.memory.bank import Bank
from amiss.memory.plan import MemoryPlan
from amiss.memory.selection import Selection
from amiss.run import Run
from amiss.types import Prediction, Record
from made_images import textures

SIZE = (16, 24)
GRID = (3, 4, 6)


def embed(images: Tensor) -> Tensor:
    return F.avg_pool2d(images.float(), 4)


def score(bank: Bank, patches: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
    distance, _ = bank.nearest(patches[0])
    return Prediction(distance.max()[None], distance.view(1, *GRID[1:]))


def learner(*, folds: int = 0, ratio: float = 1.0) -> BankLearner:
    return BankLearner(
        embed=embed, score=score, grid=GRID, num_neighbors=1, search="exact", folds=folds, job={},
        selection=Selection("greedy", ratio, None, projection_dim=0, seed=0),
    )  # fmt: skip


def images_of(records: list[Record]) -> Normals:
    return Normals(ImageStream(records, size=SIZE))


def strips(folder: Path, count: int, cuts: int) -> list[Record]:
    """Strips of `cuts` squares each, the squares of one strip in a row."""
    textures(folder, count, seed=3, size=(16, 24 * cuts))
    return [
        Record(path, crop=(0, 24 * i, 16, 24))
        for path in sorted(folder.iterdir())
        for i in range(cuts)
    ]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds no more than a chunk of patches."""
    plan = MemoryPlan(100, 100, chunk_rows=100, keep=0.2)
    monkeypatch.setattr("amiss.learning.bank_learner.plan_memory", lambda *_, **__: plan)


def distances_to_others(records: list[Record], groups: list[int]) -> list[float]:
    """The largest distance of a patch of each image to its nearest in another group."""
    (batch,) = ImageStream(records, size=SIZE).batches(len(records))
    x = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    patches = embed(x).flatten(2).transpose(1, 2).double()  # (n, P, D)
    found = []
    for i, group in enumerate(groups):
        others = [j for j, other in enumerate(groups) if other != group]
        distance = torch.cdist(patches[i], patches[others].flatten(0, 1))
        found.append(float(distance.amin(1).max()))
    return found


def test_each_image_is_judged_by_all_patches_of_the_other_groups(tmp_path: Path) -> None:
    records = strips(tmp_path, 4, 3)
    groups = [i // 3 for i in range(12)]
    expected = distances_to_others(records, groups)
    for folds in (0, 4):  # with as many folds as strips, a fold is a strip
        learned = learner(folds=folds).learn(images_of(records), Run())
        assert learned.held_out.indices.tolist() == list(range(12))
        np.testing.assert_allclose(learned.held_out.scores, expected, rtol=1e-3)
        assert learned.facts["rows"] == 12 * 24 == len(learned.bank)


@pytest.mark.usefixtures("stream")
def test_a_stream_holds_out_whole_strips(tmp_path: Path) -> None:
    records = strips(tmp_path, 10, 3)
    drawn = set()
    for seed in range(4):
        learned = learner(ratio=0.05).learn(images_of(records), Run(seed=seed))
        held_out = learned.held_out.indices.tolist()
        learned_from = {int(i) for i in learned.bank.origin[:, 0]}
        assert len(held_out) == 6
        assert not {i // 3 for i in held_out} & {i // 3 for i in learned_from}
        assert learned.facts["patches_seen"] == 24 * 24
        assert learned.held_out.how.startswith("6 of 30")
        drawn.add(tuple(held_out))
    assert len(drawn) > 1


@pytest.mark.usefixtures("stream")
def test_a_stream_of_one_strip_has_nothing_to_judge(tmp_path: Path) -> None:
    learned = learner(ratio=0.05).learn(images_of(strips(tmp_path, 1, 30)), Run())
    assert learned.held_out.scores.shape == (0,)
    assert learned.facts["patches_seen"] == 30 * 24


@pytest.mark.usefixtures("stream")
def test_a_stream_refuses_what_needs_all_patches_at_once(tmp_path: Path) -> None:
    selection = Selection("random", 0.05, None, projection_dim=0, seed=0)
    with pytest.raises(MemoryLimitError, match="coreset=random"):
        replace(learner(), selection=selection).learn(images_of(strips(tmp_path, 2, 3)), Run())
