"""`export`: trace, compare, and only then write."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from amiss.artifact import describe
from amiss.calibration import calibration_arrays, scaled
from amiss.data.index import Dataset, Source, index
from amiss.engines import ExportedDetector
from amiss.errors import ArtifactError, ExportError, OptionError
from amiss.evaluation import evaluate
from amiss.export.drift import ratios
from amiss.export.graph import ExportedForm
from amiss.export.onnx import OPSET, feed, halve, quantize, to_onnx
from amiss.export.openvino import convert, require_openvino
from amiss.export.parity import (
    Parity,
    damaged,
    framed,
    made_images,
    measure,
    training_images,
)
from amiss.exported_file import FORMAT, rewrite, write_onnx
from amiss.methods.base import Detector
from amiss.run import Run
from amiss.runtime import TorchRuntime
from amiss.types import UInt8

Target = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
Input = Literal["model", "original"]

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
# Largest relative difference of a score or a map. float16 keeps 11 bits of each weight, and what
# is lost adds up over the layers. 8 bits move scores as a whole, which the calibration follows;
# what is left is bounded below.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.2}
# An engine that divides in float32 rounds a pixel to the neighbouring level now and then.
TOLERANCE_RESIZED = 2e-3
LARGEST_RESIDUAL = 0.05  # of a score, after the calibration has followed the drift
LARGEST_LOSS = 0.005  # of image or pixel AUROC, where labelled images are given
_COMPARED = 12  # photographs of the fit
_RANGES_FROM = 64  # those that the ranges of 8-bit values are taken from
_FEWEST = 4  # without so many, nothing can be said of 8 bits


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export left behind: the file, the proof, and for int8 how far scores moved."""

    path: Path
    target: str
    precision: str
    input: str
    parity: Parity
    size_mib: float
    drift: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Everything, of JSON types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {"path": str(self.path), "parity": self.parity.as_dict()}


def export(  # noqa: PLR0913 - what a user may choose, by keyword
    detector: Detector,
    path: str | Path,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    input: str = "model",
    roi_input: bool = False,
    data: Source | None = None,
    run: Run | None = None,
) -> Exported:
    """Write a fitted detector as a graph that runs without torch, and prove that it agrees.

    Args:
        path: the file; ".onnx", or ".xml" with its ".bin" beside it for OpenVINO.
        to: "onnx" or "openvino".
        precision: "fp32"; "fp16" stores weights in half the bytes and computes in float32; "int8"
            computes convolutions in 8 bits, with ranges from the photographs of the fit.
        input: "model": images of the detector's input size; "original": of any size, resized
            inside the graph.
        roi_input: whether the graph takes a region of interest beside each image. It always does
            for a detector that letterboxes.
        data: labelled images on which AUROC, false alarms and recall of both are measured; an
            AUROC that falls by more than 0.005 is an error.

    Raises:
        OptionError: an unknown word, or a path of the wrong kind.
        ExportError: the method cannot be exported, or the graph does not agree; nothing is written.
        MissingDependencyError: a package is missing.
    """
    run = run or Run()
    path = Path(path)
    _check_words(path, to, precision, input)
    require_exportable(detector)
    if to == "openvino":
        require_openvino()
    # The bars of a letterbox are left out by a region of interest, whoever makes them.
    takes_roi = roi_input or detector.config.resize_mode == "letterbox"
    form = ExportedForm(detector, resizes=input == "original", takes_roi=takes_roi)
    reference = TorchRuntime(detector)
    real = training_images(detector.training_facts, reference.window, _RANGES_FROM)
    if not real:
        run.say("No photograph of the fit is where it was: the proof rests on made images alone.")
    run.progress("export", 0, 3)
    model = _model(form, reference, precision, real, run)
    run.progress("export", 1, 3)
    manifest = _manifest(detector, to, precision, input, takes_roi)
    parity, drift = _prove_and_write(path, model, manifest, reference, real, data)
    run.progress("export", 3, 3)
    size = path.stat().st_size
    if to == "openvino":
        size += path.with_suffix(".bin").stat().st_size
    return Exported(path, to, precision, input, parity, round(size / 2**20, 2), drift)


def _prove_and_write(
    path: Path,
    model: bytes,
    manifest: dict[str, Any],
    reference: TorchRuntime,
    real: Sequence[UInt8],
    data: Source | None,
) -> tuple[Parity, dict[str, float]]:
    """Write a draft, compare it, and only then write `path`, with what the comparison found."""
    facts = manifest["export"]
    to, precision = facts["to"], facts["precision"]
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft").with_suffix(SUFFIX[to])
        _write(draft, model, manifest, to, precision)
        candidate = ExportedDetector(draft)
        drift = _follow_drift(reference, candidate, real) if precision == "int8" else {}
        parity = _proved(
            reference, candidate, real[:: max(1, -(-len(real) // _COMPARED))], precision
        )
        if data is not None:
            drift |= _loss(reference.detector, candidate, data)
        facts |= {"parity": parity.as_dict(), "drift": drift}
        if candidate.calibration is not None:
            manifest["calibration"] = candidate.calibration.as_dict()
            manifest["arrays"] |= calibration_arrays(candidate.calibration)
        manifest["metrics"] = candidate.metrics
        rewrite(draft, path, manifest)
    return parity, drift


def require_exportable(detector: Detector) -> None:
    """Raise ExportError, with the reason, for a detector that no graph can hold."""
    if not isinstance(detector, Detector):
        raise OptionError(
            f"What is exported is a fitted detector, and this is {detector!r}.",
            hint="Load a file first: export(amiss.load(path), ...).",
        )
    detector.require_fitted()
    reason = detector.export_obstacle()
    if reason is not None:
        raise ExportError(
            f"{detector.id} cannot be exported: {reason}.",
            hint="`amiss methods` says which methods can be.",
        )


def _check_words(path: Path, to: str, precision: str, given: str) -> None:
    for name, word, allowed in (
        ("to", to, get_args(Target)),
        ("precision", precision, get_args(Precision)),
        ("input", given, get_args(Input)),
    ):
        if word not in allowed:
            raise OptionError(
                f"{name}={word!r} is not known.", hint=f"Choose {', '.join(allowed)}."
            )
    if path.suffix != SUFFIX[to]:
        raise OptionError(
            f"{path.name} is not a name for {to}.", hint=f"Let it end in {SUFFIX[to]}."
        )
    if not path.parent.is_dir():
        raise OptionError(f"There is no folder {path.parent}.", hint="Make it first.")


def _model(
    form: ExportedForm, reference: TorchRuntime, precision: str, real: Sequence[UInt8], run: Run
) -> bytes:
    """The graph as ONNX, in int8 already where asked; half weights come when it is written."""
    if precision == "int8" and len(real) < _FEWEST:
        raise ExportError(
            f"int8 takes its ranges from the photographs of the fit, and of these {len(real)} are "
            f"where they were; at least {_FEWEST} are needed.",
            hint="Put them back, or fit again; or export in fp32.",
        )
    model = to_onnx(form)
    if precision != "int8":
        return model
    images = [framed(reference, image) for image in real]
    if form.resizes:
        images = [(image, None) for image in real]
    inputs = [
        feed(image[None], None if roi is None else roi[None], form=form) for image, roi in images
    ]
    run.say(f"ranges of 8-bit values from {len(images)} images of the fit")
    return quantize(model, inputs)


def _manifest(
    detector: Detector, to: str, precision: str, given: str, takes_roi: bool
) -> dict[str, Any]:
    """What travels inside the file: the detector's manifest, and how it was exported."""
    about = describe(detector)
    facts = dict(about["facts"])
    if "backbone" in facts:  # the steps of the network are the graph now
        kept = {k: v for k, v in facts["backbone"].items() if k not in {"steps", "outputs"}}
        facts["backbone"] = kept
    arrays: dict[str, Any] = {
        "training.digests": detector.training_digests,
        "labelled.digests": detector.labelled_digests,
    }
    if detector.calibration is not None:
        arrays |= calibration_arrays(detector.calibration)
    if detector.roi is not None:
        arrays["roi"] = detector.roi.numpy()
    # Figures of the detector are not those of a graph that computes otherwise.
    metrics = detector.metrics if precision == "fp32" else {}
    height, width = detector.image_size
    return {
        "format": FORMAT, "method": detector.id, "paper": detector.paper,
        "localizes": detector.localizes, "facts": facts, "arrays": arrays,
        **{k: about[k] for k in ("config", "calibration", "training", "versions")},
        "metrics": metrics,
        "export": {
            "to": to, "precision": precision, "input": given, "takes_roi": takes_roi,
            "image_size": [height, width], "opset": OPSET,
        },
    }  # fmt: skip


def _write(draft: Path, model: bytes, manifest: dict[str, Any], to: str, precision: str) -> None:
    plain = draft.with_suffix(".onnx")
    half = precision == "fp16"
    write_onnx(plain, halve(model) if half and to == "onnx" else model, manifest)
    if to == "openvino":
        convert(plain, draft, half=half, manifest=manifest)


def _proved(
    reference: TorchRuntime, candidate: ExportedDetector, real: Sequence[UInt8], precision: str
) -> Parity:
    made = [
        *damaged(real), *made_images(reference.image_size, resizes=candidate.resizes)
    ]  # fmt: skip
    tolerance = TOLERANCE[precision]
    if candidate.resizes:
        tolerance = max(tolerance, TOLERANCE_RESIZED)

    def compare(images: Sequence[UInt8], edge: float | None = None) -> Parity:
        return measure(reference, candidate, images, real=len(real), tolerance=tolerance, edge=edge)

    try:
        if precision == "int8":
            # Its ranges are those of the part's photographs. All else saturates: there the
            # decision must stay, and no value is comparable.
            parity = compare(real, LARGEST_RESIDUAL)
            differ = compare(made, LARGEST_RESIDUAL).decisions_differ
            parity = dataclasses.replace(parity, decisions_differ=parity.decisions_differ + differ)
        else:
            parity = compare([*real, *made])
    except ArtifactError as error:
        raise ExportError(
            f"The graph does not run as it must: {error.message}", hint="Nothing was written."
        ) from error
    if not parity.holds:
        raise ExportError(
            f"The graph does not agree with the detector: {parity.describe()}.",
            hint="Nothing was written." + (" Try fp16 or fp32." if precision == "int8" else ""),
        )
    return parity


def _follow_drift(
    reference: TorchRuntime, candidate: ExportedDetector, real: Sequence[UInt8]
) -> dict[str, float]:
    """Measure how 8 bits move scores and maps of normal images, and move the calibration along."""
    score, peak = ratios(reference, candidate, real)
    drift = {
        "score_factor": score.factor, "score_residual": score.residual,
        "map_factor": peak.factor, "map_residual": peak.residual,
    }  # fmt: skip
    for name, residual in (("scores", score.residual), ("maps", peak.residual)):
        if not residual <= LARGEST_RESIDUAL:
            raise ExportError(
                f"8 bits move {name} of normal images by up to {residual:.1%} beside what they "
                f"move them all; allowed are {LARGEST_RESIDUAL:.0%}.",
                hint="Nothing was written. Export in fp16 or fp32.",
            )
    calibration = reference.calibration
    if calibration is not None:
        note = (
            f"8-bit arithmetic: threshold moved by the factor {score.factor:.4g}, measured on "
            f"{len(real)} images of the fit, whose scores it meets within {score.residual:.1%}."
        )
        moved = scaled(calibration, score.factor, peak.factor, notes=(note,))
        drift |= {"threshold_before": calibration.threshold, "threshold_after": moved.threshold}
        candidate.calibration = moved
    return drift


def _loss(detector: Detector, candidate: ExportedDetector, data: Source) -> dict[str, float]:
    """AUROC and false alarms on labelled images, of the detector and of the graph, whose metrics
    stay with it."""
    dataset = index(data) if not isinstance(data, Dataset) else data
    stored = detector.metrics
    old, new = evaluate(detector, dataset), evaluate(candidate, dataset)
    detector.metrics = stored
    found: dict[str, float] = {}
    for name in ("image_auroc", "pixel_auroc"):
        if name in old.metrics:
            before, after = old.metrics[name], new.metrics[name]
            found |= {f"{name}_before": before, f"{name}_after": after}
            if before - after > LARGEST_LOSS:
                raise ExportError(
                    f"The graph lowers {name} from {before:.4f} to {after:.4f}; allowed is "
                    f"{LARGEST_LOSS}.",
                    hint="Nothing was written. Export in fp32.",
                )
    for name in ("false_alarm_rate", "recall"):
        found |= {f"{name}_{when}": report.operating_point[name]
                  for when, report in (("before", old), ("after", new))
                  if report.operating_point.get(name) is not None}  # fmt: skip
    return found
