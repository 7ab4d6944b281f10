"""`Runtime`: a fitted detector behind one call, uint8 images in, raw scores and maps out.

What stands above (predict, evaluate, report, command line) knows only this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from amiss.data.geometry import ResizeMode
from amiss.data.stream import ImageStream, OnError
from amiss.data.tree import IMAGE_SUFFIXES
from amiss.errors import ArtifactError, naming_extra
from amiss.threads import set_threads
from amiss.types import Bool, Float32, Prediction, Record, UInt8

if TYPE_CHECKING:
    from amiss.calibration import Calibration
    from amiss.methods.base import Detector

EXPORTED = {".onnx", ".xml"}
"""How the names of exported files end."""


class Runtime(Protocol):
    """What predict needs of a detector, whichever engine runs it."""

    image_size: tuple[int, int]
    resize: ResizeMode
    window: str
    roi: Bool | None  # (h, w), where to look in every image
    calibration: Calibration | None
    together: int  # images that are best judged at once
    score_scale: float  # see `Detector.score_scale`

    def __call__(self, images: UInt8, rois: Bool | None) -> Prediction[Float32]:
        """images (B, h, w, 3) uint8, rois (B, h, w) bool or None -> score (B,), map (B, h, w)."""

    def evidence(self, images: UInt8, rois: Bool | None) -> list[dict[str, Any]] | None:
        """See `Detector.evidence`; None where the engine cannot say."""

    def reconstruct(self, images: UInt8, rois: Bool | None) -> UInt8 | None:
        """(B, h, w, 3): see `Detector.reconstruct`; None where the engine cannot say."""


class Fitted(Protocol):
    """A detector that can be judged and recalibrated: a `Detector` or an `ExportedDetector`."""

    calibration: Calibration | None
    training_facts: dict[str, Any]
    training_digests: UInt8  # (n, 8) of the images that it learned from
    labelled_digests: UInt8  # (n, 8) of those that its threshold was chosen on
    metrics: dict[str, Any]

    def about(self) -> dict[str, Any]:
        """How it came to be, for reports."""

    def pictures(self) -> list[tuple[int, UInt8]]:
        """See `Detector.pictures`."""

    def save(self, path: str | Path) -> Path:
        """Write it to a file."""


class TorchRuntime:
    """A `Detector` on torch."""

    def __init__(self, detector: Detector) -> None:
        detector.require_fitted()
        self.detector = detector
        self.image_size = detector.image_size
        self.resize: ResizeMode = detector.config.resize_mode
        self.window: str = detector.training_facts.get("window", "percentile")
        self.roi = None if detector.roi is None else detector.roi.numpy()
        self.calibration = detector.calibration
        self.together = detector.together
        self.score_scale = detector.score_scale()

    def __call__(self, images: UInt8, rois: Bool | None) -> Prediction[Float32]:
        """See `Runtime`. One image takes all threads; of several, each takes one, unless they are
        judged together."""
        import torch

        from amiss.learning.normals import to_tensors
        from amiss.nn.parallel import ImageWorkers

        x, roi = to_tensors(images, rois)

        def judge(i: int) -> Prediction[Any]:
            prediction: Prediction[Any] = self.detector(
                x[i : i + 1], None if roi is None else roi[i : i + 1]
            )
            return prediction

        if len(x) == 1:
            with torch.inference_mode():
                found = [judge(0)]
        elif self.together > 1:
            with torch.inference_mode():
                found = [self.detector(x, roi)]
        else:
            with ImageWorkers() as workers:
                found = workers.map(judge, range(len(x)))
        score = np.concatenate([p.score.numpy() for p in found])
        maps = [p.anomaly_map.numpy() for p in found if p.anomaly_map is not None]
        return Prediction(score, np.concatenate(maps) if maps else None)

    def evidence(self, images: UInt8, rois: Bool | None) -> list[dict[str, Any]] | None:
        """See `Runtime`."""
        import torch

        from amiss.learning.normals import to_tensors

        with torch.inference_mode():
            return self.detector.evidence(*to_tensors(images, rois))

    def reconstruct(self, images: UInt8, rois: Bool | None) -> UInt8 | None:
        """See `Runtime`."""
        import torch

        from amiss.learning.normals import to_tensors

        with torch.inference_mode():
            made = self.detector.reconstruct(*to_tensors(images, rois))
        return None if made is None else made.permute(0, 2, 3, 1).numpy().copy()


def as_runtime(detector: Any) -> Runtime:
    """A detector's runtime; a runtime is returned as it is."""
    if hasattr(detector, "learn"):
        return TorchRuntime(detector)
    runtime: Runtime = detector
    return runtime


def image_stream(
    runtime: Runtime,
    records: Sequence[Record],
    *,
    roi: Path | None = None,
    window: str | None = None,
    digests: bool = False,
    on_error: OnError | None = None,
) -> ImageStream:
    """The images of some records as this runtime wants them; the options are `ImageStream`'s.

    Without `window`, the intensity window is the one of the fit.
    """
    return ImageStream(
        records, size=runtime.image_size, mode=runtime.resize, roi=roi,
        window=window or runtime.window, digests=digests, on_error=on_error,
    )  # fmt: skip


def load(path: str | Path, *, threads: int | None = None) -> Any:
    """A detector from its file, ready to `predict`.

    `threads`: what it computes on, from now on for all detectors; None leaves what was set.

    Raises:
        ArtifactError: no such file, of unknown kind, damaged or too new.
        MissingDependencyError: the engine that computes it is not installed.
    """
    path = Path(path)
    set_threads(threads)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder.", hint="The detector's file comes first.")
    if not path.is_file():
        raise ArtifactError(f"There is no file at {path}.", hint="Make one with `amiss fit`.")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ArtifactError(f"{path} is an image.", hint="The detector's file comes first.")
    if path.suffix in EXPORTED:
        from amiss.engines import ExportedDetector

        return ExportedDetector(path)
    with naming_extra(f"{path.name}, which torch computes,", "train"):
        from amiss.artifact import load as load_artifact
    return load_artifact(path)


def load_detector(path: str | Path) -> Detector:
    """A detector that torch computes, from a file made by `fit`.

    Raises:
        ArtifactError: as `load`, and for an exported file.
    """
    if Path(path).suffix in EXPORTED and Path(path).is_file():
        raise ArtifactError(
            f"{path} was exported already.", hint="Give the .amiss file that it was made from."
        )
    detector: Detector = load(path)
    return detector


def stored_manifest(path: str | Path) -> dict[str, Any]:
    """What a file says of itself, of JSON types, its graph or tensors left where they are.

    Raises:
        ArtifactError: as `load`.
    """
    path = Path(path)
    if path.suffix in EXPORTED:
        from amiss import exported_file

        manifest = exported_file.read_manifest(path)
        del manifest["arrays"]
        return manifest
    from amiss.manifest import read_manifest

    return read_manifest(path)
