"""One file per detector, `NAME.amiss`: safetensors whose metadata holds a JSON manifest.

No pickle: loading cannot run code. Loading is strict: what the file holds must be exactly what this
version knows how to use. docs/artifact.md describes the format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amiss.calibration import Calibration, calibration_arrays
from amiss.errors import AmissError, ArtifactError
from amiss.manifest import FORMAT, read_manifest
from amiss.methods import METHODS, method_class
from amiss.methods.base import Detector
from amiss.storage import write_tensors
from amiss.types import UInt8
from amiss.versions import versions

# Tensors that belong to every detector; all others are its method's.
_OURS = {
    "training.digests",
    "labelled.digests",
    "calibration.scores",
    "calibration.map_maxima",
    "roi",
}


def save(detector: Detector, path: str | Path) -> Path:
    """Write a fitted detector to one file, which appears complete or not at all.

    Raises:
        NotFittedError: nothing learned yet.
        ArtifactError: the folder cannot be written to.
    """
    detector.require_fitted()
    path = Path(path)
    _, tensors = detector.artifact()
    tensors = {
        **tensors,
        "training.digests": torch.from_numpy(detector.training_digests.copy()),
        "labelled.digests": torch.from_numpy(detector.labelled_digests.copy()),
    }
    if detector.calibration is not None:
        arrays = calibration_arrays(detector.calibration)
        tensors |= {name: torch.from_numpy(array) for name, array in arrays.items()}
    if detector.roi is not None:
        tensors["roi"] = detector.roi
    manifest = {"format": FORMAT, "method": detector.id, **describe(detector)}
    return _write(path, {k: v.contiguous() for k, v in tensors.items()}, manifest)


def describe(detector: Detector) -> dict[str, Any]:
    """The part of the manifest that every kind of file shares, of JSON types."""
    calibration = detector.calibration
    return {
        "config": detector.config.as_dict(),
        "facts": detector.artifact()[0],
        "calibration": None if calibration is None else calibration.as_dict(),
        "training": detector.training_facts,
        "versions": versions(),
        "metrics": detector.metrics,
    }


def _write(path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Path:
    try:
        write_tensors(path, tensors, {"amiss": json.dumps(manifest)})
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be written: {error}",
            hint="Choose a folder that exists and is writable.",
        ) from error
    return path


def load(path: str | Path) -> Detector:
    """A detector from its file, ready to predict; the bank is memory-mapped.

    Raises:
        ArtifactError: missing, damaged, foreign, of a later format, or with weights that are not
            finite.
        MissingDependencyError: torch is not installed.
    """
    path = Path(path)
    manifest = read_manifest(path)
    tensors = _read_tensors(path)
    if manifest["method"] not in METHODS:
        raise ArtifactError(
            f"{path} holds a {manifest['method']!r}, which this version of amiss does not know.",
            hint="Install a later amiss.",
        )
    kind = method_class(manifest["method"])
    try:
        detector = kind(**kind.config_type.from_dict(manifest["config"]).__dict__)
        detector.restore(manifest["facts"], {k: v for k, v in tensors.items() if k not in _OURS})
        detector.training_facts = dict(manifest["training"])
        detector.training_digests = _digests(tensors["training.digests"])
        detector.labelled_digests = _digests(tensors["labelled.digests"])
        detector.metrics = dict(manifest["metrics"])
        if manifest["training"].get("roi") is not None:
            detector.roi = _roi(tensors["roi"], detector)
        if manifest["calibration"] is not None:
            detector.calibration = _calibration(manifest["calibration"], tensors)
        _refuse_strangers(detector, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AmissError) as error:
        raise ArtifactError(
            f"{path} does not hold what its manifest says: {error}", hint="Fit again."
        ) from error
    return detector.eval()


def _digests(tensor: Tensor) -> UInt8:
    if tensor.dtype != torch.uint8 or tensor.ndim != 2 or tensor.shape[1] != 8:
        raise ValueError(f"digests of shape {tuple(tensor.shape)}")
    return np.array(tensor.numpy(), dtype=np.uint8)


def _roi(tensor: Tensor, detector: Detector) -> Tensor:
    if tuple(tensor.shape) != detector.image_size or tensor.dtype != torch.bool:
        raise ValueError(f"a region of interest of shape {tuple(tensor.shape)}")
    return tensor


def _calibration(values: dict[str, Any], tensors: dict[str, Tensor]) -> Calibration:
    maps = values["pixel_threshold"] is not None
    scores = tensors["calibration.scores"].numpy()
    maxima = tensors["calibration.map_maxima"].numpy() if maps else None
    return Calibration.from_dict(values, scores, maxima)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}.", hint="Copy the file again, or fit again."
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"{path} holds values that are not finite, in {name}.")
    return tensors


def _refuse_strangers(detector: Detector, tensors: dict[str, Tensor]) -> None:
    known = set(detector.artifact()[1]) | {"training.digests", "labelled.digests"}
    if detector.calibration is not None:
        known.add("calibration.scores")
        if detector.calibration.map_maxima is not None:
            known.add("calibration.map_maxima")
    if detector.roi is not None:
        known.add("roi")
    odd = sorted(set(tensors) ^ known)
    if odd:
        raise ValueError(f"a tensor missing or of unknown use: {odd[0]!r}")
