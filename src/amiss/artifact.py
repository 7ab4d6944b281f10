"""One file per detector, `NAME.amiss`: safetensors whose metadata holds a JSON manifest.

No pickle: loading cannot run code. Loading is strict: what the file holds must be exactly what this
version knows how to use. docs/artifact.md describes the format.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amiss.calibration import Calibration
from amiss.errors import ArtifactError, OptionError, WeightsError
from amiss.methods import METHODS, method_class
from amiss.methods.base import Detector
from amiss.versions import versions

FORMAT = 1
_MAX_HEADER = 64 << 20  # bytes; a header is a table of names, and a hostile one could be any size
_KEYS = {"format", "method", "config", "facts", "calibration", "training", "versions", "metrics"}


def save(detector: Detector, path: str | Path) -> Path:
    """Write a fitted detector to one file, which appears complete or not at all.

    Raises:
        NotFittedError: nothing learned yet.
        ArtifactError: the folder cannot be written to.
    """
    detector.require_fitted()
    path = Path(path)
    facts, tensors = detector.artifact()
    tensors = {**tensors, "training.digests": torch.from_numpy(detector.training_digests.copy())}
    calibration = detector.calibration
    if calibration is not None:
        tensors["calibration.scores"] = torch.from_numpy(calibration.scores)
        if calibration.map_maxima is not None:
            tensors["calibration.map_maxima"] = torch.from_numpy(calibration.map_maxima)
    if detector.roi is not None:
        tensors["roi"] = detector.roi
    manifest = {
        "format": FORMAT,
        "method": detector.id,
        "config": detector.config.as_dict(),
        "facts": facts,
        "calibration": None if calibration is None else calibration.as_dict(),
        "training": detector.training_facts,
        "versions": versions(),
        "metrics": detector.metrics,
    }
    return _write(path, {k: v.contiguous() for k, v in tensors.items()}, manifest)


def _write(path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"amiss": json.dumps(manifest)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be written: {error}",
            hint="Choose a folder that exists and is writable.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of an artifact, without its tensors.

    Raises:
        ArtifactError: missing, damaged, foreign, or of a later format.
    """
    path = Path(path)
    header = _read_header(path)
    text = header.get("__metadata__", {}).get("amiss")
    if not isinstance(text, str):
        raise ArtifactError(f"{path} was not written by amiss.", hint="Give a file made by `fit`.")
    try:
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} has a damaged manifest: {error}.") from error
    if version != FORMAT:
        raise ArtifactError(
            f"{path} has format {version}; this version of amiss reads format {FORMAT}.",
            hint="Install a later amiss, or fit again.",
        )
    if set(manifest) != _KEYS:
        odd = sorted(set(manifest) ^ _KEYS)
        raise ArtifactError(f"{path} has a manifest that does not fit its format: {odd[0]!r}.")
    return manifest


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, its length checked before anything is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
            if length > min(_MAX_HEADER, size - 8):
                raise ArtifactError(
                    f"{path} is not an artifact, or is cut short: its header claims {length} bytes "
                    f"of a file of {size}.",
                    hint="Copy the file again.",
                )
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as an artifact: {error}.") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise ArtifactError(f"{path} is not an artifact.")
    return header


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
        own = {k: v for k, v in tensors.items() if k.split(".")[0] in {"bank", "backbone"}}
        detector.restore(manifest["facts"], own)
        detector.training_facts = dict(manifest["training"])
        detector.training_digests = tensors["training.digests"].numpy().astype(np.uint8)
        detector.metrics = dict(manifest["metrics"])
        detector.roi = tensors["roi"].bool() if "roi" in tensors else None
        if manifest["calibration"] is not None:
            detector.calibration = _calibration(manifest["calibration"], tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, OptionError, WeightsError) as error:
        raise ArtifactError(
            f"{path} does not hold what its manifest says: {error}", hint="Fit again."
        ) from error
    _refuse_strangers(path, detector, tensors)
    return detector.eval()


def _calibration(values: dict[str, Any], tensors: dict[str, Tensor]) -> Calibration:
    maxima = tensors.get("calibration.map_maxima")
    return Calibration.from_dict(
        values,
        tensors["calibration.scores"].numpy(),
        None if maxima is None else maxima.numpy(),
    )


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


def _refuse_strangers(path: Path, detector: Detector, tensors: dict[str, Tensor]) -> None:
    known = set(detector.artifact()[1]) | {"training.digests"}
    known |= {"calibration.scores", "calibration.map_maxima", "roi"}
    strangers = sorted(set(tensors) - known)
    if strangers:
        raise ArtifactError(f"{path} holds a tensor of unknown use: {strangers[0]!r}.")
