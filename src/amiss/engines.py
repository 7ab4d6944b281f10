"""`ExportedDetector`: a detector that was exported, behind the same calls, without torch."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from amiss.calibration import Calibration, calibration_arrays
from amiss.data.geometry import ResizeMode
from amiss.errors import ArtifactError, DataError, OptionError, naming_extra
from amiss.exported_file import read_manifest, require_own_weights, rewrite
from amiss.threads import thread_count
from amiss.types import Bool, Float32, ImageResult, Prediction, UInt8

Engine = Callable[[dict[str, Any]], list[Any]]
"""Named inputs of the graph -> its outputs in order."""


class ExportedDetector:
    """What `amiss.load` makes of an exported file. A `Runtime`: predict and evaluate take it.

    `threads`: what the engine computes on, None for all cores.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.path = path
        manifest = self.manifest = read_manifest(path)
        try:
            self._take(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path} does not hold what its manifest says: {error}", hint="Export again."
            ) from error
        if path.suffix == ".xml":
            require_own_weights(path, manifest)
        eight_bits = manifest["export"].get("precision") == "int8"
        self._engine = open_engine(path, threads or thread_count(), eight_bits=eight_bits)

    def _take(self, manifest: dict[str, Any]) -> None:
        config, arrays, training = manifest["config"], manifest["arrays"], manifest["training"]
        self.id: str = manifest["method"]
        height, width = config["image_size"]
        self.image_size = (int(height), int(width))
        self.together, self.score_scale = 1, 0.0
        self.resize: ResizeMode = "letterbox" if config["resize"] == "letterbox" else "squash"
        self.window: str = training.get("window", "percentile")
        # One that was given at the fit: part of the graph, and here for whoever counts pixels.
        self.roi: Bool | None = arrays.get("roi")
        if self.roi is not None and self.roi.shape != self.image_size:
            raise ValueError(f"a region of interest of shape {self.roi.shape}")
        self.training_facts = dict(training)
        self.training_digests: UInt8 = _digests(arrays["training.digests"])
        self.labelled_digests: UInt8 = _digests(arrays["labelled.digests"])
        self.metrics: dict[str, Any] = dict(manifest["metrics"])
        self.takes_roi = bool(manifest["export"]["takes_roi"])
        self.resizes = manifest["export"]["input"] == "original"
        self.localizes = bool(manifest["localizes"])
        self.calibration: Calibration | None = None
        if manifest["calibration"] is not None:
            self.calibration = Calibration.from_dict(
                manifest["calibration"], arrays["calibration.scores"],
                arrays.get("calibration.map_maxima"),
            )  # fmt: skip

    def __call__(self, images: UInt8, rois: Bool | None) -> Prediction[Float32]:
        """See `amiss.runtime.Runtime`. One image at a time: the graph holds the distances of all
        patches of its batch to the whole bank, and several images are no quicker."""
        if rois is not None:
            self._check_rois(rois)
        found = [
            self.run(images[i : i + 1], None if rois is None else rois[i : i + 1])
            for i in range(len(images))
        ]
        maps = [p.anomaly_map for p in found if p.anomaly_map is not None]
        return Prediction(
            np.concatenate([p.score for p in found]), np.concatenate(maps) if maps else None
        )

    def run(self, images: UInt8, rois: Bool | None) -> Prediction[Float32]:
        """The graph on a whole batch (B, H, W, 3) uint8; `rois` is not read where it takes none.

        Raises ArtifactError where the engine fails.
        """
        inputs: dict[str, Any] = {"images": np.ascontiguousarray(images)}
        if self.takes_roi:
            everywhere = np.ones((len(images), *self.image_size), np.bool_)
            inputs["roi"] = everywhere if rois is None else np.ascontiguousarray(rois)
        try:
            found = self._engine(inputs)
        except _engine_errors() as error:
            raise ArtifactError(
                f"{self.path.name} cannot judge images of shape {images.shape}: "
                f"{_first_line(error)}",
                hint="Export again.",
            ) from error
        return Prediction(found[0], found[1] if self.localizes else None)

    def _check_rois(self, rois: Bool) -> None:
        own = self.roi
        if not self.takes_roi and (own is None or bool((rois != own).any())):
            raise OptionError(
                f"{self.path.name} takes no region of interest.",
                hint="Export it with --roi-input, or give none.",
            )
        looked_at = rois if own is None else rois & own
        if not looked_at.any(axis=(1, 2)).all():
            raise DataError(
                "A region of interest leaves nothing of its image to look at.",
                hint="White marks what is looked at; it must lie inside the image and the region "
                "of interest of the fit.",
            )

    def predict(self, images: Any) -> ImageResult | list[ImageResult]:
        """Judge a path, a uint8 array, or a list of these; see `amiss.predict.predict`."""
        from amiss.predict import predict

        return predict(self, images)

    def evidence(self, images: UInt8, rois: Bool | None) -> None:
        """None: a graph does not say which normal patch it compared with."""

    def sample(self, n: int, *, seed: int = 0) -> UInt8:
        """Raises OptionError: a graph judges images and makes none."""
        raise OptionError(
            f"{self.path.name} is an exported graph, which makes no images.",
            hint="Load the .amiss file that it was made from.",
        )

    def reconstruct(self, images: UInt8, rois: Bool | None) -> None:
        """None: a graph does not hand out what it makes on the way."""

    def pictures(self) -> list[tuple[int, UInt8]]:
        """None: they stay with the detector's own file."""
        return []

    def about(self) -> dict[str, Any]:
        """What the report says about how the detector came to be, without its long lists."""
        training = {k: v for k, v in self.training_facts.items() if k not in {"files", "root"}}
        return {
            "method": self.id,
            "paper": self.manifest["paper"],
            "options": self.manifest["config"],
            **self.manifest["facts"],
            "training": training,
            "export": self.manifest["export"],
        }

    def save(self, path: str | Path) -> Path:
        """Write the same graph with the calibration and metrics of now."""
        path = Path(path)
        if path.suffix != self.path.suffix:
            raise ArtifactError(
                f"{self.path.name} cannot be saved as {path.name}: the kind stays.",
                hint=f"Name a file that ends in {self.path.suffix}.",
            )
        calibration, arrays = self.calibration, dict(self.manifest["arrays"])
        arrays["labelled.digests"] = self.labelled_digests
        if calibration is not None:
            arrays |= calibration_arrays(calibration)
        self.manifest |= {
            "calibration": None if calibration is None else calibration.as_dict(),
            "metrics": self.metrics,
            "arrays": arrays,
        }
        rewrite(self.path, path, self.manifest)
        return path


def _digests(array: Any) -> UInt8:
    if array.ndim != 2 or array.shape[1] != 8 or array.dtype != np.uint8:
        raise ValueError(f"digests of shape {array.shape}, {array.dtype}")
    digests: UInt8 = array
    return digests


def open_engine(path: Path, threads: int, *, eight_bits: bool = False) -> Engine:
    """The graph in a file, ready to run on so many threads. `eight_bits`: whether it holds 8-bit
    steps.

    Raises:
        ArtifactError: the engine cannot read it.
        MissingDependencyError: the engine is not installed.
    """
    try:
        if path.suffix == ".onnx":
            return _onnx(path, threads)
        with naming_extra(path.name, "openvino"):
            return _openvino(path, threads, eight_bits)
    except _engine_errors() as error:
        raise ArtifactError(
            f"{path} cannot be run: {_first_line(error)}", hint="Export again."
        ) from error


def _onnx(path: Path, threads: int) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )

    def run(inputs: dict[str, Any]) -> list[Any]:
        return list(session.run(None, inputs))

    return run


def _openvino(path: Path, threads: int, eight_bits: bool) -> Engine:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # Left to itself it computes in bfloat16 where the processor can, and scores move by 1e-2.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if eight_bits:
        # Its passes for low precision lose the scale of tensors that are also read elsewhere: the
        # graph then says the same of every image. Without them 8-bit steps compute in float32.
        settings["LP_TRANSFORMS_MODE"] = "OFF"
    with _signal_stack_kept():
        model = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
    request = model.create_infer_request()

    def run(inputs: dict[str, Any]) -> list[Any]:
        request.infer(inputs, share_inputs=True)
        return [np.array(request.get_output_tensor(n).data) for n in range(len(model.outputs))]

    return run


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """OpenVINO's plugin for processors gives this thread a stack for signal handlers, and releases
    its memory with the plugin: the next Ctrl-C would end the process with a segmentation fault.
    """
    before = _SignalStack()
    set_stack = ctypes.CDLL(None).sigaltstack if sys.platform == "linux" else None
    if set_stack is not None:
        set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if set_stack is not None:
            set_stack(ctypes.byref(before), None)


def _engine_errors() -> tuple[type[Exception], ...]:
    """What the engines raise: OpenVINO's are RuntimeErrors, those of ONNX Runtime share no base."""
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [kind for kind in vars(state).values() if _is_error(kind)] if state else []
    return (RuntimeError, ValueError, *own)


def _is_error(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Exception)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
