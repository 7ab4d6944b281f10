"""`export`: trace, compare, and only then write."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from amiss.artifact import calibration_arrays, describe
from amiss.calibration import along
from amiss.data.geometry import inner_roi, resize_image
from amiss.data.index import Dataset, Source, index
from amiss.engines import ExportedDetector
from amiss.errors import ArtifactError, ExportError, OptionError
from amiss.evaluation import evaluate
from amiss.export.drift import line, paired
from amiss.export.graph import ExportedForm
from amiss.export.onnx import OPSET, feed, halve, quantize, to_onnx
from amiss.export.openvino import convert
from amiss.export.parity import Parity, damaged, made_images, measure, training_images
from amiss.exported_file import FORMAT, rewrite, write_onnx
from amiss.methods.base import Detector
from amiss.run import Run
from amiss.runtime import TorchRuntime
from amiss.types import UInt8

Target = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
Input = Literal["model", "original"]

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
# Largest relative difference of a score or a map. float16 keeps 11 bits of each weight. 8-bit
# convolutions move scores as a whole, which the calibration follows; what is left is bounded below.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.2}
# A graph that resizes rounds a pixel to the neighbouring level now and then, where Pillow's
# whole-number weights fall on the other side of a half.
TOLERANCE_RESIZED = 2e-3
LARGEST_RESIDUAL = 0.05  # of a score, after the calibration has followed the drift
LARGEST_LOSS = 0.005  # of image or pixel AUROC, where labelled images are given
_RANGES_FROM = 64  # training images that the ranges of 8-bit values are taken from


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
            where a letterbox is resized outside the graph.
        data: labelled images on which the loss of int8 is measured.

    Raises:
        OptionError: an unknown word, or a path of the wrong kind.
        ExportError: the method cannot be exported, or the graph does not agree; nothing is written.
        MissingDependencyError: a package is missing.
    """
    run = run or Run()
    path = Path(path)
    _check_words(path, to, precision, input)
    detector.require_fitted()
    if detector.exportable is not True:
        raise ExportError(f"{detector.id} cannot be exported: {detector.exportable}.")
    resizes = input == "original"
    letterbox = detector.config.resize_mode == "letterbox"
    form = ExportedForm(
        detector, resizes=resizes, takes_roi=roi_input or (letterbox and not resizes)
    )
    reference = TorchRuntime(detector)
    real = training_images(detector.training_facts, reference.window)
    run.progress("export", 0, 3)
    model = _model(form, reference, precision, run)
    run.progress("export", 1, 3)
    manifest = _manifest(detector, to, precision, input, form.takes_roi)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft").with_suffix(SUFFIX[to])
        _write(draft, model, manifest, to, precision)
        candidate = ExportedDetector(draft)
        drift: dict[str, float] = {}
        if precision == "int8":
            drift = _follow_drift(reference, candidate, real, data, detector, resizes)
        parity = _proved(reference, candidate, real, precision, resizes)
        run.progress("export", 3, 3)
        manifest["export"] |= {"parity": parity.as_dict(), "drift": drift}
        if candidate.calibration is not None:
            manifest["calibration"] = candidate.calibration.as_dict()
            manifest["arrays"] |= calibration_arrays(candidate.calibration)
        rewrite(draft, path, manifest)
    size = sum(p.stat().st_size for p in {path, path.with_suffix(".bin")} if p.is_file())
    return Exported(path, to, precision, input, parity, round(size / 2**20, 2), drift)


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


def _model(form: ExportedForm, reference: TorchRuntime, precision: str, run: Run) -> bytes:
    """The graph as ONNX, in int8 already where asked; half weights come when it is written."""
    model = to_onnx(form)
    if precision != "int8":
        return model
    facts = form.detector.training_facts
    images = training_images(facts, reference.window, _RANGES_FROM)
    if not images:
        raise ExportError(
            "int8 takes its ranges from the photographs of the fit, and none is where it was.",
            hint="Put them back, or fit again; or export in fp32.",
        )
    frames = [resize_image(image, reference.image_size, reference.resize) for image in images]
    inputs = [
        feed(frame[None], None if (inner := inner_roi(geometry)) is None else inner[None],
             takes_roi=form.takes_roi)
        for frame, geometry in frames
    ]  # fmt: skip
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
    height, width = detector.image_size
    return {
        "format": FORMAT, "id": detector.id, "paper": detector.paper,
        "localizes": detector.localizes, "facts": facts, "arrays": arrays,
        **{k: about[k] for k in ("config", "calibration", "training", "versions", "metrics")},
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
    reference: TorchRuntime,
    candidate: ExportedDetector,
    real: Sequence[UInt8],
    precision: str,
    resizes: bool,
) -> Parity:
    made = [*damaged(real), *made_images(reference.image_size, resizes=resizes)]
    tolerance = TOLERANCE[precision]
    if resizes:
        tolerance = max(tolerance, TOLERANCE_RESIZED)

    def compare(images: Sequence[UInt8], edge: float | None = None) -> Parity:
        return measure(
            reference, candidate, images, real=len(real), resizes=resizes,
            tolerance=tolerance, edge=edge,
        )  # fmt: skip

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
            hint="Nothing was written." + (" Try fp16 or fp32." if precision != "fp32" else ""),
        )
    return parity


# --- int8 ----------------------------------------------------------------------------------


def _follow_drift(
    reference: TorchRuntime,
    candidate: ExportedDetector,
    real: Sequence[UInt8],
    data: Source | None,
    detector: Detector,
    resizes: bool,
) -> dict[str, float]:
    """Measure how 8 bits move scores and maps of normal images, and move the calibration along."""
    pairs = [paired(reference, candidate, image, resizes=resizes) for image in real]
    before = np.array([[old.score, old.peak] for old, _ in pairs])
    after = np.array([[new.score, new.peak] for _, new in pairs])
    score, peak = (line(before[:, n], after[:, n]) for n in (0, 1))
    drift = {
        "score_slope": score.slope, "score_offset": score.offset,
        "score_residual": score.residual, "map_slope": peak.slope, "map_offset": peak.offset,
    }  # fmt: skip
    if score.residual > LARGEST_RESIDUAL:
        raise ExportError(
            f"8 bits move scores of normal images by up to {score.residual:.1%} in no one "
            f"direction; allowed are {LARGEST_RESIDUAL:.0%}.",
            hint="Nothing was written. Export in fp16 or fp32.",
        )
    if detector.calibration is not None:
        moved = along(detector.calibration, (score.slope, score.offset), (peak.slope, peak.offset))
        drift |= {"threshold_before": detector.calibration.threshold,
                  "threshold_after": moved.threshold}  # fmt: skip
        candidate.calibration = moved
    return drift | ({} if data is None else _loss(detector, candidate, data))


def _loss(detector: Detector, candidate: ExportedDetector, data: Source) -> dict[str, float]:
    """AUROC before and after on labelled images."""
    dataset = index(data) if not isinstance(data, Dataset) else data
    stored = detector.metrics
    old, new = evaluate(detector, dataset).metrics, evaluate(candidate, dataset).metrics
    detector.metrics = candidate.metrics = stored
    found: dict[str, float] = {}
    for name in ("image_auroc", "pixel_auroc"):
        if name in old:
            found |= {f"{name}_before": old[name], f"{name}_after": new[name]}
            if old[name] - new[name] > LARGEST_LOSS:
                raise ExportError(
                    f"8 bits lower {name} from {old[name]:.4f} to {new[name]:.4f}; allowed is "
                    f"{LARGEST_LOSS}.",
                    hint="Nothing was written. Export in fp16 or fp32.",
                )
    return found
