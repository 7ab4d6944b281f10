"""Whether an exported graph says what the detector says: differences measured, decisions compared.

Both sides get the same pixels: normal training images that are still in place, and made ones. The
reference resizes with Pillow and computes in torch, one image at a time; the graph gets batches of
1, 2, 3 and 7, and where it resizes by itself, images of odd sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amiss.data.geometry import inner_roi, resize_image
from amiss.data.images import read_image
from amiss.errors import ImageError
from amiss.runtime import Runtime
from amiss.types import Bool, Float32, Prediction, UInt8

BATCHES = (1, 2, 3, 7)
_ODD_SIZES = ((97, 131), (333, 250), (511, 640))  # (height, width)
_REAL = 12  # training images
_MADE = 6


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences over all images. Relative: of a score, to that score; of a map, to the
    largest value of that map. `decisions_differ` counts images that one side flags and the other
    does not; an image whose score lies within the tolerance of the threshold is not counted.
    """

    images: int
    real_images: int
    batch_sizes: tuple[int, ...]
    score_absolute: float
    score_relative: float
    map_absolute: float
    map_relative: float
    decisions_differ: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether score, map and decisions agree within the tolerance."""
        worst = max(self.score_relative, self.map_relative)
        return worst <= self.tolerance and self.decisions_differ == 0

    def as_dict(self) -> dict[str, Any]:
        """Everything, of JSON types."""
        return dataclasses.asdict(self) | {"batch_sizes": list(self.batch_sizes)}

    def describe(self) -> str:
        """One sentence."""
        return (
            f"{self.images} images ({self.real_images} of the training) in batches of "
            f"{', '.join(map(str, self.batch_sizes))}: scores differ by at most "
            f"{self.score_relative:.1e} (absolute {self.score_absolute:.1e}), maps by "
            f"{self.map_relative:.1e} ({self.map_absolute:.1e}), decisions by "
            f"{self.decisions_differ}; allowed {self.tolerance:.0e}"
        )


def measure(
    reference: Runtime,
    candidate: Any,
    images: Sequence[UInt8],
    *,
    real: int,
    resizes: bool,
    tolerance: float,
    edge: float | None = None,
) -> Parity:
    """Compare two runtimes on images (H, W, 3) uint8 of any size, the first `real` of which are
    photographs. `resizes`: whether the candidate takes them as they are. `edge`: how near to its
    threshold, as a share of it, the reference's score is too close to compare decisions; by
    default the tolerance."""
    worst = np.zeros(4)  # score, map: absolute, relative
    differ = 0
    batches = list(_batches(len(images)))
    for numbers in batches:
        pairs = [framed(reference, images[n]) for n in numbers]
        frames, rois = np.stack([frame for frame, _ in pairs]), [roi for _, roi in pairs]
        expected = [_one(reference, frames[i], rois[i]) for i in range(len(numbers))]
        for found, wanted in zip(
            _candidate(candidate, frames, rois, [images[n] for n in numbers], resizes),
            expected, strict=True,
        ):  # fmt: skip
            worst = np.maximum(worst, _differences(found, wanted))
            differ += _decides_otherwise(
                reference, candidate, found, wanted, tolerance if edge is None else edge
            )
    return Parity(
        images=sum(map(len, batches)), real_images=real, batch_sizes=BATCHES,
        score_absolute=float(worst[0]), score_relative=float(worst[1]),
        map_absolute=float(worst[2]), map_relative=float(worst[3]),
        decisions_differ=differ, tolerance=tolerance,
    )  # fmt: skip


def _batches(count: int) -> Iterator[list[int]]:
    """Numbers of images in batches of every size, each image at least once."""
    sizes = itertools.cycle(BATCHES)
    first = 0
    while first < count or first < sum(BATCHES):
        size = next(sizes)
        yield [n % count for n in range(first, first + size)]
        first += size


def framed(runtime: Runtime, image: UInt8) -> tuple[UInt8, Bool | None]:
    """An image (H, W, 3) as `runtime` takes it, (h, w, 3), and where it is to look."""
    frame, geometry = resize_image(image, runtime.image_size, runtime.resize)
    inner, own = inner_roi(geometry), runtime.roi
    return frame, own if inner is None else inner if own is None else inner & own


def _one(runtime: Runtime, frame: UInt8, roi: Bool | None) -> Prediction[Float32]:
    return runtime(frame[None], None if roi is None else roi[None])


def _candidate(
    candidate: Any, frames: UInt8, rois: list[Bool | None], images: list[UInt8], resizes: bool
) -> Iterator[Prediction[Float32]]:
    """What the graph says of a batch, image by image."""
    if resizes:  # images of one size are a batch
        for image in images:
            yield candidate(image[None], None)
        return
    given = None
    if candidate.takes_roi and any(roi is not None for roi in rois):
        everywhere = np.ones(frames.shape[1:3], np.bool_)
        given = np.stack([everywhere if roi is None else roi for roi in rois])
    found = candidate(frames, given)
    for i in range(len(frames)):
        maps = found.anomaly_map
        yield Prediction(found.score[i : i + 1], None if maps is None else maps[i : i + 1])


def _differences(found: Prediction[Float32], wanted: Prediction[Float32]) -> Any:
    score = abs(float(found.score[0]) - float(wanted.score[0]))
    row = [score, score / max(abs(float(wanted.score[0])), 1e-12), 0.0, 0.0]
    if found.anomaly_map is not None and wanted.anomaly_map is not None:
        row[2] = float(np.abs(found.anomaly_map - wanted.anomaly_map).max())
        row[3] = row[2] / max(float(np.abs(wanted.anomaly_map).max()), 1e-12)
    return np.array(row)


def _decides_otherwise(
    reference: Runtime,
    candidate: Runtime,
    found: Prediction[Float32],
    wanted: Prediction[Float32],
    edge: float,
) -> bool:
    """Whether the two decide differently, each by its own threshold, though the score of the
    reference does not lie on the edge."""
    old, new = reference.calibration, candidate.calibration
    if old is None or new is None:
        return False
    a, b = float(found.score[0]), float(wanted.score[0])
    on_the_edge = abs(b - old.threshold) <= edge * abs(old.threshold)
    return (a > new.threshold) != (b > old.threshold) and not on_the_edge


# --- images --------------------------------------------------------------------------------


def training_images(facts: dict[str, Any], window: str, count: int = _REAL) -> list[UInt8]:
    """Up to `count` images of the fit, evenly taken, those that are still where they were."""
    files = facts.get("files", [])
    found: list[UInt8] = []
    step = max(1, len(files) // count)
    for key in files[::step][:count]:
        name, _, cut = key.partition("#")
        try:
            crop = _crop(cut)
            found.append(read_image(Path(facts.get("root") or "", name), window=window, crop=crop))
        except ImageError:
            continue
    return found


def _crop(cut: str) -> tuple[int, int, int, int] | None:
    if not cut:
        return None
    top, left, height, width = map(int, cut.split(","))
    return top, left, height, width


def damaged(real: Sequence[UInt8]) -> list[UInt8]:
    """The first photographs with a black hole in a corner."""
    found = []
    for image in real[:3]:
        hole = image.copy()
        hole[: len(hole) // 4, : hole.shape[1] // 4] = 0
        found.append(hole)
    return found


def made_images(size: tuple[int, int], *, resizes: bool) -> list[UInt8]:
    """Images that no line delivers: black, white, noise, ramps."""
    rng = np.random.default_rng(0)
    made: list[UInt8] = []
    sizes = [size, *(_ODD_SIZES if resizes else ())]
    for number in range(_MADE + len(sizes)):
        height, width = sizes[number % len(sizes)]
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ramp = np.add.outer(np.arange(height), np.arange(width))[:, :, None] * (1 + np.arange(3))
        kinds = (noise, (ramp % 256).astype(np.uint8), noise // 8 + 100,
                 np.zeros_like(noise), np.full_like(noise, 255))  # fmt: skip
        made.append(kinds[number % len(kinds)])
    return made
