"""`recalibrate`: another threshold for a fitted detector, without fitting again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amiss.calibration import (
    Calibration,
    calibrate,
    check_rate,
    with_false_alarm_rate,
    with_labels,
    with_threshold,
)
from amiss.data.index import index
from amiss.errors import CalibrationError, DataError, LeakageError, OptionError
from amiss.predict import BATCH, frame_rois
from amiss.runtime import Fitted, as_runtime, image_stream
from amiss.types import NORMAL, Float32, Float64, Record


def recalibrate(  # noqa: PLR0913 - the three ways and what they need
    detector: Fitted,
    *,
    max_false_alarm: float | None = None,
    threshold: float | None = None,
    policy: str | None = None,
    labelled: str | None = None,
    normals: str | None = None,
    roi: str | Path | None = None,
    layout: str | None = None,
) -> Calibration:
    """Set and return a new calibration, by exactly one of the three ways, or from new normals.

    `normals` are normal images that the detector has not learned from, such as those of another
    camera: they take the place of the held-out ones of the fit, at the rate `max_false_alarm` or
    else at the one that was asked for before.

    With `policy` ("f1", "recall" or "cost FP:FN"), the threshold is chosen on labelled images.
    Images of both kinds are remembered as seen: `evaluate` leaves them out from then on. `roi` is
    one mask for all of them, white where to look, unless an image has its own; `layout` is how
    they are laid out, as in `index`.

    Raises:
        OptionError: none or several ways at once; labelled, roi or layout without a policy.
        CalibrationError: the detector has no calibration, and no normals are given.
        LeakageError: the images are among those the detector learned from.
    """
    if normals is not None:
        return _from_normals(detector, normals, max_false_alarm, (threshold, policy, labelled),
                             roi=None if roi is None else Path(roi), layout=layout)  # fmt: skip
    if detector.calibration is None:
        raise CalibrationError(
            "This detector has no calibration.",
            hint="Fit it on more images, or give it normals that it has not seen.",
        )
    ways = [way is not None for way in (max_false_alarm, threshold, policy)]
    if sum(ways) != 1:
        raise OptionError("Give one of max_false_alarm, threshold and policy.")
    for name, value in (("labelled", labelled), ("roi", roi), ("layout", layout)):
        if value is not None and policy is None:
            raise OptionError(
                f"{name} is for labelled images, which have no use without a policy.",
                hint=f"Add policy, or leave {name} out.",
            )
    if max_false_alarm is not None:
        detector.calibration = with_false_alarm_rate(detector.calibration, max_false_alarm)
    elif threshold is not None:
        detector.calibration = with_threshold(detector.calibration, threshold)
    else:
        assert policy is not None
        detector.calibration = _by_labels(
            detector, detector.calibration, policy, labelled,
            roi=None if roi is None else Path(roi), layout=layout,
        )  # fmt: skip
    return detector.calibration


def _by_labels(
    detector: Fitted,
    calibration: Calibration,
    policy: str,
    labelled: str | None,
    *,
    roi: Path | None,
    layout: str | None,
) -> Calibration:
    if labelled is None:
        raise OptionError(
            f"policy {policy} needs labelled images.",
            hint="Name them with labelled; they must be others than those you evaluate on.",
        )
    name, cost = _parse_policy(policy)
    records = [r for r in index(labelled, layout=layout).records if r.label is not None]
    if not records:
        raise DataError(f"{labelled} holds no labelled image.")
    judged = _judge(detector, records, roi)
    scores = judged.scores
    labels = np.array([record.label for record in records], dtype=np.int64)
    changed = with_labels(calibration, scores, labels, policy=name, cost=cost)
    _remember(detector, judged.digests)
    return changed


def _from_normals(
    detector: Fitted,
    normals: str,
    max_false_alarm: float | None,
    others: tuple[Any, ...],
    *,
    roi: Path | None,
    layout: str | None,
) -> Calibration:
    if any(other is not None for other in others):
        raise OptionError(
            "normals set a threshold by a false-alarm rate alone.",
            hint="Leave threshold, policy and labelled out.",
        )
    before = detector.calibration
    if max_false_alarm is None:
        max_false_alarm = 0.01 if before is None else before.max_false_alarm
    check_rate(max_false_alarm)
    dataset = index(normals, layout=layout)
    records = [r for r in dataset.records if r.label == NORMAL]
    if not records:
        raise DataError(f"{normals} holds no normal image.")
    detector.calibration = None  # or SPADE would make maps of those above the old threshold alone
    try:
        judged = _judge(detector, records, roi)
    finally:
        detector.calibration = before
    changed = calibrate(
        judged.scores, judged.peaks, judged.middles, max_false_alarm=max_false_alarm,
        how=f"{len(records)} normal images of {dataset.name}, given after the fit",
    )  # fmt: skip
    _remember(detector, judged.digests)
    detector.calibration = changed
    return changed


class _Judged(NamedTuple):
    """What images score that the detector has not learned from."""

    scores: Float64  # (n,)
    peaks: Float64 | None  # (n,) largest map value inside the region of interest
    middles: Float64 | None  # (n,) median map value there
    digests: list[bytes]


def _judge(detector: Fitted, records: Sequence[Record], roi: Path | None) -> _Judged:
    runtime = as_runtime(detector)
    learned = {bytes(row) for row in detector.training_digests}
    scores: list[float] = []
    inside: list[Float32] = []
    digests: list[bytes] = []
    for batch in image_stream(runtime, records, roi=roi, digests=True).batches(BATCH):
        rois = frame_rois(runtime, batch)
        found = runtime(batch.images, rois)
        scores += found.score.tolist()
        digests += batch.digests
        maps = () if found.anomaly_map is None else found.anomaly_map
        values = [m if rois is None else m[rois[i]] for i, m in enumerate(maps)]
        inside += [np.array([v.max(), np.median(v)]) for v in values]
    seen = sum(digest in learned for digest in digests)
    if seen:
        raise LeakageError(
            f"{seen} of these images are among those the detector learned from.",
            hint="Use images of their own for the threshold.",
        )
    peaks, middles = np.array(inside, dtype=np.float64).T if inside else (None, None)
    return _Judged(np.array(scores), peaks, middles, digests)


def _remember(detector: Fitted, digests: Sequence[bytes]) -> None:
    """These images are seen from now on."""
    more = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 8)
    detector.labelled_digests = np.unique(np.concatenate([detector.labelled_digests, more]), axis=0)


def _parse_policy(policy: str) -> tuple[str, tuple[float, float]]:
    """ "f1", "recall", "recall=1", "cost 1:10" -> name and costs of a false alarm and a miss."""
    text = policy.strip().lower()
    if text in {"f1", "recall", "recall=1"}:
        return text.split("=")[0], (1.0, 1.0)
    found = re.fullmatch(r"cost[ =](\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text)
    if found is None:
        raise OptionError(
            f"policy={policy!r} is not known.", hint="Choose f1, recall or 'cost FP:FN'."
        )
    return "cost", (float(found[1]), float(found[2]))
