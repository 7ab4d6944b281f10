"""`GaussianLearner`: one Gaussian per cell from normal images, and what each image scores without
itself.

Where there is room, the features of all images are kept, and every cell is learned and left out at
once. Otherwise, and where several processes learn together, features pass by and leave their
moments; leaving an image out, which is exact and needs no second learning, takes a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amiss.errors import MemoryLimitError
from amiss.learning.embedding import Embed, MoveRoi, embedded
from amiss.learning.held_out import HeldOut, leave_one_out
from amiss.learning.normals import Normals
from amiss.learning.processes import gathered, merged, rank_and_size, share
from amiss.memory.gaussians import Moments, learn_at_once, leave_group_out, left_out_cholesky
from amiss.memory.gaussians import leave_one_out as leave_single_out
from amiss.memory.plan import ceiling_mib, resident_mib
from amiss.nn.mahalanobis import GaussianGrid
from amiss.nn.roi import RoiStore
from amiss.run import Run
from amiss.types import Int64, Prediction

_CHUNK = 64
"""Images whose features are taken in at once: fewer passes over the moments, which are large."""
_MIB = 1 << 20
_UNDER_WAY_MIB = 320  # decoded photographs, maps of the network, blocks of cells: measured


class LearnedGaussians(NamedTuple):
    """The Gaussians, what there is to say about them, and what held-out normals score."""

    gaussians: GaussianGrid
    facts: dict[str, Any]
    held_out: HeldOut


class _Chunk(NamedTuple):
    numbers: Int64  # (n,) of the images
    features: Tensor  # (n, P, D)


@dataclass(frozen=True)
class GaussianLearner:
    """`embed` turns images (B, 3, H, W) uint8 into features (B, P, D); `score` makes a prediction
    of distances (B, P) and rois (B, H, W) or None. `grid` is (D, h, w); `epsilon` is added to the
    diagonal of every covariance. `move_roi` is for features in another frame than the image's."""

    embed: Embed
    score: Callable[[Tensor, Tensor | None], Prediction[Tensor]]
    grid: tuple[int, int, int]
    epsilon: float
    move_roi: MoveRoi | None = None

    def learn_from(self, images: Normals, numbers: Int64, run: Run) -> GaussianGrid:
        """The Gaussians of some images alone; who judges the others sees to that.

        Raises MemoryLimitError where they take more than is granted.
        """
        dim, height, width = self.grid
        self._require(self._passes_mib(len(numbers)), run)
        rois = RoiStore(len(images), images.stream.size)
        moments = Moments(height * width, dim)
        for chunk in self._passed(images, numbers[share(len(numbers))], rois, run):
            moments.add(chunk.features, self._inside(rois, chunk.numbers))
        _share_digests(images)
        return GaussianGrid.from_moments(merged(moments), self.epsilon)

    def learn(self, images: Normals, run: Run) -> LearnedGaussians:
        """Say how much memory it takes, then learn."""
        dim, height, width = self.grid
        n = len(images)
        rois = RoiStore(n, images.stream.size)
        facts = {"images": n, "cells": [height, width], "dim": dim}
        if self._fits(n, run) and rank_and_size()[1] == 1:
            gaussians, distances = self._learn_at_once(images, rois, run)
        else:
            gaussians, distances = self._learn_in_passes(images, rois, run)

        def judge(i: int) -> tuple[Prediction[Tensor], Tensor | None]:
            roi = rois.get(i)
            return self.score(distances[i][None], roi), roi

        found = leave_one_out(images.groups(), judge, run, numbers=share(n))
        held_out = found if rank_and_size()[1] == 1 else _together(gathered(found))
        return LearnedGaussians(gaussians, facts, held_out)

    def _fits(self, n: int, run: Run) -> bool:
        """Whether there is room for the features of all images; says what memory is needed."""
        dim, height, width = self.grid
        cells = height * width
        factor = cells * dim * dim * 4 / _MIB
        features = n * cells * dim * 4 / _MIB
        passes = self._passes_mib(n)
        whole = resident_mib() + factor + features + _UNDER_WAY_MIB
        ceiling = ceiling_mib(run.max_memory_mib)
        fits = ceiling is None or whole <= ceiling
        if not fits:
            self._require(min(passes, whole), run)
        how = "all features at once" if fits else "two passes over the images"
        run.say(f"memory: about {round(whole if fits else passes)} MiB at the peak, {how}")
        return fits

    def _passes_mib(self, n: int) -> float:
        """The peak of a pass over n images."""
        dim, height, width = self.grid
        factor = height * width * dim * dim * 4 / _MIB
        features = n * height * width * dim * 4 / _MIB
        # The moments in float64 and the factors of both kinds; features under way.
        return resident_mib() + 5 * factor + 2 * features * min(1, _CHUNK / n) + 64

    def _require(self, need_mib: float, run: Run) -> None:
        ceiling = ceiling_mib(run.max_memory_mib)
        if ceiling is not None and need_mib > ceiling:
            dim, height, width = self.grid
            raise MemoryLimitError(
                f"{height * width} Gaussians of {dim} dimensions take about {round(need_mib)} MiB, "
                f"and {round(ceiling)} MiB are granted.",
                hint="Lower dim or image_size, or raise max_memory.",
            )

    def _learn_at_once(
        self, images: Normals, rois: RoiStore, run: Run
    ) -> tuple[GaussianGrid, dict[int, Tensor]]:
        dim, height, width = self.grid
        features = torch.empty(len(images), height * width, dim)
        for chunk in self._passed(images, share(len(images)), rois, run):
            features[torch.from_numpy(chunk.numbers)] = chunk.features
        inside = self._inside(rois, np.arange(len(images)))
        moments, factor, left_out = learn_at_once(features, inside, self.epsilon)
        distances = dict(enumerate(left_out))
        group = images.groups()
        together = [np.flatnonzero(group == g) for g in np.flatnonzero(np.bincount(group) > 1)]
        if together:
            moments = Moments(height * width, dim)
            moments.add(features, inside)
            chunks = (_Chunk(numbers, features[torch.from_numpy(numbers)]) for numbers in together)
            distances.update(self._groups_left_out(moments, chunks, rois))
        grid = GaussianGrid(moments.count.float(), moments.mean.float(), factor)
        return grid, distances

    def _learn_in_passes(
        self, images: Normals, rois: RoiStore, run: Run
    ) -> tuple[GaussianGrid, dict[int, Tensor]]:
        """One pass for the moments, which processes add up, and one to leave images out."""
        dim, height, width = self.grid
        mine = share(len(images))
        moments = Moments(height * width, dim)
        for chunk in self._passed(images, mine, rois, run):
            moments.add(chunk.features, self._inside(rois, chunk.numbers))
        _share_digests(images)
        moments = merged(moments)
        gaussians = GaussianGrid.from_moments(moments, self.epsilon)
        group = images.groups()
        size = np.bincount(group)
        lower = left_out_cholesky(moments, self.epsilon, 1)
        distances: dict[int, Tensor] = {}
        alone = mine[size[group[mine]] == 1]
        for chunk in self._passed(images, alone, rois, run, "leaving out"):
            found = leave_single_out(moments, chunk.features, lower).float()
            inside = self._inside(rois, chunk.numbers)
            distances.update(
                zip(chunk.numbers.tolist(),
                    found if inside is None else found.where(inside, 0.0), strict=True)
            )  # fmt: skip
        del lower
        together = [np.flatnonzero(group == g) for g in np.unique(group[mine]) if size[g] > 1]
        chunks = (
            _joined(list(self._passed(images, numbers, rois, run, "groups")))
            for numbers in together
        )
        distances.update(self._groups_left_out(moments, chunks, rois))
        return gaussians, distances

    def _passed(
        self, images: Normals, numbers: Int64, rois: RoiStore, run: Run, stage: str = "features"
    ) -> Iterator[_Chunk]:
        """The features of some images, in chunks that do not depend on the batch size."""
        waiting: list[_Chunk] = []
        for indices, features, roi in embedded(
            self.embed, images, numbers, run, stage=stage, move_roi=self.move_roi
        ):
            rois.put(indices, roi)
            for row, number in enumerate(indices):
                waiting.append(_Chunk(np.array([number]), features[row : row + 1]))
                if len(waiting) == _CHUNK:
                    yield _joined(waiting)
                    waiting = []
        if waiting:
            yield _joined(waiting)

    def _inside(self, rois: RoiStore, numbers: Int64) -> Tensor | None:
        """(n, P) bool: the cells of these images that are looked at; None for all."""
        if rois.packed is None:
            return None
        return torch.from_numpy(rois.cells(self.grid[1:], numbers))

    def _groups_left_out(
        self, moments: Moments, groups: Iterable[_Chunk], rois: RoiStore
    ) -> Iterator[tuple[int, Tensor]]:
        """(number, distances (P,) float32) of images that are left out together."""
        lowers: dict[int, Tensor] = {}
        for chunk in groups:
            inside = self._inside(rois, chunk.numbers)
            if inside is None:
                inside = torch.ones(chunk.features.shape[:2], dtype=torch.bool)
            for k in inside.sum(dim=0).unique().tolist():
                if k and k not in lowers:
                    lowers[k] = left_out_cholesky(moments, self.epsilon, k)
            found = leave_group_out(moments, chunk.features, inside, lowers).float()
            yield from zip(chunk.numbers.tolist(), found, strict=True)


def _share_digests(images: Normals) -> None:
    """What other processes have read is known to this one too."""
    for digests in gathered(images.digests):
        images.digests.update(digests)


def _joined(chunks: list[_Chunk]) -> _Chunk:
    return _Chunk(
        np.concatenate([chunk.numbers for chunk in chunks]),
        torch.cat([chunk.features for chunk in chunks]),
    )


def _together(parts: list[HeldOut]) -> HeldOut:
    """What several processes found, in the order of the images."""
    order = np.argsort(np.concatenate([part.indices for part in parts]))

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts if getattr(part, name) is not None]
        return np.concatenate(values)[order] if values else None

    return HeldOut(
        joined("indices"), joined("scores"), joined("map_maxima"), joined("map_medians"),
        parts[0].how,
    )  # fmt: skip
