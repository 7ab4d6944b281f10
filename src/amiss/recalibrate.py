"""`recalibrate`: another threshold for a fitted detector, without fitting again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from amiss.calibration import Calibration, with_false_alarm_rate, with_labels, with_threshold
from amiss.data.index import index
from amiss.errors import CalibrationError, DataError, LeakageError, OptionError
from amiss.predict import frame_rois
from amiss.runtime import Fitted, as_runtime, image_stream


def recalibrate(
    detector: Fitted,
    *,
    max_false_alarm: float | None = None,
    threshold: float | None = None,
    policy: str | None = None,
    labelled: str | None = None,
    roi: str | Path | None = None,
    layout: str | None = None,
) -> Calibration:
    """Set and return a new calibration, by exactly one of the three ways.

    With `policy` ("f1", "recall" or "cost FP:FN"), the labelled images are remembered as seen:
    `evaluate` leaves them out from then on. `roi` is one mask for all labelled images, white where
    to look, unless an image has its own; `layout` is how they are laid out, as in `index`.

    Raises:
        OptionError: none or several ways at once; labelled, roi or layout without a policy.
        CalibrationError: the detector has no calibration.
        LeakageError: the labelled images are among those the detector learned from.
    """
    if detector.calibration is None:
        raise CalibrationError("This detector has no calibration.", hint="Fit it on more images.")
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
    runtime = as_runtime(detector)
    stream = image_stream(runtime, records, roi=roi, digests=True)
    learned = {bytes(row) for row in detector.training_digests}
    scores: list[float] = []
    digests: list[bytes] = []
    for batch in stream.batches(8):
        scores += runtime(batch.images, frame_rois(runtime, batch)).score.tolist()
        digests += batch.digests
    seen = sum(digest in learned for digest in digests)
    if seen:
        raise LeakageError(
            f"{seen} of the labelled images are among those the detector learned from.",
            hint="Use images of their own for the threshold.",
        )
    labels = np.array([record.label for record in records], dtype=np.int64)
    changed = with_labels(calibration, np.array(scores), labels, policy=name, cost=cost)
    more = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 8)
    detector.labelled_digests = np.unique(np.concatenate([detector.labelled_digests, more]), axis=0)
    return changed


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
