"""Whether an exported graph says what the detector says: differences measured, decisions compared.

Both sides get the same pixels: photographs of the fit that are still in place, and made images. The
reference resizes with Pillow and computes in torch, one image at a time; the graph gets batches of
1, 2, 3 and 7, and where it resizes by itself, images of odd sizes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amiss.data.array_files import is_array_file
from amiss.data.geometry import inner_roi, resize_image
from amiss.data.images import read_image
from amiss.data.index import find_again
from amiss.engines import ExportedDetector
from amiss.errors import ImageError
from amiss.predict import combine
from amiss.runtime import Runtime
from amiss.types import Bool, Float32, Prediction, UInt8

BATCHES = (1, 2, 3, 7)
_ODD_SIZES = ((97, 131), (333, 250), (511, 640))  # (height, width)
_KINDS = 5  # of made images


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences over all images. Relative: of a score, to that score; of a map, to the
    largest value of that map; either to the scale of the detector where that is larger.
    `decisions_differ` counts images that one side flags and the other does not; an image whose
    score lies within the tolerance of the threshold is not counted.
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
        # Not their maximum: Python's max(x, nan) is x.
        agree = self.score_relative <= self.tolerance and self.map_relative <= self.tolerance
        return agree and self.decisions_differ == 0

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
    candidate: ExportedDetector,
    images: Sequence[UInt8],
    *,
    real: int,
    tolerance: float,
    edge: float | None = None,
) -> Parity:
    """Compare two runtimes on images (H, W, 3) uint8 of any size, the first `real` of which are
    photographs. `edge`: how near to its threshold, as a share of it, the reference's score is too
    close to compare decisions; by default the tolerance."""
    worst = np.zeros(4)  # score, map: absolute, relative
    differ = 0
    floors = _floors(reference)
    expected = [judge_one(reference, image) for image in images]
    for numbers in _batches(images, mixed=not candidate.resizes):
        found = _candidate(candidate, reference, [images[n] for n in numbers])
        for n, ours in zip(numbers, found, strict=True):
            wanted = expected[n]
            worst = np.maximum(worst, _differences(ours, wanted, floors))
            differ += _decides_otherwise(
                reference, candidate, ours, wanted, tolerance if edge is None else edge, floors[0]
            )
    return Parity(
        images=len(images), real_images=real, batch_sizes=BATCHES,
        score_absolute=float(worst[0]), score_relative=float(worst[1]),
        map_absolute=float(worst[2]), map_relative=float(worst[3]),
        decisions_differ=differ, tolerance=tolerance,
    )  # fmt: skip


def _batches(images: Sequence[UInt8], *, mixed: bool) -> Iterator[list[int]]:
    """Numbers of images in batches of every size, each image at least once; where there are too few
    they are repeated. Unless `mixed`, the images of a batch have one shape."""
    groups: dict[Any, list[int]] = {}
    for n, image in enumerate(images):
        groups.setdefault(None if mixed else image.shape, []).append(n)
    for alike in groups.values():
        sizes = itertools.cycle(BATCHES)
        first = 0
        while first < max(len(alike), sum(BATCHES)):
            size = next(sizes)
            yield [alike[n % len(alike)] for n in range(first, first + size)]
            first += size


def judge_one(runtime: Runtime, image: UInt8) -> Prediction[Float32]:
    """What a runtime says of an image (H, W, 3) uint8 that it brings to its own size."""
    frame, roi = framed(runtime, image)
    return runtime(frame[None], None if roi is None else roi[None])


def framed(runtime: Runtime, image: UInt8) -> tuple[UInt8, Bool | None]:
    """An image (H, W, 3) as `runtime` takes it, (h, w, 3), and where it is to look."""
    frame, geometry = resize_image(image, runtime.image_size, runtime.resize)
    return frame, combine(runtime.roi, inner_roi(geometry))


def _candidate(
    candidate: ExportedDetector, reference: Runtime, images: list[UInt8]
) -> Iterator[Prediction[Float32]]:
    """What the graph says of a batch of images, image by image; of one shape where it resizes."""
    if candidate.resizes:
        found = candidate.run(np.stack(images), None)
    else:
        pairs = [framed(reference, image) for image in images]
        frames = np.stack([frame for frame, _ in pairs])
        # A letterboxed image has a region, one that fills its frame has none: side by side all
        # have one.
        everywhere = np.ones(frames.shape[1:3], dtype=bool)
        rois = [everywhere if roi is None else roi for _, roi in pairs]
        has_roi = any(roi is not None for _, roi in pairs)
        found = candidate.run(frames, np.stack(rois) if has_roi else None)
    for i in range(len(images)):
        maps = found.anomaly_map
        yield Prediction(found.score[i : i + 1], None if maps is None else maps[i : i + 1])


def _floors(reference: Runtime) -> tuple[float, float]:
    """The least score and map value that differences are set against: a training image may score
    0 exactly, where the bank holds its very patches."""
    calibration = reference.calibration
    if calibration is None:
        return 1e-12, 1e-12
    peak = calibration.map_maxima
    score = max(float(np.abs(np.median(calibration.scores))), reference.score_scale)
    return max(score, 1e-12), score if peak is None else max(float(np.abs(np.median(peak))), 1e-12)


def _differences(
    found: Prediction[Float32], wanted: Prediction[Float32], floors: tuple[float, float]
) -> Any:
    expected = float(wanted.score[0])
    score = abs(float(found.score[0]) - expected)
    row = [score, score / max(abs(expected), floors[0]), 0.0, 0.0]
    if found.anomaly_map is not None and wanted.anomaly_map is not None:
        row[2] = float(np.abs(found.anomaly_map - wanted.anomaly_map).max())
        row[3] = row[2] / max(float(np.abs(wanted.anomaly_map).max()), floors[1])
    elif found.anomaly_map is not wanted.anomaly_map:  # one side has none
        row[2] = row[3] = np.inf
    return np.array(row)


def _decides_otherwise(
    reference: Runtime,
    candidate: ExportedDetector,
    found: Prediction[Float32],
    wanted: Prediction[Float32],
    edge: float,
    floor: float,
) -> bool:
    """Whether the two decide differently, each by its own threshold, though the score of the
    reference does not lie on the edge, `edge` times the threshold or the `floor` wide."""
    old, new = reference.calibration, candidate.calibration
    if old is None or new is None:
        return False
    a, b = float(found.score[0]), float(wanted.score[0])
    on_the_edge = abs(b - old.threshold) <= edge * max(abs(old.threshold), floor)
    return (a > new.threshold) != (b > old.threshold) and not on_the_edge


# --- images --------------------------------------------------------------------------------


def training_images(facts: dict[str, Any], window: str, count: int) -> list[UInt8]:
    """Up to `count` images of the fit, evenly taken among those that are still where they were."""
    files = [find_again(key, facts.get("root")) for key in facts.get("files", [])]
    there = [(path, crop) for path, crop in files if path.is_file() or is_array_file(path.parent)]
    found: list[UInt8] = []
    for place in np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int):
        path, crop = there[place]
        try:
            found.append(read_image(path, window=window, crop=crop))
        except ImageError:
            continue
    return found


def damaged(real: Sequence[UInt8]) -> list[UInt8]:
    """The first photographs with a black hole in a corner."""
    found = []
    for image in real[:3]:
        hole = image.copy()
        hole[: len(hole) // 4, : hole.shape[1] // 4] = 0
        found.append(hole)
    return found


def made_images(size: tuple[int, int], *, resizes: bool) -> list[UInt8]:
    """Images that no line delivers: noise, ramps, weak noise, black, white; with `resizes` of odd
    sizes too."""
    rng = np.random.default_rng(0)
    made: list[UInt8] = []
    sizes = [size] * _KINDS + list(_ODD_SIZES if resizes else ())
    for number, (height, width) in enumerate(sizes):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ramp = np.add.outer(np.arange(height), np.arange(width))[:, :, None] * (1 + np.arange(3))
        kinds = (noise, (ramp % 256).astype(np.uint8), noise // 8 + 100,
                 np.zeros_like(noise), np.full_like(noise, 255))  # fmt: skip
        made.append(kinds[number % _KINDS])
    return made
