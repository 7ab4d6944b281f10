"""`predict`: from images to decisions, with maps at the size of the originals."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amiss.data.geometry import Geometry, inner_roi, resize_image, restore_map
from amiss.data.images import load_array
from amiss.data.stream import Batch, OnError
from amiss.metrics.region import region_list
from amiss.runtime import Runtime, as_runtime, image_stream
from amiss.types import Bool, Float32, ImageResult, Record, Region

if TYPE_CHECKING:
    from amiss.calibration import Calibration

BATCH = 8


def predict(detector: Any, images: Any) -> ImageResult | list[ImageResult]:
    """Judge images with a fitted detector or a runtime. The files of a list are read ahead and
    judged in batches, arrays one at a time.

    Args:
        images: a path to an image, a uint8 array (H, W, 3) RGB or (H, W) gray, or a list of these.
            For a whole folder, list it or use the command line.

    Returns:
        one ImageResult, or a list in the order given.

    Raises:
        ImageError: a file that cannot be read, or an array of another kind.
        NotFittedError: the detector has learned nothing yet.
    """
    runtime = as_runtime(detector)
    if isinstance(images, (list, tuple)):
        return _several(runtime, images)
    return _several(runtime, [images])[0]


def _several(runtime: Runtime, images: Sequence[Any]) -> list[ImageResult]:
    """Files and arrays, mixed, in order."""
    records = [Record(Path(image)) for image in images if isinstance(image, str | Path)]
    with closing(predict_records(runtime, records)) as judged:
        return [
            next(judged)[1] if isinstance(image, str | Path) else _array(runtime, image)
            for image in images
        ]


def _array(runtime: Runtime, image: Any) -> ImageResult:
    frame, geometry = resize_image(load_array(image), runtime.image_size, runtime.resize)
    roi = combine(runtime.roi, inner_roi(geometry))
    prediction = runtime(frame[None], None if roi is None else roi[None])
    maps = prediction.anomaly_map
    return result(runtime, None, float(prediction.score[0]), None if maps is None else maps[0],
                  geometry)  # fmt: skip


def predict_records(
    runtime: Runtime,
    records: Sequence[Record],
    *,
    batch_size: int | None = None,
    roi: Path | None = None,
    window: str | None = None,
    on_error: OnError | None = None,
) -> Generator[tuple[Record, ImageResult], None, None]:
    """Judge files in order, decoding ahead. Without `on_error` an unreadable file raises."""
    stream = image_stream(runtime, records, roi=roi, window=window, on_error=on_error)
    for batch in stream.batches(batch_size or max(BATCH, runtime.together)):
        prediction = runtime(batch.images, frame_rois(runtime, batch))
        for row, index in enumerate(batch.indices):
            record = records[int(index)]
            maps = prediction.anomaly_map
            yield record, result(
                runtime, record.path, float(prediction.score[row]),
                None if maps is None else maps[row], batch.geometries[row],
            )  # fmt: skip


def frame_rois(runtime: Runtime, batch: Batch) -> Bool | None:
    """(B, h, w) where to look in a batch: the detector's own mask and the images', both."""
    if runtime.roi is None:
        return batch.rois
    own = np.broadcast_to(runtime.roi, batch.images.shape[:3])
    return own.copy() if batch.rois is None else own & batch.rois


def result(
    runtime: Runtime,
    path: Path | None,
    score: float,
    anomaly_map: Float32 | None,
    geometry: Geometry,
) -> ImageResult:
    """The decision on one image; the map (h, w) is brought to the original size."""
    calibration = runtime.calibration
    found = ImageResult(path, score, *decide(calibration, score))
    if anomaly_map is not None:
        found.anomaly_map = restore_map(anomaly_map, geometry)
        if calibration is not None and calibration.pixel_threshold is not None:
            found.regions = region_list(found.anomaly_map, calibration.pixel_threshold)
    return found


def list_regions(anomaly_map: Float32, geometry: Geometry, threshold: float) -> list[Region]:
    """The regions above the pixel threshold of a map (h, w), in pixels of the original."""
    return region_list(restore_map(anomaly_map, geometry), threshold)


def decide(calibration: Calibration | None, score: float) -> tuple[float | None, bool | None]:
    """The p-value of a raw score and whether it is anomalous; (None, None) without calibration."""
    if calibration is None:
        return None, None
    return float(calibration.p_values([score])[0]), score > calibration.threshold


def combine(one: Bool | None, other: Bool | None) -> Bool | None:
    """Both regions of interest at once; None is everywhere."""
    if one is None or other is None:
        return one if other is None else other
    return one & other
