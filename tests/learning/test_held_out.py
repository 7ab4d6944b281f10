"""Scores of normals by models that have not seen them: who judges whom, and what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from amiss.data.stream import ImageStream
from amiss.learning.held_out import (
    Judge,
    cross_conformal,
    draw_held_out,
    leave_one_out,
    map_statistics,
    score_held_out,
)
from amiss.learning.normals import Normals
from amiss.run import Run
from amiss.types import Bool, Prediction, Record


def prediction(number: int) -> Prediction[Tensor]:
    """Score 100 + number; a map of 0 to 5 with the number added."""
    grid = torch.arange(6.0).view(1, 2, 3) + number
    return Prediction(torch.tensor([100.0 + number]), grid)


def judge(number: int) -> tuple[Prediction[Tensor], Tensor | None]:
    return prediction(number), None


# --- leaving one out, and folds --------------------------------------------------------------


def test_leaving_one_out_judges_every_image_once_and_in_order() -> None:
    n = 40  # more than are judged between two reports of progress
    steps: list[tuple[str, int, int]] = []
    run = Run(progress=lambda *step: steps.append(step))
    found = leave_one_out(np.arange(n), judge, run)
    assert found.indices.tolist() == list(range(n))
    assert found.scores.tolist() == [100.0 + i for i in range(n)]
    assert found.map_maxima is not None and found.map_medians is not None
    assert found.map_maxima.tolist() == [5.0 + i for i in range(n)]
    assert found.map_medians.tolist() == [2.0 + i for i in range(n)]
    assert str(n) in found.how
    assert steps == [("calibration", i + 1, n) for i in range(n)]


def test_a_single_group_has_nothing_to_be_judged_by() -> None:
    def never(number: int) -> tuple[Prediction[Tensor], Tensor | None]:
        raise AssertionError(f"image {number} was judged by its own copies")

    for found in (
        leave_one_out(np.zeros(3, dtype=np.int64), never, Run()),
        cross_conformal(np.zeros(3, dtype=np.int64), 5, Run(), lambda _: never),
    ):
        assert found.indices.shape == found.scores.shape == (0,)
        assert found.map_maxima is None and found.map_medians is None


def test_a_method_without_maps_has_scores_only() -> None:
    found = leave_one_out(
        np.arange(3), lambda i: (Prediction(torch.tensor([float(-i)]), None), None), Run()
    )
    assert found.scores.tolist() == [0.0, -1.0, -2.0]
    assert found.map_maxima is None and found.map_medians is None


@pytest.mark.parametrize("folds", [2, 3, 50])
def test_no_image_is_judged_by_a_model_that_learned_from_its_group(folds: int) -> None:
    group = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5])
    learned: list[Bool] = []
    judged: list[int] = []

    def learn(images: Bool) -> Judge:
        learned.append(images)

        def by_others(number: int) -> tuple[Prediction[Tensor], Tensor | None]:
            assert not images[group == group[number]].any()
            judged.append(number)
            return judge(number)

        return by_others

    found = cross_conformal(group, folds, Run(seed=3), learn)
    assert len(learned) == min(folds, 6)
    assert sorted(judged) == found.indices.tolist() == list(range(9))
    assert found.scores.tolist() == [100.0 + i for i in range(9)]


def test_the_seed_draws_the_folds() -> None:
    def drawn(seed: int) -> list[list[bool]]:
        learned: list[list[bool]] = []

        def learn(images: Bool) -> Judge:
            learned.append(images.tolist())
            return judge

        cross_conformal(np.arange(12), 3, Run(seed=seed), learn)
        return learned

    assert drawn(0) == drawn(0) != drawn(1)


# --- a part that is held out -----------------------------------------------------------------


def files(*cuts: int) -> list[Path]:
    """So many cuts of each of several files."""
    return [Path(f"{number}.png") for number, count in enumerate(cuts) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_cuts_of_a_file_are_held_out_together(seed: int) -> None:
    names = files(1, 3, 2, 2, 1, 1, 4, 2, 1, 3)  # 20 images
    held_out = draw_held_out(names, seed)
    assert held_out.dtype == np.int64 and (np.diff(held_out) > 0).all()
    assert len(held_out) == 4  # small files fill up what larger ones leave
    mine = {names[i] for i in held_out}
    others = {name for i, name in enumerate(names) if i not in set(held_out.tolist())}
    assert mine and others and not mine & others


def test_single_images_are_drawn_at_random() -> None:
    order = np.random.default_rng(7).permutation(23)
    assert draw_held_out(files(*[1] * 23), 7).tolist() == sorted(order[:4].tolist())
    many = [draw_held_out(files(*[1] * 10), seed).tolist() for seed in range(60)]
    assert {i for drawn in many for i in drawn} == set(range(10))


def test_where_no_file_is_small_enough_the_smallest_is_held_out() -> None:
    assert draw_held_out(files(9, 5, 8), 0).tolist() == [9, 10, 11, 12, 13]
    assert len(draw_held_out(files(1, 1), 0)) == 1


def test_two_files_are_held_out_where_so_many_are_asked_for() -> None:
    assert draw_held_out(files(1, 9, 2, 8), 0, least=2).tolist() == [0, 10, 11]
    assert len(draw_held_out(files(*[1] * 5), 3, least=2)) == 2
    assert len(draw_held_out(files(1, 1), 0, least=2)) == 1  # one is left to learn from
    assert len(draw_held_out(files(*[1] * 50), 3, least=2)) == 10


def test_a_single_file_is_not_held_out() -> None:
    assert draw_held_out(files(1), 0).tolist() == []
    assert draw_held_out(files(16), 0).tolist() == []


def test_a_model_judges_the_images_that_were_held_out(normals: Path) -> None:
    records = [Record(path) for path in sorted(normals.iterdir())]
    images = Normals(ImageStream(records, size=(12, 16)))
    seen: list[tuple[int, ...]] = []

    def model(x: Tensor, roi: Tensor | None) -> Prediction[Tensor]:
        seen.append(tuple(x.shape))
        assert roi is None
        return Prediction(x.float().mean((1, 2, 3)), x.float().mean(1))

    indices = np.array([1, 4, 5, 9, 10])
    found = score_held_out(model, images, indices, Run(batch_size=2), "some were held out")
    assert found.indices.tolist() == indices.tolist() and found.how == "some were held out"
    assert seen == [(1, 3, 12, 16)] * 5
    (batch,) = ImageStream([records[i] for i in indices], size=(12, 16)).batches(5)
    means = batch.images.astype(np.float64).mean(3)
    np.testing.assert_allclose(found.scores, means.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.map_maxima, means.max((1, 2)), rtol=1e-5)


def test_statistics_of_maps_heed_the_region_of_interest() -> None:
    maps = torch.tensor([[[1.0, 9.0, 2.0], [5.0, 4.0, 3.0]], [[0.0, 0.0, 7.0], [1.0, 1.0, 1.0]]])
    peak, middle = map_statistics(maps, None)
    assert peak.tolist() == [9.0, 7.0] and middle.tolist() == [3.0, 1.0]
    roi = torch.ones(2, 2, 3, dtype=torch.bool)
    roi[0, 0, 1] = roi[1, 0, 2] = False
    peak, middle = map_statistics(maps, roi)
    assert peak.tolist() == [5.0, 1.0] and middle.tolist() == [3.0, 1.0]
