"""The nouns that travel along the main path. No torch here: the line runtime uses them too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

ArrayT = TypeVar("ArrayT")  # a torch tensor inside the network, a numpy array outside it

UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

NORMAL = 0
ANOMALOUS = 1

MODE_COLLAPSE = 0.1
"""Samples that differ by less than this share of what images do are nearly all the same."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set, not yet read.

    `label` is 0 (normal), 1 (anomalous) or None (not known). `mask` is the file of the truth, or
    several files whose union it is (one per defect of a strip). `split` is "train", "test" or None
    (the set does not say). `kind` names the defect, or the kind of normal ("good"). `crop` cuts the
    file to (top, left, height, width) in pixels of the file, for strips that are cut into squares.
    `roi` points to a mask whose positive pixels are to be looked at; None looks at all of them.
    """

    path: Path
    label: int | None = None
    mask: Path | tuple[Path, ...] | None = None
    split: str | None = None
    kind: str | None = None
    roi: Path | None = None
    crop: tuple[int, int, int, int] | None = None

    @property
    def masks(self) -> tuple[Path, ...]:
        """The files of `mask`: none, one or several."""
        if self.mask is None:
            return ()
        return self.mask if isinstance(self.mask, tuple) else (self.mask,)


class Prediction(NamedTuple, Generic[ArrayT]):
    """What a method's `forward` returns: raw, never clamped, higher is more anomalous.

    `score` (B,) float32; `anomaly_map` (B, H, W) float32 at the input size, or None for a method
    that does not localize.
    """

    score: ArrayT
    anomaly_map: ArrayT | None


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of the predicted mask, in pixels of the original image.

    `box` is (top, left, bottom, right), the last two exclusive; `peak` is the largest map value
    inside, found at `peak_at` (row, column).
    """

    box: tuple[int, int, int, int]
    area_px: int
    peak: float
    peak_at: tuple[int, int]


@dataclass(slots=True)
class ImageResult:
    """The decision on one image, with what it rests on.

    `score` is raw. `p_value` is the conformal p-value among held-out normals, (1 + #{s_i >= s}) /
    (n + 1); None where no calibration exists. `anomaly_map` (H, W) float32 is at the size of the
    original image; None for methods that do not localize.
    """

    path: Path | None
    score: float
    p_value: float | None
    is_anomalous: bool | None
    regions: list[Region] = field(default_factory=list)
    anomaly_map: Float32 | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result without its map, of plain Python types, for JSON lines."""
        return {
            "path": str(self.path) if self.path is not None else None,
            "score": self.score,
            "p_value": self.p_value,
            "is_anomalous": self.is_anomalous,
            "regions": [
                {
                    "box": list(region.box),
                    "area_px": region.area_px,
                    "peak": region.peak,
                    "peak_at": list(region.peak_at),
                }
                for region in self.regions
            ],
        }
