"""`Normals`: the normal images that a method learns from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amiss.data.stream import Batch, ImageStream, record_digest
from amiss.errors import DataError
from amiss.types import Int64, UInt8


class Normals:
    """The normal images that a method learns from; remembers the digest of each it has read.

    Those from number `original` on were picked, such as false alarms: they are to be learned, and
    say nothing of how normal images score.
    """

    def __init__(self, stream: ImageStream, original: int | None = None) -> None:
        self.stream = stream
        self.original = len(stream) if original is None else original
        self.digests: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.stream)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over all images, in order."""
        return self.only(np.arange(len(self)), batch_size)

    def only(self, indices: Int64, batch_size: int) -> Iterator[Batch]:
        """One pass over some images; `Batch.indices` count in the whole set."""
        records = [self.stream.records[i] for i in indices]
        stream = dataclasses.replace(self.stream, records=records)
        for batch in stream.batches(batch_size):
            batch.indices = indices[batch.indices]
            self.digests.update(zip(batch.indices.tolist(), batch.digests, strict=True))
            yield batch

    def reading(self) -> dict[str, str]:
        """What besides the files themselves decides which pixels are learned from."""
        roi = self.stream.roi
        digest = "" if roi is None else hashlib.sha256(roi.read_bytes()).hexdigest()
        return {"window": str(self.stream.window), "roi": digest}

    def groups(self) -> Int64:
        """(n,) int64 from 0: images that must be left out together, because they are cuts of one
        file or the same file twice, or tied to one another by such. Files that have not been read
        yet are read for their digest."""
        first: dict[Any, int] = {}  # the first image of each path and each content
        parent = list(range(len(self)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for i, record in enumerate(self.stream.records):
            for name in (record.path, self._digest(i)):
                one, other = root(first.setdefault(name, i)), root(i)
                parent[max(one, other)] = min(one, other)
        roots = [root(i) for i in range(len(self))]
        return np.unique(roots, return_inverse=True)[1].astype(np.int64)

    def _digest(self, number: int) -> bytes | int:
        """What the image holds; of a file that cannot be read, which is named when it is, its
        number."""
        if number in self.digests:
            return self.digests[number]
        record = self.stream.records[number]
        try:
            return record_digest(record)
        except DataError:
            return number

    def digest_rows(self, count: int) -> Tensor:
        """(count, 8) uint8: the digests of the first `count` images."""
        joined = b"".join(self.digests[i] for i in range(count))
        return torch.from_numpy(np.frombuffer(joined, dtype=np.uint8).copy()).view(count, 8)

    def restore_digests(self, rows: Tensor) -> None:
        """Remember images that an interrupted pass has read."""
        self.digests.update(enumerate(bytes(row) for row in rows.numpy()))


def fingerprint(digests: UInt8) -> str:
    """One name for a set of images, whatever their order, from their digests (n, 8)."""
    return hashlib.sha256(b"".join(sorted(map(bytes, digests)))).hexdigest()


def to_tensors(batch_images: UInt8, rois: Any | None) -> tuple[Tensor, Tensor | None]:
    """(B, H, W, 3) uint8 array -> (B, 3, H, W) view of it, channels last; rois alike."""
    if not batch_images.flags.writeable:  # torch wants memory that it could write to
        batch_images = batch_images.copy()
    images = torch.from_numpy(batch_images).permute(0, 3, 1, 2)
    return images, None if rois is None else torch.from_numpy(rois)
