"""`teach`: a better detector from the defects that one missed, and from its false alarms.

False alarms are learned as normal images, by the method that the detector is of. Missed defects
take a method that learns from defects: the detector becomes a BGAD over the same normal images,
with what it has in common with the one before; a BGAD learns all defects it was ever shown.

Whatever was taught is seen, and judged by neither the old nor the new detector.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from amiss.artifact import load, save
from amiss.data.defects import anomalous_records
from amiss.data.index import Dataset, Source, index
from amiss.data.stream import record_digest
from amiss.errors import ArtifactError, OptionError
from amiss.evaluation import evaluate
from amiss.fit import fit
from amiss.found_again import added_to, defects_of, normals_of, set_of
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE
from amiss.outcome import Report
from amiss.predict import BATCH, decide, frame_rois
from amiss.run import Run
from amiss.runtime import as_runtime, image_stream
from amiss.types import Record

ON_A_CPU: dict[str, Any] = {
    "epochs": 20, "cell_share": 0.1, "vectors": 1024, "learning_rate": 2e-3, "standardize": True,
    "cells": "touched",
}  # fmt: skip
"""Of the BGAD that takes over from another method: minutes on two cores; see its page."""
_LAYERS = ("8", "16", "32")  # of the embedded network, with these


class Taught(NamedTuple):
    """The new `detector`, and both judged on the same images, which neither has seen; None where
    there were none to judge on. `shown_kinds` of defects are among those that were taught.

    `lesson`: of what was taught just now, by "defects" and "false alarms", how many of how many are
    called anomalous, (before, after, of all). The new detector has learned from them, so that this
    tells whether it took the lesson, and nothing of other images.
    """

    detector: Detector
    before: Report | None
    after: Report | None
    shown_kinds: tuple[str, ...]
    lesson: dict[str, tuple[int, int, int]]

    def describe(self) -> str:
        """Recall by kind and false alarms, before and after, for a person."""
        lines = [f"{'':<34}{'before':>14}{'after':>14}"]

        def row(name: str, values: Sequence[str]) -> None:
            lines.append(f"{name:<34}{values[0]:>14}{values[1]:>14}")

        lines.append("taught, and called anomalous:")
        for name, (*called, total) in self.lesson.items():
            row(f"  {name}", [f"{number} of {total}" for number in called])
        if self.before is None or self.after is None:
            lines.append(
                "There are no labelled images that neither detector has seen, so that nothing is "
                "known of others: name some with judge."
            )
            return "\n".join(lines)
        points = self.before.operating_point, self.after.operating_point
        lines.append("on images that neither has seen:")
        if points[0]["n_anomalous"]:
            row("caught", [f"{p['detected']} of {p['n_anomalous']}" for p in points])
            for kind in sorted(points[0]["recall_by_kind"]):
                told = "taught" if kind in self.shown_kinds else "not taught"
                found = [p["recall_by_kind"][kind] for p in points]
                row(f"  {kind} ({told})", [f"{caught} of {total}" for caught, total in found])
        if points[0]["n_normal"]:
            row("false alarms", [f"{p['false_alarms']} of {p['n_normal']}" for p in points])
        for name in ("image_auroc", "pixel_auroc", "aupro"):
            if name in self.before.metrics and name in self.after.metrics:
                row(name, [f"{r.metrics[name]:.4f}" for r in (self.before, self.after)])
        return "\n".join(lines)


def teach(  # noqa: PLR0913 - what is taught, on what, and how it is judged
    detector: Detector,
    *,
    anomalous: Source | None = None,
    normal: Source | None = None,
    data: Source | None = None,
    judge: Source | None = None,
    roi: str | Path | None = None,
    options: dict[str, Any] | None = None,
    run: Run | None = None,
) -> Taught:
    """Teach a fitted detector what it got wrong; the one that is given stays as it is.

    Args:
        anomalous: missed defects: anything that `amiss.fit.fit` takes for known defects.
        normal: false alarms: a folder or list of normal images.
        data: the normal images that the detector was fitted on, where they do not lie where they
            did, or were a list; only those with the same content count.
        judge: labelled images to judge both detectors on; the test images of the set that the
            detector was fitted on, where that has some.
        roi: the mask that the detector was fitted with, which its file does not hold whole.
        options: of the new detector's method, instead of those it takes over.

    Raises:
        OptionError: nothing to teach.
        DataError: normal images that the detector has learned from are not found.
    """
    run = run or Run()
    detector.require_fitted()
    if anomalous is None and normal is None:
        raise OptionError(
            "There is nothing to teach.",
            hint="Give missed defects (anomalous), false alarms (normal), or both.",
        )
    missed = [] if anomalous is None else anomalous_records(anomalous)
    original = _without(normals_of(detector, data), missed, run)
    _require_roi(detector, roi)
    known = [*defects_of(detector, data), *missed]  # before: of methods that learn from some
    alarms = [] if normal is None else list(index(normal).records)
    learner = _learner(detector, bool(missed), options or {})
    fit(
        learner, original, anomalous=known or None,
        also_normal=[*added_to(detector), *alarms] or None,
        max_false_alarm=_rate(detector, run), roi=roi,
        window=str(detector.training_facts.get("window", "percentile")), run=run,
    )  # fmt: skip
    learner.training_facts["taught"] = [
        *detector.training_facts.get("taught", ()),
        {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "defects": [str(r.path) for r in missed],
            "normals": [str(r.path) for r in alarms],
            "method_before": detector.id,
        },
    ]
    before, after, shown = _compared(detector, learner, judge, known)
    taught = (("defects", missed), ("false alarms", alarms))
    lesson = {
        name: (_called(detector, records), _called(learner, records), len(records))
        for name, records in taught
        if records
    }
    return Taught(learner, before, after, shown, lesson)


def _rate(detector: Detector, run: Run) -> float:
    """The rate of false alarms that the new detector is to keep."""
    calibration = detector.calibration
    if calibration is None:
        return 0.01
    if calibration.policy != "max_false_alarm":
        run.say(
            f"the threshold was chosen by {calibration.policy} on labelled images; that of the new "
            f"detector keeps a rate of false alarms of {calibration.max_false_alarm:g} (amiss "
            "calibrate chooses another)"
        )
    return calibration.max_false_alarm


def _called(detector: Detector, records: Sequence[Record]) -> int:
    """How many images a detector calls anomalous."""
    runtime = as_runtime(detector)
    found = 0
    for batch in image_stream(runtime, records).batches(BATCH):
        scores = runtime(batch.images, frame_rois(runtime, batch)).score
        found += sum(bool(decide(detector.calibration, float(score))[1]) for score in scores)
    return found


def _learner(detector: Detector, has_missed: bool, options: dict[str, Any]) -> Detector:
    """An unfitted detector to teach: of the same method, or a BGAD."""
    if not has_missed or detector.learns_from_anomalies:
        return type(detector)(**{**vars(detector.config), **options})
    from amiss.methods.bgad import BGAD, BGADConfig

    theirs = {f.name for f in dataclasses.fields(BGADConfig)}
    shared = ("image_size", "resize", "backbone", "weights", "normalization")
    alike = {k: v for k, v in vars(detector.config).items() if k in shared and k in theirs}
    if not hasattr(detector.config, "backbone"):
        alike.pop("image_size", None)  # that of a small network of its own
    if alike.get("backbone", DEFAULT_BACKBONE) == DEFAULT_BACKBONE:
        alike["layers"] = _LAYERS
    return BGAD(**{**alike, **ON_A_CPU, **options})


def _without(original: Dataset, missed: Sequence[Record], run: Run) -> Dataset:
    """The normal images without those that turn out to be defects: a likely reason for a miss."""
    shown = {record_digest(r) for r in missed}
    rest = tuple(r for r in original.records if not shown or record_digest(r) not in shown)
    if len(rest) < len(original.records):
        run.say(
            f"{len(original.records) - len(rest)} of the missed defects were among the normal "
            "images of the fit, and are left out of those from now on"
        )
    return dataclasses.replace(original, records=rest)


def _require_roi(detector: Detector, roi: str | Path | None) -> None:
    name = detector.training_facts.get("roi")
    if name is not None and roi is None:
        raise OptionError(
            f"The detector was fitted with the region of interest {name}.",
            hint="Give that mask again, as roi.",
        )


def _compared(
    old: Detector, new: Detector, judge: Source | None, known: Sequence[Record]
) -> tuple[Report | None, Report | None, tuple[str, ...]]:
    """Both judged on what neither has seen, and the kinds of defects that were taught."""
    dataset = set_of(old.training_facts) if judge is None else index(judge)
    if dataset is None:
        return None, None, ()
    seen = {bytes(row) for d in (old, new) for row in (*d.training_digests, *d.labelled_digests)}
    content = {record: record_digest(record) for record in dataset.test}
    shown = {record_digest(r) for r in known}
    kinds = {r.kind or "" for r, its in content.items() if its in shown}
    kinds |= {r.kind for r in known if r.kind}
    rest = [r for r in dataset.test if content[r] not in seen and r.label is not None]
    if not rest:
        return None, None, tuple(sorted(kinds))
    judged = dataclasses.replace(
        dataset, records=tuple(dataclasses.replace(r, split="test") for r in rest),
        has_drawn_split=False,
    )  # fmt: skip
    metrics = old.metrics
    before = evaluate(old, judged)
    old.metrics = metrics
    return before, evaluate(new, judged), tuple(sorted(kinds))


# --- versions of a file ------------------------------------------------------------------------


def teach_file(path: str | Path, **lesson: Any) -> Taught:
    """`teach` the detector of a file, which then holds the new one; the old one stays beside it as
    NAME.amiss.1, .2 and so on. Arguments as in `teach`."""
    path = Path(path)
    if path.suffix in (".onnx", ".xml"):
        raise ArtifactError(
            f"{path} is an exported file, which does not learn.",
            hint="Teach the .amiss file that it was made from, and export that again.",
        )
    taught = teach(load(path), **lesson)
    versions = versions_of(path)
    number = int(versions[-1].name.rpartition(".")[2]) + 1 if versions else 1
    copy, fresh = path.with_name(f".{path.name}.kept"), path.with_name(f".{path.name}.taught")
    try:
        save(taught.detector, fresh)
        shutil.copy2(path, copy)
        copy.replace(path.with_name(f"{path.name}.{number}"))
        fresh.replace(path)  # there is a whole detector under the name at any time
    finally:
        fresh.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
    return taught


def undo(path: str | Path) -> Path:
    """Put the detector back that a file held before it was last taught; the file it came from is
    gone then. Raises ArtifactError where there is none."""
    path = Path(path)
    versions = versions_of(path)
    if not versions:
        raise ArtifactError(
            f"{path} was not taught: no {path.name}.1 lies beside it.",
            hint="Name the file that `amiss teach` has written.",
        )
    versions[-1].replace(path)
    return versions[-1]


def versions_of(path: Path) -> list[Path]:
    """The detectors that a file held before, the first one first."""
    numbered = re.compile(re.escape(path.name) + r"\.(\d+)")
    found = {
        int(match[1]): other
        for other in path.parent.iterdir()
        if (match := numbered.fullmatch(other.name)) is not None
    }
    return [found[number] for number in sorted(found)]
