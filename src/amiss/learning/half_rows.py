"""`HalfRows`: what a network says of many images, in half precision and in a file."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from amiss.types import Int64

_SPARE = 1 << 30  # bytes of the disk that stay free


class HalfRows:
    """Rows of float16 for n images, each a tuple of tensors of the given shapes.

    The file has no name, so nothing is left of it whatever becomes of the process. It is read row
    by row, not mapped: mapped pages would count as memory of the process.
    """

    def __init__(self, n: int, shapes: Sequence[torch.Size]) -> None:
        self.shapes = [tuple(shape) for shape in shapes]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.row_bytes = 2 * sum(self.sizes)
        self.n = n
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when this is gone
        weakref.finalize(self, self._file.close)

    @staticmethod
    def has_disk(n: int, values: int) -> bool:
        """Whether the disk of temporary files takes n rows of so many values."""
        free = shutil.disk_usage(Path(tempfile.gettempdir())).free
        return 2 * n * values + _SPARE < free

    def put(self, start: int, tensors: Sequence[Tensor]) -> bool:
        """Write the rows from `start` on, tensors (b, ...); False, and nothing of worth, where a
        value is too large for half precision, or where the disk has filled up meanwhile."""
        rows = torch.cat([t.flatten(1) for t in tensors], dim=1).half()
        if not bool(rows.isfinite().all()):
            return False
        data = rows.numpy().tobytes()
        try:
            return os.pwrite(self._file.fileno(), data, start * self.row_bytes) == len(data)
        except OSError:
            return False

    def at(self, places: Int64) -> tuple[Tensor, ...]:
        """The rows at places (b,), each tensor (b, ...) float32."""
        rows = np.empty((len(places), sum(self.sizes)), np.float16)
        for row, place in zip(rows, places.tolist(), strict=True):
            data = os.pread(self._file.fileno(), self.row_bytes, place * self.row_bytes)
            row[:] = np.frombuffer(data, np.float16)
        parts = torch.from_numpy(rows).float().split(self.sizes, dim=1)
        return tuple(
            part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)
        )
