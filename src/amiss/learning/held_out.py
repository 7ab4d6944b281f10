"""What normal images score under a model that has not seen them: the ground of every threshold."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from amiss.errors import DataError
from amiss.learning.normals import Normals, to_tensors
from amiss.nn.parallel import ImageWorkers
from amiss.run import Run
from amiss.types import Bool, Float64, Int64, Prediction

Judge = Callable[[int], tuple[Prediction[Tensor], Tensor | None]]
"""Number of an image -> its prediction (B = 1) and its region of interest (1, H, W) or None."""

_HELD_OUT = 5  # one image in so many is held out where it cannot be left out later
_CHUNK = 16  # images judged between two reports of progress


class HeldOut(NamedTuple):
    """Raw scores of normal images by a model that had not seen them, in the order of `indices`.

    `scores` (n,) float64; `map_maxima` float64, the largest map value of each image inside its
    region of interest, and `map_medians`, the middle one: (n,), or fewer where maps take long, and
    both None for methods that do not localize. `how` says in words where the scores come from.
    """

    indices: Int64
    scores: Float64
    map_maxima: Float64 | None
    map_medians: Float64 | None
    how: str

    def below(self, count: int) -> HeldOut:
        """Those of the images with a number below `count`; the others were picked."""
        mine = self.indices < count
        if mine.all():
            return self

        def of(values: Float64 | None) -> Float64 | None:
            # Where only some images have a map, which ones is not known.
            return values[mine] if values is not None and len(values) == len(mine) else values

        more = f"{self.how}, of which {int((~mine).sum())} that were added do not count"
        return HeldOut(self.indices[mine], self.scores[mine], of(self.map_maxima),
                       of(self.map_medians), more)  # fmt: skip


class _Row(NamedTuple):
    number: int
    score: float
    peak: float | None
    middle: float | None


def draw_held_out(files: Sequence[Hashable], seed: int, *, least: int = 1) -> Int64:
    """The numbers (k,) of about a fifth of n images, drawn at random and ascending.

    `files` names for each image what it must not be parted from, such as `Normals.groups`: cuts of
    one file stay on one side, or they would vouch for each other. At most a fifth of the
    images is drawn, but at least `least` files, as long as one is left to learn from; of a single
    file nothing, as it would be all there is.
    """
    number: dict[Hashable, int] = {}
    group = np.array([number.setdefault(file, len(number)) for file in files], dtype=np.int64)
    size = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(size))
    drawn: list[int] = []
    room = len(files) // _HELD_OUT
    for one in order:
        if size[one] <= room:
            drawn.append(int(one))
            room -= int(size[one])
    rest = order[~np.isin(order, drawn)]
    smallest = rest[np.argsort(size[rest], kind="stable")]
    missing = min(least, len(size) - 1) - len(drawn)
    drawn.extend(smallest[: max(0, missing)].tolist())
    return np.flatnonzero(np.isin(group, drawn))


def hold_out(images: Normals, seed: int, *, least: int = 1) -> Int64:
    """Numbers of the images that are held out: as `draw_held_out`, of those that were not picked
    and are tied to none that was."""
    groups = images.groups()
    mine = np.flatnonzero(~np.isin(groups, groups[images.original :]))
    drawn: Int64 = mine[draw_held_out(groups[mine].tolist(), seed, least=least)]
    return drawn


def parted(images: Normals, seed: int) -> tuple[Int64, Int64]:
    """Numbers of the images to train on, and of those that are held out.

    Raises DataError where there are too few for both.
    """
    apart = hold_out(images, seed)
    mine = np.setdiff1d(np.arange(len(images)), apart)
    if not len(apart) or len(mine) < 2:
        raise DataError(
            f"{len(images)} images cannot be trained on and kept apart as well.",
            hint="Give at least three different normal images.",
        )
    return mine, apart


def told_held_out(apart: Int64, images: Normals) -> str:
    """Where scores come from that only the images of numbers `apart` were held out for."""
    return f"{len(apart)} of {len(images)} normal images, held out"


def leave_one_out(group: Int64, judge: Judge, run: Run, *, numbers: Int64 | None = None) -> HeldOut:
    """`judge` scores each of n images, or only those of `numbers`, by a model that only other
    groups (n,) made; none is wasted. With a single group there is nothing to judge by."""
    n = len(group)
    mine = list(range(n)) if numbers is None else numbers.tolist()
    rows = _judged(judge, mine if group.max() > 0 else [])
    return _collect(rows, len(mine), f"leaving out each of {n} normal images", run)


def cross_conformal(group: Int64, folds: int, run: Run, learn: Callable[[Bool], Judge]) -> HeldOut:
    """Judge each of n images by a model that learned from the other folds; none is wasted.

    Images of one group (n,) stay in one fold. `learn` is handed the images to learn from, (n,)
    bool, and returns how to judge the others.
    """
    n, n_groups = len(group), int(group.max()) + 1
    folds = min(folds, n_groups)
    fold = np.random.default_rng(run.seed).permutation(np.arange(n_groups) % folds)[group]

    def rows() -> Iterator[_Row]:
        for number in range(folds if n_groups > 1 else 0):
            mine = np.flatnonzero(fold == number)
            yield from _judged(learn(fold != number), mine.tolist())

    return _collect(rows(), n, f"cross-conformal over {folds} folds of {n} normal images", run)


def score_held_out(
    model: Callable[[Tensor, Tensor | None], Prediction[Tensor]],
    images: Normals,
    indices: Int64,
    run: Run,
    how: str,
) -> HeldOut:
    """`model`, such as a detector's `forward`, over normals that it has not learned from."""

    def rows() -> Iterator[_Row]:
        for batch in images.only(indices, run.batch_size):
            x, rois = to_tensors(batch.images, batch.rois)
            place = {int(number): i for i, number in enumerate(batch.indices)}

            def judge(number: int) -> tuple[Prediction[Tensor], Tensor | None]:
                i = place[number]  # noqa: B023 - called before the loop moves on
                roi = None if rois is None else rois[i : i + 1]  # noqa: B023
                return model(x[i : i + 1], roi), roi  # noqa: B023

            yield from _judged(judge, batch.indices.tolist())

    return _collect(rows(), len(indices), how, run)


def judge_held_out(judge: Judge, numbers: Int64, run: Run, how: str) -> HeldOut:
    """`judge` scores each of `numbers` by a model that has not learned from it."""
    return _collect(_judged(judge, numbers.tolist()), len(numbers), how, run)


def _judged(judge: Judge, numbers: Iterable[int]) -> Iterator[_Row]:
    """Judge images one per core."""

    def row(number: int) -> _Row:
        prediction, roi = judge(number)
        if prediction.anomaly_map is None:
            return _Row(number, float(prediction.score), None, None)
        peak, middle = map_statistics(prediction.anomaly_map, roi)
        return _Row(number, float(prediction.score), float(peak), float(middle))

    waiting = list(numbers)
    with ImageWorkers() as workers:
        for first in range(0, len(waiting), _CHUNK):
            yield from workers.map(row, waiting[first : first + _CHUNK])


def _collect(rows: Iterable[_Row], total: int, how: str, run: Run) -> HeldOut:
    found = []
    for row in rows:
        found.append(row)
        run.progress("calibration", len(found), total)
    found.sort()
    peaks = [row.peak for row in found if row.peak is not None]
    middles = [row.middle for row in found if row.middle is not None]
    return HeldOut(
        np.array([row.number for row in found], dtype=np.int64),
        np.array([row.score for row in found], dtype=np.float64),
        np.array(peaks) if peaks else None,
        np.array(middles) if middles else None,
        how,
    )


def map_statistics(maps: Tensor, roi: Tensor | None) -> tuple[Tensor, Tensor]:
    """Largest and median value of each map (B, H, W) inside its region of interest: (B,), (B,)."""
    if roi is None:
        flat = maps.flatten(1)
        return flat.amax(1), flat.median(1).values
    inside = [m[r] for m, r in zip(maps, roi, strict=True)]
    return torch.stack([m.max() for m in inside]), torch.stack([m.median() for m in inside])
