"""`fit`: from a folder of normal images to a detector with a threshold."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amiss.calibration import calibrate, check_rate, enough
from amiss.data.defects import anomalous_records
from amiss.data.index import Dataset, Source, index
from amiss.data.stream import ImageStream, record_digest
from amiss.errors import CalibrationWarning, DataError, OptionError
from amiss.learning.held_out import HeldOut
from amiss.learning.known_defects import KnownDefects
from amiss.learning.normals import Normals, fingerprint
from amiss.learning.processes import join_others
from amiss.methods.base import Detector
from amiss.run import Run, warn
from amiss.types import ANOMALOUS, NORMAL, Record, UInt8
from amiss.versions import versions

_NO_THRESHOLD = "One image cannot calibrate a threshold: scores are raw, nothing is decided."


def fit(  # noqa: PLR0913 - what is learned from, and how it is looked at
    detector: Detector,
    data: Source,
    *,
    anomalous: Source | None = None,
    also_normal: Source | None = None,
    max_false_alarm: float = 0.01,
    roi: str | Path | None = None,
    window: str = "percentile",
    run: Run | None = None,
) -> Detector:
    """Learn from the normal training images of `data` and set the threshold from held-out ones.

    Args:
        data: a folder, a table, a known name, records or paths; see docs/data.md.
        anomalous: known defects for a method that learns from some, beside the anomalous training
            images of `data`: a source as well, of which all images that are not normal count, or
            a list of paths, or a folder of defective images alone. They are seen from then on:
            `evaluate` leaves them out.
        also_normal: more normal images to learn from, such as false alarms. They were picked, so
            they say nothing of how often there is a false alarm, and set no threshold.
        max_false_alarm: share of normal images that may be called anomalous, in (0, 1).
        roi: one mask for all images, white where to look.
        window: intensity window of images with more than 8 bits.

    Raises:
        DataError, OptionError, WeightsError, MemoryLimitError: before or while learning; the
            detector is then as unfitted as it was.

    Warns:
        CalibrationWarning: too few images for the rate asked for, unless `run` says it.
    """
    run = run or Run()
    check_rate(max_false_alarm)
    _require_use(detector, run)
    join_others()
    dataset = data if isinstance(data, Dataset) else index(data)
    records = dataset.train
    if not records:
        raise DataError(
            f"{dataset.name} holds no normal image to learn from.",
            hint="Put normal images in a folder of their own, or in one named good.",
        )
    known = _known_records(detector, dataset, anomalous)
    more = _more_normals(records, also_normal)
    run.say(dataset.describe())
    started = time.perf_counter()
    stream = ImageStream(
        [*records, *more], size=detector.image_size, mode=detector.config.resize_mode,
        roi=None if roi is None else Path(roi), window=window,
    )  # fmt: skip
    defects = None
    if known:
        run.say(f"{len(known)} known defects to learn from")
        defects = KnownDefects(replace(stream, records=known))
    lesson = _Lesson(dataset, Normals(stream, len(records)), defects)
    learned = _learned(detector.blank(), lesson, max_false_alarm, run)
    learned.training_facts |= {
        "fitted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "window": window,
        "roi": None if roi is None else Path(roi).name,
        "fit_seconds": round(time.perf_counter() - started, 3),
    }
    learned.keep_roi(roi)
    detector.take_over(learned)
    calibration = detector.calibration
    for note in (_NO_THRESHOLD,) if calibration is None else calibration.notes:
        warn(run, note, CalibrationWarning)
    return detector


def _require_use(detector: Detector, run: Run) -> None:
    """Raises OptionError for what only a training has use for."""
    plain = Run()
    if detector.trains:
        return
    for name in ("device", "precision", "log"):
        if getattr(run, name) != getattr(plain, name):
            raise OptionError(
                f"{name}={getattr(run, name)} has no effect: {detector.id} does not train by "
                "gradients.",
                hint=f"Leave {name} out.",
            )


def _known_records(detector: Detector, dataset: Dataset, anomalous: Source | None) -> list[Record]:
    """The anomalous images to learn from; raises OptionError for a method that learns from none."""
    if not detector.learns_from_anomalies:
        if anomalous is not None:
            raise OptionError(
                f"anomalous has no effect: {detector.id} learns from normal images alone.",
                hint="Leave it out, or use bgad, which learns from a few defects.",
            )
        return []
    given = [] if anomalous is None else anomalous_records(anomalous)
    known = {(r.path, r.crop): r for r in [*given, *dataset.train_anomalous]}  # each once
    return list(known.values())


def _more_normals(records: Sequence[Record], also_normal: Source | None) -> list[Record]:
    """The images of `also_normal` that are not among `records`."""
    if also_normal is None:
        return []
    there = {(r.path.absolute(), r.crop) for r in records}
    return [
        replace(record, label=NORMAL)
        for record in normal_records(also_normal)
        if (record.path.absolute(), record.crop) not in there
    ]


def normal_records(source: Source) -> list[Record]:
    """The images of a set that is to be learned as normal; raises DataError for one with anomalous
    images in it, which are not told apart by themselves."""
    found = index(source)
    strange = [r for r in found.records if r.label == ANOMALOUS]
    if strange:
        raise DataError(
            f"{found.name} holds {len(strange)} anomalous images, and is to be learned as normal.",
            hint="Give a folder or a list of normal images alone.",
        )
    return list(found.records)


class _Lesson(NamedTuple):
    """What is learned from: normal images, and known defects or None."""

    dataset: Dataset
    images: Normals
    defects: KnownDefects | None


def _learned(detector: Detector, lesson: _Lesson, max_false_alarm: float, run: Run) -> Detector:
    """The blank `detector` after it has learned and been calibrated."""
    dataset, images, defects = lesson
    if defects is None:
        held_out = detector.learn(images, run)
    else:
        _require_no_contradiction(images, defects)
        held_out = detector.learn_with(images, defects, run)
    held_out = held_out.below(images.original)
    detector.eval()
    if len(held_out.scores):
        found = calibrate(
            held_out.scores, held_out.map_maxima, held_out.map_medians,
            max_false_alarm=max_false_alarm, how=held_out.how,
        )  # fmt: skip
        judged = len(held_out.scores)
        if found.notes and judged < images.original:  # it learns from some and judges others
            needed = math.ceil(enough(max_false_alarm) * images.original / judged)
            needed += len(images) - images.original  # those that were picked are never judged
            more = f"The threshold is set by {held_out.how}; about {needed} in all would do."
            found = replace(found, notes=(*found.notes, more))
        if judged > 1 and held_out.scores.min() == held_out.scores.max():
            same = (
                f"All {judged} judged normal images have the same score, "
                f"{held_out.scores[0]:.4g}: the detector does not tell images apart. Train longer, "
                "or with other options."
            )
            found = replace(found, notes=(*found.notes, same))
        detector.calibration = found
    normal_digests = images.digest_rows(len(images)).numpy()
    detector.training_digests = normal_digests
    records = images.stream.records
    known: list[str] = []
    masks: list[list[str]] = []
    if defects is not None:  # seen too
        detector.training_digests = np.concatenate([normal_digests, defects.digests])
        known = [_key(dataset, record) for record in defects.records]
        masks = [[str(m.absolute()) for m in record.masks] for record in defects.records]
    seen = [*records, *(() if defects is None else defects.records)]
    detector.training_facts = {
        **_data_facts(dataset, records, normal_digests),
        "known_defects": known,
        "known_masks": masks,
        "added_normals": [_key(dataset, record) for record in records[images.original :]],
        # of the files and then the defects; empty where there are none of single images
        "rois": [str(r.roi.absolute()) if r.roi else None for r in seen]
        if any(r.roi for r in seen)
        else [],
        "seed": run.seed,
        "least_normal": _least_normal(dataset, records, held_out),
        "versions": versions(),
    }
    return detector


def _require_no_contradiction(images: Normals, defects: KnownDefects) -> None:
    """Raises DataError where an image is to be learned as normal and as a defect."""
    shown = {bytes(row) for row in defects.digests}
    twice = [r.path for r in images.stream.records if record_digest(r) in shown]
    if twice:
        raise DataError(
            f"{len(twice)} images are given as normal and as defects, such as {twice[0]}.",
            hint="Take them out of one of the two.",
        )


def _key(dataset: Dataset, record: Record) -> str:
    """A name under which a record is found again: below the root of its set, or from anywhere."""
    if dataset.root is not None and record.path.is_relative_to(dataset.root):
        return dataset.key(record)
    return dataset.key(replace(record, path=record.path.absolute()))


def _data_facts(dataset: Dataset, records: Sequence[Record], digests: UInt8) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "root": None if dataset.root is None else str(dataset.root.absolute()),
        "n_normal": len(records),
        "files": [_key(dataset, record) for record in records],
        "fingerprint": fingerprint(digests),
        "notes": list(dataset.notes),
    }


def _least_normal(
    dataset: Dataset, records: Sequence[Record], held_out: HeldOut
) -> list[dict[str, Any]]:
    """The ten training normals with the highest held-out scores: where to look for dirt."""
    ranked = np.argsort(-held_out.scores)[:10]
    return [
        {
            "file": dataset.key(records[int(held_out.indices[i])]),
            "score": float(held_out.scores[i]),
            "rank": rank,
        }
        for rank, i in enumerate(ranked, 1)
    ]
