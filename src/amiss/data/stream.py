"""`ImageStream`: records in, batches of resized images out, decoded by threads in advance.

Pillow releases the interpreter lock while it decodes and resizes, so threads are enough.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amiss.data.decoding import read_bytes
from amiss.data.geometry import (
    Geometry,
    ResizeMode,
    Size,
    fill_frame,
    fit_frame,
    inner_roi,
    nearest,
    resize_mask,
)
from amiss.data.images import Crop, crop_image, decode_bytes, read_mask
from amiss.data.window import Window, parse_window
from amiss.errors import DataError, ImageError, OptionError
from amiss.types import Bool, Int64, Record, UInt8

LOOK_AHEAD = 3  # batches that may wait, decoded, for the network
_STRIP = 64  # records of one file that are cut from one decoding

OnError = Callable[[Record, ImageError], None]


@dataclass(slots=True)
class Batch:
    """Images ready for the network, in the order of the records.

    `images` (B, h, w, 3) uint8. `rois` (B, h, w) bool, True where to look; None when that is
    everywhere. `indices` (B,) int64 into the records. `digests`: 8 bytes per image that tell
    whether two images came from the same file content and crop; empty when nobody asked for them.
    """

    images: UInt8
    rois: Bool | None
    indices: Int64
    geometries: list[Geometry]
    digests: list[bytes]


class _Item(NamedTuple):
    """One record after decoding: a frame, or the reason why there is none."""

    number: int
    image: UInt8 | None = None
    roi: Bool | None = None
    geometry: Geometry | None = None
    digest: bytes = b""
    error: ImageError | None = None


def usable_cores() -> int:
    """The cores this process may use, which containers and schedulers may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def digest(data: bytes, crop: Crop | None = None) -> bytes:
    """8 bytes of the SHA-256 of a file's content and the crop taken from it."""
    sha = hashlib.sha256(data)
    if crop is not None:
        sha.update("|{},{},{},{}".format(*crop).encode())
    return sha.digest()[:8]


def file_digest(record: Record) -> bytes:
    """The `digest` of the whole file that a record is, or is cut from."""
    return digest(read_bytes(record.path))


def record_digest(record: Record) -> bytes:
    """The `digest` of the image of a record, read from its file."""
    return digest(read_bytes(record.path), record.crop)


class Contents:
    """What some records show, to ask of others whether they are the same image, or a cut of one."""

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        self._images = {record_digest(record) for record in records}
        self._files = {file_digest(record) for record in records if record.crop is None}

    def __contains__(self, record: Record) -> bool:
        if record_digest(record) in self._images:
            return True
        return record.crop is not None and file_digest(record) in self._files


def is_there(path: Path) -> bool:
    """Whether an image is there: a file, or a part of one file of many images."""
    return path.is_file() or path.parent.is_file()


@dataclass(slots=True)
class ImageStream:
    """Decodes and resizes records in a thread pool, in order, a few batches ahead.

    `size` is (height, width) of the frames. `roi` is one mask for all images; a record's own wins.
    A mask of another size than the image is scaled to it when the aspects agree within 1 %.
    `digests`: whether batches say which images have the same content, which takes a hash of every
    file.
    `workers`: threads, by default the usable cores, at most 8. Without `on_error`, an unreadable
    image ends the iteration with its ImageError; with it, the image is reported, from the
    consumer's thread and in order, and left out.

    `len()` is the number of records.

    Raises OptionError for an option out of range, ImageError for an unreadable `roi` file.
    """

    records: Sequence[Record]
    _: KW_ONLY
    size: Size
    mode: ResizeMode = "squash"
    roi: Path | None = None
    window: Window | str | None = "percentile"
    digests: bool = True
    workers: int | None = None
    on_error: OnError | None = None
    _rois: dict[Path, Bool] = field(default_factory=dict, init=False, repr=False)
    _shared: tuple[Geometry, Bool] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        fit_frame(self.size, self.size, self.mode)  # for its checks
        if isinstance(self.window, str):
            self.window = parse_window(self.window)
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers is {self.workers}; allowed is 1 or more.")
        if self.roi is not None:
            self._rois[self.roi] = _read_roi(self.roi)

    def __len__(self) -> int:
        return len(self.records)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of `batch_size` images, the last one smaller.

        The threads end with the iterator, also when the consumer stops early.

        Raises ImageError for an unreadable image, and DataError for a region of interest that
        does not fit its image or leaves nothing to look at.
        """
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}; allowed is 1 or more.")
        return self._batches(batch_size)

    def read(self, record: Record) -> Batch:
        """A batch of this one image, decoded by the calling thread: a line that runs for weeks
        starts no thread per image. `records` is not read.

        Raises like `batches`, also where `on_error` is set.
        """
        (item,) = self._decode([0], [record])
        if item.error is not None:
            raise item.error
        return self._assemble([item])

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        waiting: list[_Item] = []
        with closing(self._items(LOOK_AHEAD * batch_size)) as items:
            for item in items:
                if item.error is not None:
                    if self.on_error is None:
                        raise item.error
                    self.on_error(self.records[item.number], item.error)
                    continue
                waiting.append(item)
                if len(waiting) == batch_size:
                    yield self._assemble(waiting)
                    waiting = []
        if waiting:
            yield self._assemble(waiting)

    def _items(self, look_ahead: int) -> Generator[_Item, None, None]:
        """Every record decoded, in order; at most about `look_ahead` wait at a time."""
        workers = self.workers or min(8, usable_cores())
        tasks = self._tasks()
        pending: deque[tuple[int, Future[list[_Item]]]] = deque()
        ahead = 0
        pool = ThreadPoolExecutor(workers, thread_name_prefix="amiss-decode")
        try:
            while True:
                while ahead < max(look_ahead, workers) and (task := next(tasks, None)) is not None:
                    pending.append((len(task), pool.submit(self._decode, task, self.records)))
                    ahead += len(task)
                if not pending:
                    return
                count, future = pending.popleft()
                ahead -= count
                yield from future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(self) -> Iterator[list[int]]:
        """Runs of neighbouring records that share a file, which is then decoded once for all."""
        for _, run in groupby(range(len(self.records)), lambda i: self.records[i].path):
            indices = list(run)
            for start in range(0, len(indices), _STRIP):
                yield indices[start : start + _STRIP]

    def _decode(self, indices: list[int], records: Sequence[Record]) -> list[_Item]:
        path = records[indices[0]].path
        try:
            data = read_bytes(path)
            image = decode_bytes(data, path, window=self.window).image
        except ImageError as error:
            return [_Item(index, error=error) for index in indices]
        items = []
        for index in indices:
            record = records[index]
            try:
                part = crop_image(image, record.crop, path)
                geometry = fit_frame((part.height, part.width), self.size, self.mode)
                roi = self._roi(record, (image.height, image.width), geometry)
            except ImageError as error:
                items.append(_Item(index, error=error))
                continue
            frame = np.zeros((*self.size, 3), np.uint8)
            fill_frame(frame, part, geometry)
            content = digest(data, record.crop) if self.digests else b""
            items.append(_Item(index, frame, roi, geometry, content))
        return items

    def _roi(self, record: Record, file_size: Size, geometry: Geometry) -> Bool | None:
        """(h, w) bool where to look, or None for everywhere."""
        path = record.roi or self.roi
        if path is None:
            return inner_roi(geometry)
        shared = path == self.roi and record.crop is None
        if shared and self._shared is not None and self._shared[0] == geometry:
            return self._shared[1]  # one mask and images of one size: the usual case
        mask = self._rois[path] if path in self._rois else _read_roi(path)
        whole = _match_roi(mask, file_size, path, record.path)
        if record.crop is not None:
            top, left, height, width = record.crop
            whole = whole[top : top + height, left : left + width]
        roi = resize_mask(whole, geometry)
        if not roi.any():
            raise DataError(
                f"{path}: this region of interest leaves nothing of {record.path} to look at.",
                hint="White marks what is looked at, black what is left out.",
            )
        if shared:
            self._shared = (geometry, roi)
        return roi

    def _assemble(self, items: list[_Item]) -> Batch:
        images = np.stack([item.image for item in items if item.image is not None])
        rois = None
        if any(item.roi is not None and not item.roi.all() for item in items):
            rois = np.ones(images.shape[:3], np.bool_)
            for row, item in zip(rois, items, strict=True):
                if item.roi is not None:
                    row[:] = item.roi
        return Batch(
            images=images,
            rois=rois,
            indices=np.array([item.number for item in items], dtype=np.int64),
            geometries=[item.geometry for item in items if item.geometry is not None],
            digests=[item.digest for item in items] if self.digests else [],
        )


def _read_roi(path: Path) -> Bool:
    mask = read_mask(path)
    if not mask.any():
        raise DataError(
            f"{path}: this region of interest has no positive pixel, so nothing would be seen.",
            hint="White marks what is looked at, black what is left out.",
        )
    return mask


def _match_roi(mask: Bool, size: Size, path: Path, image_path: Path) -> Bool:
    """The mask at the size of the image's file, (H, W) bool."""
    (H, W), (height, width) = size, mask.shape
    if abs(H * width - W * height) > 0.01 * W * height:
        raise DataError(
            f"{path}: this region of interest is {height} x {width} pixels, and {image_path} is "
            f"{H} x {W}, of another aspect.",
            hint="Draw it on an image of this camera, or give each image a mask of its own.",
        )
    return nearest(mask, size)
