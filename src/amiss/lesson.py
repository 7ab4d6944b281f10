"""What a lesson changed: a detector before and after, on what was taught and on other images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from amiss.data.index import Dataset, Source, index
from amiss.data.stream import Contents, record_digest
from amiss.errors import DataError
from amiss.evaluation import NO_KIND, evaluate
from amiss.found_again import set_of
from amiss.methods.base import Detector
from amiss.outcome import Report
from amiss.predict import BATCH, decide, frame_rois
from amiss.run import Run
from amiss.runtime import as_runtime, image_stream
from amiss.types import ANOMALOUS, NORMAL, Record


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
                "known of others: name some (judge=SET, --judge SET)."
            )
        else:
            lines.append("on images that neither has seen:")
            lines += self._figures(self.before, self.after)
        lines += self._remarks()
        entry = self.detector.training_facts["taught"][-1]
        if entry["method_before"] != self.detector.id:
            lines.append(
                f"The method changed from {entry['method_before']} to {self.detector.id}: what "
                "changed is not the lesson's alone."
            )
        return "\n".join(lines)

    def _remarks(self) -> list[str]:
        """What a reader of the figures may overlook."""
        remarks = []
        alarms = self.lesson.get("false_alarms")
        if alarms is not None and alarms.before == 0:
            remarks.append("None of the false alarms was called anomalous before.")
        new = self.detector.calibration
        if new is not None and new.alpha > new.max_false_alarm:
            remarks.append(
                f"The new threshold can keep no lower rate of false alarms than {new.alpha:.2%} "
                "with so few normal images to set it by: set it by others (amiss calibrate "
                "--normals), or take the lesson back."
            )
        return remarks

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
        is_open = self.has_unknown_kinds or kind == NO_KIND
        return "taught or not" if is_open else "not taught"


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


def to_judge(detector: Detector, judge: Source | None, data: Source | None) -> Dataset | None:
    """The set whose test images both detectors are judged on."""
    if judge is None:
        return index(data) if data is not None else set_of(detector.training_facts)
    dataset = index(judge)
    if not labelled(dataset):
        raise DataError(
            f"{dataset.name} has no labelled test image to judge on.",
            hint="Put normal images in a folder named good, and defects in folders beside it.",
        )
    return dataset


def say_what_contradicts(
    dataset: Dataset | None, missed: Sequence[Record], alarms: Sequence[Record], run: Run
) -> None:
    """The lesson has the last word over the labels of a set, and it is said."""
    if dataset is None:
        return
    labels = {record_digest(r): r.label for r in labelled(dataset)}
    for records, other, named in ((missed, NORMAL, "defects"), (alarms, ANOMALOUS, "normal")):
        against = [r for r in records if labels.get(record_digest(r)) == other]
        if against:
            run.say(
                f"{len(against)} images are taught as {named}, such as {against[0].path.name}, and "
                f"{dataset.name} says the opposite of them"
            )


def labelled(dataset: Dataset) -> list[Record]:
    """The images to judge on: all that have a label, where the set has no split of its own."""
    records = dataset.records if dataset.has_drawn_split else dataset.test
    return [record for record in records if record.label is not None]


def unseen(old: Detector, dataset: Dataset | None, taught: Sequence[Record]) -> Dataset | None:
    """The images of `labelled` that the old detector has not seen, nor the new one will have when
    it was `taught` all of these; None where there are none."""
    if dataset is None:
        return None
    seen = {bytes(row) for row in (*old.training_digests, *old.labelled_digests)}
    shown = Contents(taught)
    rest = [
        dataclasses.replace(record, split="test")
        for record in labelled(dataset)
        if record_digest(record) not in seen and record not in shown
    ]
    if not rest:
        return None
    return dataclasses.replace(dataset, records=tuple(rest), has_drawn_split=False)


def judged_before(old: Detector, dataset: Dataset | None) -> Report | None:
    """The old detector on these images; its own metrics stay as they are."""
    if dataset is None:
        return None
    metrics = old.metrics
    report = evaluate(old, dataset)
    old.metrics = metrics
    return report


def kinds_of(defects: Sequence[Record], dataset: Dataset | None) -> tuple[tuple[str, ...], bool]:
    """The kinds of defects, as they say themselves, as `dataset` calls the same image, or as their
    folder is called if `dataset` has a kind of that name; and whether there are others."""
    test = () if dataset is None else dataset.test
    by_content = {record_digest(record): record.kind for record in test}
    names = {record.kind for record in test}
    kinds = set()
    for record in defects:
        folder = record.path.parent.name
        kinds.add(
            record.kind
            or by_content.get(record_digest(record))
            or (folder if folder in names else None)
        )
    return tuple(sorted(kind for kind in kinds if kind)), None in kinds
