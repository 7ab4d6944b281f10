"""`teach`: a better detector from the defects that one missed, and from its false alarms.

False alarms are learned as normal images, by the method that the detector is of. Missed defects
take a method that learns from defects: the detector becomes a BGAD over the same normal images,
with what it has in common with the one before; a BGAD learns all defects it was ever shown.

Whatever was taught is seen, and judged by neither the old nor the new detector.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from amiss.artifact import load, save
from amiss.data.defects import anomalous_records
from amiss.data.index import Dataset, Source
from amiss.errors import ArtifactError, OptionError
from amiss.evaluation import evaluate
from amiss.fit import fit, normal_records
from amiss.found_again import (
    added_to,
    defects_of,
    each_once,
    normals_of,
    unless_in,
    without,
)
from amiss.lesson import (
    Taught,
    called,
    judged_before,
    kinds_of,
    say_what_contradicts,
    to_judge,
    unseen,
)
from amiss.manifest import read_manifest
from amiss.methods.base import Detector
from amiss.nn.backbone import DEFAULT_BACKBONE
from amiss.run import Run
from amiss.types import Record

ON_A_CPU: dict[str, Any] = {
    "epochs": 20, "cell_share": 0.1, "vectors": 1024, "learning_rate": 2e-3, "standardize": True,
    "cells": "touched",
}  # fmt: skip
"""Of the BGAD that takes over from another method: minutes on two cores; see its page."""
_LAYERS = ("8", "16", "32")  # of the embedded network, with these


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
            did, or were a list; only those with the same content count. What it was taught before
            is looked for there as well.
        judge: labelled images to judge both detectors on; else the test images of `data`, or of the
            set that the detector was fitted on, where that has some.
        roi: the mask that the detector was fitted with, which its file does not hold whole.
        options: of the new detector's method, instead of those it takes over.

    Raises:
        OptionError: nothing to teach, or nothing that was not taught before, with neither masks nor
            options; or another region of interest than that of the fit.
        DataError: images that the detector has learned from are not found; `anomalous` holds no
            defect, `normal` some, or `judge` nothing to judge on. All before anything is learned.
    """
    run = run or Run()
    if not isinstance(detector, Detector):
        raise OptionError(
            f"What is taught is a detector, and {type(detector).__name__} is none.",
            hint="Load an .amiss file with amiss.load, or use teach_file; exported files do not "
            "learn.",
        )
    detector.require_fitted()
    dataset = to_judge(detector, judge, data)
    _require_roi(detector, roi)
    it = _gathered(detector, _lesson(anomalous, normal), data, run, anew=bool(options))
    say_what_contradicts(dataset, it.missed, it.alarms, run)
    learner = _learner(detector, bool(it.missed), options or {})
    judged = unseen(detector, dataset, [*it.known, *it.more])
    before = judged_before(detector, judged)  # first, as it may find something wrong
    fit(
        learner, it.original, anomalous=it.known or None, also_normal=it.more or None,
        max_false_alarm=_rate(detector, run), roi=roi,
        window=str(detector.training_facts.get("window", "percentile")), run=run,
    )  # fmt: skip
    learner.training_facts["taught"] = [
        *detector.training_facts.get("taught", ()),
        {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "defects": [str(r.path.absolute()) for r in it.missed],
            "normals": [str(r.path.absolute()) for r in it.alarms],
            "method_before": detector.id,
        },
    ]
    lesson = {
        name: called(detector, learner, records)
        for name, records in (("defects", it.missed), ("false_alarms", it.alarms))
        if records
    }
    after = None if judged is None else evaluate(learner, judged)
    return Taught(learner, before, after, *kinds_of(it.known, dataset), lesson)


class _Images(NamedTuple):
    """`missed` and `alarms` are taught just now; the new detector learns from the `original` normal
    images, all `known` defects, and `more` normal ones: all false alarms."""

    missed: list[Record]
    alarms: list[Record]
    original: Dataset
    known: list[Record]
    more: list[Record]


def _gathered(
    detector: Detector,
    lesson: tuple[list[Record], list[Record]],
    data: Source | None,
    run: Run,
    *,
    anew: bool,
) -> _Images:
    """All images to learn from, each once; raises OptionError where nothing is to be taught, or all
    of it was, unless it is to be learned `anew`. A mask that is given again may be another one."""
    missed, alarms = lesson
    original = without(normals_of(detector, data), missed, run)
    shown = unless_in(defects_of(detector, data, missed), alarms, "defects", run)
    added = unless_in(added_to(detector, data), missed, "false alarms", run)
    alarms = unless_in(alarms, original.records, "false alarms", run)
    if not missed and not alarms:
        raise OptionError(
            "All of these false alarms were learned as normal images before.",
            hint="A detector that calls them anomalous all the same learns no more from them.",
        )
    known = _joined(shown, missed, "defects", run)
    more = _joined(added, alarms, "false alarms", run)
    has_masks = any(record.masks for record in missed)
    if known == shown and more == added and not has_masks and not anew:
        raise OptionError(
            "All of these images were taught before, as what they are given as now.",
            hint="Teach others, give masks of these, or other options of the method.",
        )
    return _Images(missed, alarms, original, known, more)


def _joined(before: list[Record], now: list[Record], name: str, run: Run) -> list[Record]:
    """What was taught before and what is taught now, each once."""
    both = [*before, *now]
    once = each_once(both)
    if len(once) < len(both):
        run.say(f"{len(both) - len(once)} of the {name} were given before")
    return once


def _lesson(anomalous: Source | None, normal: Source | None) -> tuple[list[Record], list[Record]]:
    """The missed defects and the false alarms; raises where there are none of what is given."""
    if anomalous is None and normal is None:
        raise OptionError(
            "There is nothing to teach.", hint="Give missed defects, false alarms, or both."
        )
    missed = [] if anomalous is None else anomalous_records(anomalous)
    alarms = [] if normal is None else normal_records(normal)
    return each_once(missed), each_once(alarms)


def _rate(detector: Detector, run: Run) -> float:
    """The rate of false alarms that the new detector is to keep."""
    calibration = detector.calibration
    if calibration is None:
        return 0.01
    if calibration.policy != "max_false_alarm":
        how = (
            "set by hand" if calibration.policy == "manual"
            else f"chosen by {calibration.policy} on labelled images"
        )  # fmt: skip
        run.say(
            f"the threshold was {how}; that of the new detector keeps a rate of false alarms of "
            f"{calibration.max_false_alarm:g} (amiss calibrate chooses another)"
        )
    return calibration.max_false_alarm


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


def _require_roi(detector: Detector, roi: str | Path | None) -> None:
    name = detector.training_facts.get("roi")
    if name is None and roi is not None:
        raise OptionError(
            "The detector was fitted without a region of interest.",
            hint="Leave roi out, or fit anew with it.",
        )
    if name is not None and roi is None:
        raise OptionError(
            f"The detector was fitted with the region of interest {name}.",
            hint="Give that mask again, as roi.",
        )
    if roi is not None and detector.roi is not None:
        again = detector.blank()
        again.keep_roi(roi)
        if again.roi is None or not again.roi.equal(detector.roi):
            raise OptionError(
                f"{roi} is another region of interest than {name}, which the detector was fitted "
                "with.",
                hint="Give that mask again, as roi.",
            )


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
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file.", hint="Name one of `amiss fit`.")
    file_before = _file_digest(path)
    taught = teach(load(path), **lesson)
    taught.detector.training_facts["taught"][-1]["file_before"] = file_before
    if _file_digest(path) != file_before:
        raise ArtifactError(
            f"{path} was written to while it was taught, and is left as it is.",
            hint="Teach it again.",
        )
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


class Undone(NamedTuple):
    """`version` lay beside the file, and is what it holds again; what it had become is `kept`."""

    version: Path
    kept: Path


def undo(path: str | Path) -> Undone:
    """Put the detector back that a file held before it was last taught; what it had become is
    kept as NAME.amiss.undone, or .undone.2 and so on.

    Raises ArtifactError where there is none, or where the file was made by something else since.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file.", hint="Name one of `amiss teach`.")
    versions = versions_of(path)
    if not versions:
        raise ArtifactError(
            f"{path} was not taught: no {path.name}.1 lies beside it.",
            hint="Name the file that `amiss teach` has written.",
        )
    taught = read_manifest(path)["training"].get("taught") or [{}]
    if taught[-1].get("file_before") != _file_digest(versions[-1]):
        raise ArtifactError(
            f"{path} was not taught from {versions[-1].name}: another detector was written there "
            "since.",
            hint=f"Keep it under another name, and rename {versions[-1].name} by hand.",
        )
    copy, kept = path.with_name(f".{path.name}.kept"), _kept_as(path)
    try:
        shutil.copy2(path, copy)
        copy.replace(kept)
    finally:
        copy.unlink(missing_ok=True)
    versions[-1].replace(path)
    return Undone(versions[-1], kept)


def _kept_as(path: Path) -> Path:
    name, number = path.with_name(f"{path.name}.undone"), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}.undone.{number}"), number + 1
    return name


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions_of(path: Path) -> list[Path]:
    """The detectors that a file held before, the first one first."""
    numbered = re.compile(re.escape(path.name) + r"\.(\d+)")
    found = {
        int(match[1]): other
        for other in path.parent.iterdir()
        if (match := numbered.fullmatch(other.name)) is not None
    }
    return [found[number] for number in sorted(found)]
