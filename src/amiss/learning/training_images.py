"""The images that a training goes over, kept decoded where there is room.

A frozen network sees the same images in every epoch, so what it says of them is computed once and
kept as well, where that fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from amiss.learning.half_rows import HalfRows
from amiss.learning.normals import Normals, to_tensors
from amiss.memory.plan import ceiling_mib, resident_mib
from amiss.nn.parallel import ImageWorkers
from amiss.run import Run
from amiss.types import Int64, Record

Given_co = TypeVar("Given_co", covariant=True)
Teach = Callable[[Tensor], tuple[Tensor, ...]]
"""(B, 3, H, W) uint8 -> what a frozen network says of them, each (B, ...) float32."""

_CHUNK = 16  # images between two reports of progress
_SHARE = 0.8  # of the memory that may be used, for what is kept


class Batches(Protocol[Given_co]):
    """What a training goes over: a number of places, and what stands at them."""

    def __len__(self) -> int: ...

    def at(self, places: Int64) -> Given_co:
        """What stands at places (b,): a tensor, or a tuple of tensors and None, of b rows each.
        Anything random in it is drawn from torch's global generator."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """The files behind it."""
        ...

    def reading(self) -> dict[str, str]:
        """What besides the files themselves decides what stands there."""
        ...


class _SomeImages:
    """Some images of a set, by number, as `Batches` asks for them."""

    def __init__(self, images: Normals, numbers: Int64, run: Run) -> None:
        self.images, self.numbers, self.run = images, numbers, run

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def records(self) -> list[Record]:
        return [self.images.stream.records[i] for i in self.numbers]

    def reading(self) -> dict[str, str]:
        return self.images.reading()


class ImageBatch(NamedTuple):
    """`images` (b, 3, H, W) uint8; `rois` (b, H, W) bool, or None for everywhere."""

    images: Tensor
    rois: Tensor | None


class TrainingImages(_SomeImages):
    """Some images of a set, by number, with their regions of interest: decoded once and kept where
    there is room, else read anew for every batch."""

    def __init__(self, images: Normals, numbers: Int64, run: Run) -> None:
        super().__init__(images, numbers, run)
        height, width = images.stream.size
        self.kept: ImageBatch | None = None
        if _has_room(len(numbers) * height * width * 4, run):
            self.kept = _read(images, numbers, run)

    def at(self, places: Int64) -> ImageBatch:
        """Those at `places` of this row of images."""
        if self.kept is None:
            return _read(self.images, self.numbers[places], self.run)
        x, rois = self.kept
        rows = torch.from_numpy(places)
        return ImageBatch(x[rows], None if rois is None else rois[rows])


class TaughtBatch(NamedTuple):
    """`images` (b, 3, H, W) uint8; `rois` (b, H, W) bool, or None for everywhere; `targets`: what
    the frozen network says of them, each (b, ...) float32, or None where that was not kept."""

    images: Tensor
    rois: Tensor | None
    targets: tuple[Tensor, ...] | None


class TaughtImages(_SomeImages):
    """Some images of a set, their regions of interest, and what a frozen network says of them.

    Where there is no room for all of that, the network is asked again for every batch; or, with
    `on_disk`, what it says is kept in a file in half precision, and images are read again.
    """

    def __init__(
        self, images: Normals, numbers: Int64, run: Run, teach: Teach, *, on_disk: bool = False
    ) -> None:
        super().__init__(images, numbers, run)
        height, width = images.stream.size
        self.kept: tuple[Tensor, Tensor | None, tuple[Tensor, ...]] | None = None
        self.half: HalfRows | None = None
        with torch.inference_mode():
            first = teach(_read(images, numbers[:1], run).images)
        values = sum(target[0].numel() for target in first)
        if _has_room(len(numbers) * (height * width * 4 + 4 * values), run):
            x, rois = _read(images, numbers, run)
            self.kept = x, rois, self._targets(x, first, teach)
        elif on_disk and HalfRows.has_disk(len(numbers), values):
            self.half = self._half(first, teach)

    def _targets(self, x: Tensor, first: tuple[Tensor, ...], teach: Teach) -> tuple[Tensor, ...]:
        # Made out here: a tensor that was made without gradients in mind cannot be learned from.
        targets = tuple(torch.empty(len(x), *target.shape[1:]) for target in first)
        with ImageWorkers() as workers:
            for start in range(0, len(x), _CHUNK):
                found = workers.map(teach, x[start : start + _CHUNK].split(1))
                for target, parts in zip(targets, zip(*found, strict=True), strict=True):
                    target[start : start + _CHUNK] = torch.cat(parts)
                self.run.progress("features", min(start + _CHUNK, len(x)), len(x))
        return targets

    def _half(self, first: tuple[Tensor, ...], teach: Teach) -> HalfRows | None:
        """What the network says, in a file; None where half precision is too narrow for it."""
        n = len(self)
        rows = HalfRows(n, [target.shape[1:] for target in first])
        with ImageWorkers() as workers:
            for start in range(0, n, _CHUNK):
                x = _read(self.images, self.numbers[start : start + _CHUNK], self.run).images
                found = workers.map(teach, x.split(1))
                if not rows.put(start, [torch.cat(parts) for parts in zip(*found, strict=True)]):
                    self.run.say("features do not fit a file, and are computed anew each time")
                    return None
                self.run.progress("features", min(start + _CHUNK, n), n)
        size = rows.row_bytes * n / (1 << 20)
        self.run.say(f"features: {size:.0f} MiB in half precision in a temporary file")
        return rows

    def reading(self) -> dict[str, str]:
        # A network's last bits differ between one image and a batch of them.
        how = "kept" if self.kept is not None else "half" if self.half is not None else "computed"
        return super().reading() | {"targets": how}

    def at(self, places: Int64) -> TaughtBatch:
        """Those at `places` of this row of images."""
        if self.kept is None:
            half = None if self.half is None else self.half.at(places)
            return TaughtBatch(*_read(self.images, self.numbers[places], self.run), half)
        x, rois, targets = self.kept
        rows = torch.from_numpy(places)
        taught = tuple(target[rows] for target in targets)
        return TaughtBatch(x[rows], None if rois is None else rois[rows], taught)


def _has_room(need_bytes: int, run: Run) -> bool:
    return need_bytes < room_bytes(run)


def room_bytes(run: Run) -> float:
    """How many bytes more may be kept."""
    ceiling = ceiling_mib(run.max_memory_mib)
    if ceiling is None:
        return float("inf")
    # Processes of one machine find the same memory free.
    sharers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if run.max_memory_mib is None else 1
    return max(0.0, _SHARE * ceiling - resident_mib()) * (1 << 20) / sharers


def _read(images: Normals, numbers: Int64, run: Run) -> ImageBatch:
    """The images in the order of `numbers`."""
    height, width = images.stream.size
    found = torch.empty(len(numbers), 3, height, width, dtype=torch.uint8)
    rois: Tensor | None = None
    done = 0
    for batch in images.only(numbers, run.batch_size):
        x, roi = to_tensors(batch.images, batch.rois)
        found[done : done + len(x)] = x
        if roi is not None:
            if rois is None:
                rois = torch.ones(len(numbers), height, width, dtype=torch.bool)
            rois[done : done + len(x)] = roi
        done += len(x)
    return ImageBatch(found, rois)
