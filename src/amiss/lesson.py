"""What a lesson changed: a detector before and after, on what was taught and on other images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from amiss.data.index import Dataset
from amiss.data.stream import record_digest
from amiss.evaluation import evaluate
from amiss.methods.base import Detector
from amiss.outcome import Report
from amiss.predict import BATCH, decide, frame_rois
from amiss.runtime import as_runtime, image_stream
from amiss.types import Record


class Called(NamedTuple):
    """How many of `total` images are called anomalous; None without a threshold."""

    before: int | None
    after: int | None
    total: int


class Taught(NamedTuple):
    """The new `detector`, and both judged on the same images, which neither has seen; None where
    there were none to judge on.

    `shown_kinds` of defects are among those that were taught; with `has_unknown_kinds` others may
    be, as nobody said of what kind these are. `lesson`: of what was taught just now, by "defects"
    and "false_alarms", how many are called anomalous. The new detector has learned from them, so
    that this tells whether it took the lesson, and nothing of other images.
    """

    detector: Detector
    before: Report | None
    after: Report | None
    shown_kinds: tuple[str, ...]
    has_unknown_kinds: bool
    lesson: dict[str, Called]

    def describe(self) -> str:
        """Recall by kind and false alarms, before and after, for a person."""
        lines = [_row("", ["before", "after"]), "taught, and called anomalous:"]
        for name, called in self.lesson.items():
            told = [_of(number, called.total) for number in called[:2]]
            lines.append(_row(f"  {name.replace('_', ' ')}", told))
        if self.before is None or self.after is None:
            lines.append(
                "There are no labelled images that neither detector has seen, so that nothing is "
                "known of others: name some with judge."
            )
        else:
            lines.append("on images that neither has seen:")
            lines += self._figures(self.before, self.after)
        entry = self.detector.training_facts["taught"][-1]
        if entry["method_before"] != self.detector.id:
            lines.append(
                f"The method changed from {entry['method_before']} to {self.detector.id}: what "
                "changed is not the lesson's alone."
            )
        return "\n".join(lines)

    def _figures(self, *reports: Report) -> list[str]:
        points = [report.operating_point for report in reports]
        lines = []
        if points[0]["n_anomalous"]:
            lines.append(_row("  caught", [_of(p.get("detected"), p["n_anomalous"])
                                           for p in points]))  # fmt: skip
            kinds = sorted({kind for p in points for kind in p.get("recall_by_kind", ())})
            for kind in kinds:
                found = [p.get("recall_by_kind", {}).get(kind) for p in points]
                name = f"    {kind} ({self._told(kind)})"
                lines.append(_row(name, ["-" if f is None else _of(*f) for f in found]))
        if points[0]["n_normal"]:
            lines.append(_row("  false alarms", [_of(p.get("false_alarms"), p["n_normal"])
                                                 for p in points]))  # fmt: skip
        rates = [p.get("alpha") for p in points]
        lines.append(
            _row("  rate that the threshold keeps",
                 ["no threshold" if rate is None else f"{rate:.2%}" for rate in rates])
        )  # fmt: skip
        for name in ("image_auroc", "pixel_auroc", "aupro"):
            if all(name in report.metrics for report in reports):
                lines.append(_row(f"  {name}", [f"{r.metrics[name]:.4f}" for r in reports]))
        return lines

    def _told(self, kind: str) -> str:
        if kind in self.shown_kinds:
            return "taught"
        return "taught or not" if self.has_unknown_kinds else "not taught"


def _row(name: str, values: Sequence[str]) -> str:
    return f"{name:<40}{values[0]:>14}{values[1]:>14}"


def _of(number: int | None, total: int) -> str:
    return "no threshold" if number is None else f"{number} of {total}"


def called(old: Detector, new: Detector, records: Sequence[Record]) -> Called:
    """How many images each calls anomalous."""
    return Called(_called(old, records), _called(new, records), len(records))


def _called(detector: Detector, records: Sequence[Record]) -> int | None:
    if detector.calibration is None:
        return None
    runtime = as_runtime(detector)
    found = 0
    for batch in image_stream(runtime, records).batches(BATCH):
        scores = runtime(batch.images, frame_rois(runtime, batch)).score
        found += sum(bool(decide(detector.calibration, float(score))[1]) for score in scores)
    return found


def compared(
    old: Detector, new: Detector, dataset: Dataset | None, known: Sequence[Record]
) -> dict[str, Any]:
    """The fields of `Taught` that tell of images which neither has seen, of the test images of
    `dataset`; `known` are the defects that were ever taught."""
    test = () if dataset is None else dataset.test
    content = {record: record_digest(record) for record in test}
    by_content = {its: record.kind for record, its in content.items()}
    names = {record.kind for record in test}
    kinds = set()
    for record in known:
        folder = record.path.parent.name
        kinds.add(
            record.kind
            or by_content.get(record_digest(record))
            or (folder if folder in names else None)
        )
    found: dict[str, Any] = {
        "before": None, "after": None, "has_unknown_kinds": None in kinds,
        "shown_kinds": tuple(sorted(kind for kind in kinds if kind)),
    }  # fmt: skip
    seen = {bytes(row) for d in (old, new) for row in (*d.training_digests, *d.labelled_digests)}
    rest = [r for r in test if content[r] not in seen and r.label is not None]
    if dataset is None or not rest:
        return found
    judged = dataclasses.replace(
        dataset, records=tuple(dataclasses.replace(r, split="test") for r in rest),
        has_drawn_split=False,
    )  # fmt: skip
    metrics = old.metrics
    before = evaluate(old, judged)
    old.metrics = metrics
    return found | {"before": before, "after": evaluate(new, judged)}
