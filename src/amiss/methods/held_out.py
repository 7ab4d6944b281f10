"""What normal images score under a model that has not seen them: the ground of every threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amiss.data.stream import Batch
from amiss.methods.base import Detector, Normals, to_tensors
from amiss.nn.parallel import ImageWorkers
from amiss.run import Run
from amiss.types import Bool, Float64, Int64, Prediction

Judge = Callable[[int], tuple[Prediction[Tensor], Tensor | None]]
"""Number of an image -> its prediction (B = 1) and its region of interest (1, H, W) or None."""


class HeldOut(NamedTuple):
    """Raw scores of normal images by a model that had not seen them, in the order of `indices`.

    `scores` (n,) float64; `map_maxima` (n,) float64, the largest map value of each image inside its
    region of interest, and `map_medians` (n,), the middle one; both None for methods that do not
    localize. `how` says in words where the scores come from.
    """

    indices: Int64
    scores: Float64
    map_maxima: Float64 | None
    map_medians: Float64 | None
    how: str


def cross_conformal(n: int, folds: int, run: Run, learn: Callable[[Bool], Judge]) -> HeldOut:
    """Judge each of n images by a model that learned from the other folds; none is wasted.

    `learn` is handed the images to learn from, (n,) bool, and returns how to judge the others.
    """
    fold = fold_numbers(n, folds, run.seed)
    n_folds = int(fold.max()) + 1 if n > 1 else 0
    scores, maxima, medians = np.zeros(n), np.zeros(n), np.zeros(n)
    localizes = True
    for number in range(n_folds):
        mine = np.flatnonzero(fold == number)
        judge = learn(fold != number)
        with ImageWorkers() as workers:
            for i, (prediction, roi) in zip(mine, workers.map(judge, mine.tolist()), strict=True):
                scores[i] = float(prediction.score)
                localizes = prediction.anomaly_map is not None
                if prediction.anomaly_map is not None:
                    peak, middle = map_statistics(prediction.anomaly_map, roi)
                    maxima[i], medians[i] = float(peak), float(middle)
        run.progress("calibration", number + 1, n_folds)
    order = np.arange(n if n_folds else 0)
    return HeldOut(
        order,
        scores[order],
        maxima[order] if localizes else None,
        medians[order] if localizes else None,
        f"cross-conformal over {n_folds} folds of {n} normal images",
    )


def score_held_out(
    detector: Detector, images: Normals, indices: Int64, run: Run, how: str
) -> HeldOut:
    """`forward` over normals that `detector` has not learned from."""
    scores: list[float] = []
    maxima: list[float] = []
    medians: list[float] = []
    order: list[int] = []
    for batch in images.only(indices, run.batch_size):
        with ImageWorkers() as workers:
            for score, maps, roi in predict_batch(detector, batch, workers):
                scores.append(float(score))
                if maps is not None:
                    peak, middle = map_statistics(maps, roi)
                    maxima.append(float(peak))
                    medians.append(float(middle))
        order.extend(batch.indices.tolist())
        run.progress("calibration", len(order), len(indices))
    return HeldOut(
        np.array(order, dtype=np.int64),
        np.array(scores),
        np.array(maxima) if maxima else None,
        np.array(medians) if medians else None,
        how,
    )


def predict_batch(
    detector: Detector, batch: Batch, workers: ImageWorkers
) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """(score (1,), map (1, H, W) or None, roi (1, H, W) or None) of each image of a batch."""
    x, rois = to_tensors(batch.images, batch.rois)

    def judge(i: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        roi = None if rois is None else rois[i : i + 1]
        return *detector(x[i : i + 1], roi), roi

    return workers.map(judge, range(len(x)))


def map_statistics(maps: Tensor, roi: Tensor | None) -> tuple[Tensor, Tensor]:
    """Largest and median value of each map (B, H, W) inside its region of interest: (B,), (B,)."""
    if roi is None:
        flat = maps.flatten(1)
        return flat.amax(1), flat.median(1).values
    inside = [m[r] for m, r in zip(maps, roi, strict=True)]
    return torch.stack([m.max() for m in inside]), torch.stack([m.median() for m in inside])


def fold_numbers(n: int, folds: int, seed: int) -> Int64:
    """(n,) int64: the fold of each image, of near equal sizes, drawn at random.

    `folds` 0 takes n folds up to 20 images, ten up to 100, else five: with few images each of them
    weighs more, and a fold costs less.
    """
    wanted = folds or (n if n <= 20 else 10 if n <= 100 else 5)
    return np.random.default_rng(seed).permutation(np.arange(n) % min(wanted, n))
