"""Judge a fitted detector on images that neither it nor its threshold has seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amiss.caveats import by_chance, caveats
from amiss.data.geometry import Geometry, fit_frame
from amiss.data.images import read_framed_mask, stored_size
from amiss.data.index import Dataset, Source, find_again, index
from amiss.errors import DataError, ImageError, LeakageError
from amiss.metrics import (
    bootstrap_interval,
    image_ap,
    image_auroc,
    image_f1_max,
    pixel_intervals,
    pixel_metrics,
    roc_curve,
)
from amiss.outcome import DeferredResult, Judged, Report
from amiss.predict import BATCH, decide, frame_rois, list_regions
from amiss.run import Run, peak_mib
from amiss.runtime import Fitted, Runtime, as_runtime, image_stream
from amiss.types import ANOMALOUS, NORMAL, Bool, Float32, Float64, Record
from amiss.versions import versions

NO_KIND = "anomalous"  # what defects are listed under whose kind nobody has named
_FEW_MARKED = 10  # images with a mask, below which resamples of them say too little


class _Scored(NamedTuple):
    """The judged images, where each was looked at, and how many others had been seen before."""

    judged: list[Judged]
    rois: list[Bool | None]  # (h, w) each, in the network's frame; None is everywhere
    seen: int


class _Figures(NamedTuple):
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    curves: dict[str, tuple[Float64, Float64]]


def evaluate(
    detector: Fitted,
    data: Source,
    *,
    roi: str | Path | None = None,
    run: Run | None = None,
) -> Report:
    """Judge the labelled test images of `data` and compute every metric that they allow.

    Where the set itself does not say which images are for the test, as a folder of normal images
    and one folder per kind do not, all of its labelled images are. Images whose content the
    detector has seen, in fitting or in setting its threshold, are left out and counted in the
    notes. Pixel metrics are computed at the network's input size, masks resized
    by the nearest pixel like the images; they are absent where no mask exists. The metrics are also
    kept in `detector.metrics` with the name of the data set, and a later `save` writes them down.

    Raises:
        DataError: no labelled test image.
        LeakageError: the detector or its threshold has seen all of them.
    """
    run = run or Run()
    dataset = data if isinstance(data, Dataset) else index(data)
    others = _others(dataset, detector)
    records = [*others, *(r for r in dataset.test if r.label is not None)]
    if not records:
        raise _nothing_to_judge(dataset)
    run.say(dataset.describe())
    runtime = as_runtime(detector)
    started = time.perf_counter()
    scored = _judge(runtime, detector, records, None if roi is None else Path(roi), run)
    if not scored.judged:
        raise LeakageError(
            f"The detector has seen all {scored.seen} test images of {dataset.name}, when it was "
            "fitted or when its threshold was chosen.",
            hint="Evaluate on images that were in neither.",
        )
    judged_at = time.perf_counter()
    calibration = runtime.calibration
    notes = [*dataset.notes, *(() if calibration is None else calibration.notes)]
    if others:
        notes.append(
            f"The set has no split of its own: {len(others)} images that would be for training, "
            "and that the detector has not learned from by name, are among those looked at."
        )
    if scored.seen:
        notes.append(
            f"{scored.seen} test images were left out: the detector or its threshold has seen them."
        )
    notes += caveats(dataset, detector)
    figures = _figures(scored, notes)
    seconds = _seconds(started, judged_at, time.perf_counter(), len(scored.judged))
    stored: dict[str, Any] = {"dataset": dataset.name, **figures.metrics}
    detector.metrics = stored
    return _report(detector, runtime, dataset, scored, figures, seconds, notes)


def _report(
    detector: Fitted,
    runtime: Runtime,
    dataset: Dataset,
    scored: _Scored,
    figures: _Figures,
    seconds: dict[str, float],
    notes: list[str],
) -> Report:
    calibration = runtime.calibration
    return Report(
        detector=detector.about(),
        dataset={
            "name": dataset.name,
            "layout": dataset.layout,
            "counts": dataset.counts(),
            "judged": len(scored.judged),
            "left_out_as_seen": scored.seen,
        },
        metrics=figures.metrics,
        intervals=figures.intervals,
        operating_point=_operating_point(runtime, scored.judged),
        judged=scored.judged,
        calibration_scores=np.empty(0) if calibration is None else calibration.scores,
        curves=figures.curves,
        display=None if calibration is None else calibration.display,
        seconds=seconds,
        peak_memory_mib=round(peak_mib(), 1),
        versions=versions(),
        notes=notes,
        pictures=detector.pictures(),
        judged_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _others(dataset: Dataset, detector: Fitted) -> list[Record]:
    """Where the set has no test split of its own, its training images but for those that bear the
    names of what the detector learned from.

    Names only save the reading: whether an image was seen is decided by its content.
    """
    if not dataset.has_drawn_split and any(r.label is not None for r in dataset.test):
        return []
    facts = detector.training_facts
    learned = {find_again(key, facts.get("root")) for key in facts.get("files", [])}
    return [r for r in dataset.train if (r.path.absolute(), r.crop) not in learned]


def _nothing_to_judge(dataset: Dataset) -> DataError | LeakageError:
    if dataset.train:
        return LeakageError(
            f"The detector has learned from all images of {dataset.name} that have a label.",
            hint="Evaluate on images that were not in the fit.",
        )
    return DataError(
        f"{dataset.name} holds no labelled test image.",
        hint="Put test images in folders named by their kind beside one named good, or give "
        "a table with the columns path, label and split.",
    )


def _seconds(started: float, scored: float, done: float, count: int) -> dict[str, float]:
    return {
        "total": round(done - started, 3),
        "scoring": round(scored - started, 3),
        "metrics": round(done - scored, 3),
        "per_image": round((scored - started) / count, 5),
    }


def _judge(
    runtime: Runtime,
    detector: Fitted,
    records: Sequence[Record],
    roi: Path | None,
    run: Run,
) -> _Scored:
    """Judge every record that the detector and its threshold have not seen."""
    trained_on = {bytes(row) for row in detector.training_digests}
    trained_on |= {bytes(row) for row in detector.labelled_digests}
    stream = image_stream(runtime, records, roi=roi, digests=True)
    scored = _Scored([], [], 0)
    for batch in stream.batches(run.batch_size):
        fresh = [i for i, digest in enumerate(batch.digests) if digest not in trained_on]
        scored = scored._replace(seen=scored.seen + len(batch.digests) - len(fresh))
        if not fresh:
            continue
        rois = frame_rois(runtime, batch)
        prediction = runtime(batch.images[fresh], None if rois is None else rois[fresh])
        for row, i in enumerate(fresh):
            record = records[int(batch.indices[i])]
            frame = None if prediction.anomaly_map is None else prediction.anomaly_map[row]
            one = _judged(runtime, record, batch.geometries[i], float(prediction.score[row]), frame)
            one.roi = record.roi or roi
            scored.judged.append(one)
            scored.rois.append(None if rois is None else rois[i])
        run.progress("scoring", len(scored.judged) + scored.seen, len(records))
    return scored


def _judged(
    runtime: Runtime, record: Record, geometry: Geometry, score: float, frame: Float32 | None
) -> Judged:
    """The decision on one image; its regions are listed when somebody asks for them."""
    calibration = runtime.calibration
    found = DeferredResult(record.path, score, *decide(calibration, score))
    if frame is not None and calibration is not None and calibration.pixel_threshold is not None:
        found.list_regions = partial(list_regions, frame, geometry, calibration.pixel_threshold)
    row = Judged(record.path, int(record.label or 0), record.kind, found, frame)
    row.mask, row.crop, row.geometry = record.mask, record.crop, geometry
    return row


def _figures(scored: _Scored, notes: list[str]) -> _Figures:
    """Every metric that the labels and masks allow; `notes` grow by what they do not allow."""
    figures = _image_metrics(scored.judged, notes)
    _pixel_metrics(scored, figures, notes)
    scores = {row.result.score for row in scored.judged}
    fixed = [name for name, (low, high) in figures.intervals.items() if low == high]
    if len(scores) == 1 and len(scored.judged) > 1:
        notes.append("All images have the same score: the detector does not tell them apart.")
    elif fixed:
        notes.append(
            f"Every resample of these {len(scored.judged)} images gives the same "
            f"{', '.join(fixed)}: the bootstrap interval says nothing there. More test images "
            "would."
        )
    return figures


def _image_metrics(judged: Sequence[Judged], notes: list[str]) -> _Figures:
    scores = np.array([row.result.score for row in judged])
    labels = np.array([row.label for row in judged])
    if len(set(labels.tolist())) < 2:
        kind = "normal" if labels[0] == NORMAL else "anomalous"
        notes.append(f"All test images are {kind}: AUROC, AP and F1 do not exist.")
        return _Figures({}, {}, {})
    metrics = {
        "image_auroc": image_auroc(scores, labels),
        "image_ap": image_ap(scores, labels),
        "image_f1_max": image_f1_max(scores, labels),
    }
    intervals = {
        "image_auroc": bootstrap_interval("image_auroc", scores, labels),
        "image_ap": bootstrap_interval("image_ap", scores, labels),
        "image_f1_max": bootstrap_interval("image_f1_max", scores, labels),
    }
    notes.append(by_chance(labels))
    return _Figures(metrics, intervals, {"roc": roc_curve(scores, labels)})


def _pixel_metrics(scored: _Scored, figures: _Figures, notes: list[str]) -> None:
    """Add the pixel metrics where masks exist; say which images they leave out."""
    judged = scored.judged
    with_mask = [row for row in judged if row.label == ANOMALOUS and row.mask is not None]
    if not with_mask or judged[0].map is None:
        return
    counted = [
        (row, roi)
        for row, roi in zip(judged, scored.rois, strict=True)
        if row.label == NORMAL or row.mask is not None
    ]
    if len(counted) < len(judged):
        notes.append(
            f"{len(judged) - len(counted)} anomalous images have no mask: they count in the image "
            "metrics and not in the pixel metrics."
        )
    maps = [row.map for row, _ in counted if row.map is not None]
    masks = [_mask(row) for row, _ in counted]
    if not any(mask.any() for mask in masks):
        notes.append("All masks are empty at the input size: pixel metrics do not exist.")
        return
    inside: list[Bool] | None = None
    if any(roi is not None for _, roi in counted):
        inside = [np.ones_like(m) if r is None else r
                  for m, (_, r) in zip(masks, counted, strict=True)]  # fmt: skip
    found = pixel_metrics(maps, masks, rois=inside, limit=0.3)
    figures.metrics["pixel_auroc"] = found.auroc
    figures.metrics["pixel_ap"] = found.ap
    figures.metrics["pixel_f1_max"] = found.f1_max
    figures.metrics["aupro"] = found.aupro
    figures.curves["pro"] = found.pro_curve
    low_high = pixel_intervals(maps, masks, rois=inside, limit=0.3)
    figures.intervals["pixel_auroc"] = low_high.auroc
    figures.intervals["pixel_ap"] = low_high.ap
    figures.intervals["pixel_f1_max"] = low_high.f1_max
    figures.intervals["aupro"] = low_high.aupro
    marked = sum(bool(mask.any()) for mask in masks)
    if marked < _FEW_MARKED:
        notes.append(
            f"The intervals of the pixel metrics rest on {marked} images with a defect: they are "
            "too narrow."
        )


def _mask(row: Judged) -> Bool:
    """(h, w) truth of one image in the network's frame."""
    geometry: Geometry | None = row.geometry
    assert geometry is not None
    if row.mask is None or row.label == NORMAL:
        return np.zeros(geometry.size, dtype=np.bool_)
    return read_framed_mask(row.mask, geometry, row.crop)


def _operating_point(runtime: Runtime, judged: Sequence[Judged]) -> dict[str, Any]:
    normal = [row for row in judged if row.label == NORMAL]
    anomalous = [row for row in judged if row.label == ANOMALOUS]
    calibration = runtime.calibration
    if calibration is None:
        return {"threshold": None, "n_normal": len(normal), "n_anomalous": len(anomalous)}
    false_alarms = sum(bool(row.result.is_anomalous) for row in normal)
    detected = sum(bool(row.result.is_anomalous) for row in anomalous)
    by_kind: dict[str, list[int]] = {}
    for row in anomalous:
        counts = by_kind.setdefault(row.kind or NO_KIND, [0, 0])
        counts[0] += bool(row.result.is_anomalous)
        counts[1] += 1
    return {
        "threshold": calibration.threshold,
        "pixel_threshold": calibration.pixel_threshold,
        "policy": calibration.policy,
        "max_false_alarm": calibration.max_false_alarm,
        "alpha": calibration.alpha,
        "n_calibration": len(calibration.scores),
        "calibration": calibration.how,
        "false_alarm_interval": calibration.expected_rates(len(normal) or None),
        "false_alarm_rate": false_alarms / len(normal) if normal else None,
        "false_alarms": false_alarms,
        "n_normal": len(normal),
        "recall": detected / len(anomalous) if anomalous else None,
        "detected": detected,
        "n_anomalous": len(anomalous),
        "recall_by_kind": dict(sorted(by_kind.items())),
    }


def add_evidence(detector: Fitted, judged: Sequence[Judged]) -> None:
    """Add to these images the normal patch that the most anomalous one was compared with, and what
    the detector's networks make of them, where there are such things."""
    runtime = as_runtime(detector)
    files = detector.training_facts.get("files", [])
    root = detector.training_facts.get("root")
    records = [Record(row.path, row.label, crop=row.crop, roi=row.roi) for row in judged]
    for batch in image_stream(runtime, records).batches(BATCH):
        rois = frame_rois(runtime, batch)
        made = runtime.reconstruct(batch.images, rois)
        if made is not None:
            for row, picture in enumerate(made):
                judged[int(batch.indices[row])].made = picture
        found = runtime.evidence(batch.images, rois)
        if found is None:
            if made is None:
                return
            continue
        for row, facts in enumerate(found):
            nearest = _normal_patch(files[facts["image"]], root, facts["box"], runtime)
            box = _in_pixels(facts["query_box"], batch.geometries[row])
            judged[int(batch.indices[row])].nearest = {
                **nearest, "query_box": box, "distance": facts["distance"]
            }  # fmt: skip


def _normal_patch(
    key: str, root: str | None, shares: Sequence[float], runtime: Runtime
) -> dict[str, Any]:
    """Path, crop and box of a patch of a training image; the box is absent if the file is gone."""
    path, crop = find_again(key, root)
    try:
        size = crop[2:] if crop else stored_size(path)
    except ImageError:
        return {"path": str(path)}
    geometry = fit_frame((size[0], size[1]), runtime.image_size, runtime.resize)
    return {"path": str(path), "crop": crop, "box": _in_pixels(shares, geometry)}


def _in_pixels(shares: Sequence[float], geometry: Geometry) -> tuple[int, int, int, int]:
    """A box in shares of the network's frame -> (top, left, bottom, right) in pixels of the
    original."""
    (H, W), (h, w) = geometry.original, geometry.size
    top, left, height, width = geometry.inner
    y = [round((share * h - top) * H / height) for share in (shares[0], shares[2])]
    x = [round((share * w - left) * W / width) for share in (shares[1], shares[3])]
    y0, x0 = min(max(y[0], 0), H - 1), min(max(x[0], 0), W - 1)
    return y0, x0, min(max(y[1], y0 + 1), H), min(max(x[1], x0 + 1), W)
