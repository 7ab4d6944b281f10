"""The manifest inside an exported file, read and changed without the library that wrote the graph.

An ONNX file is one protobuf message, whose field 14 holds pairs of strings: a message is a row of
fields, each with its number and its length, so the others are passed over as they are. An OpenVINO
model is an XML file beside a file of weights; its `rt_info` holds what others put there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from amiss.data.images import write_bytes_atomic
from amiss.errors import ArtifactError
from amiss.manifest import parse_manifest

FORMAT = 1
KEY = "amiss"
_METADATA = 14  # ModelProto.metadata_props, a list of {1: key, 2: value}
_KEYS: dict[str, Any] = {
    "format": int, "method": str, "paper": str, "localizes": bool, "config": dict, "facts": dict,
    "calibration": dict | None, "training": dict, "versions": dict, "metrics": dict,
    "export": dict, "arrays": dict,
}  # fmt: skip
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an exported file, its arrays decoded.

    Raises:
        ArtifactError: missing, damaged, foreign, or of a later format.
    """
    try:
        text = _onnx_text(path.read_bytes()) if path.suffix == ".onnx" else _openvino_text(path)
    except (OSError, ValueError, IndexError, ElementTree.ParseError) as error:
        raise ArtifactError(f"{path} cannot be read as an exported model: {error}.") from error
    if text is None:
        raise ArtifactError(
            f"{path} was not written by amiss: it holds a graph without a manifest.",
            hint="Give a file made by `amiss export`.",
        )
    manifest = parse_manifest(path, text, version=FORMAT, kinds=_KEYS, again="export")
    try:
        manifest["arrays"] = {k: _decoded(v) for k, v in manifest["arrays"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} has damaged arrays in its manifest: {error}.") from error
    return manifest


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The manifest as it is stored: JSON, arrays in base64."""
    arrays = {name: _encoded(array) for name, array in manifest["arrays"].items()}
    return json.dumps({**manifest, "arrays": arrays})


def write_onnx(path: Path, data: bytes, manifest: Mapping[str, Any]) -> None:
    """Write an ONNX model with this manifest, in place of any other, complete or not at all.

    Raises DataError where it cannot be written.
    """
    kept = [data[start:end] for number, start, _, end in _fields(data) if number != _METADATA]
    entry = b"".join(
        _length_delimited(n, text.encode()) for n, text in ((1, KEY), (2, manifest_text(manifest)))
    )
    write_bytes_atomic(path, b"".join(kept) + _length_delimited(_METADATA, entry))


def write_openvino(path: Path, weights: Path, tree: Any, manifest: Mapping[str, Any]) -> None:
    """Write the XML of an OpenVINO model with this manifest at `path`, and the file `weights`
    beside it. The XML comes last and names the weights' digest, so that no other pair is taken for
    a model.

    Raises DataError where it cannot be written.
    """
    beside = path.with_suffix(".bin")
    data = weights.read_bytes()
    manifest = {**manifest, "export": manifest["export"] | {"weights_sha256": _sha256(data)}}
    root = tree.getroot()
    info = root.find("rt_info")
    if info is None:
        info = ElementTree.SubElement(root, "rt_info")
    for old in info.findall(KEY):
        info.remove(old)
    own = ElementTree.SubElement(info, KEY)
    ElementTree.SubElement(own, "manifest", value=manifest_text(manifest))
    if weights.resolve() != beside.resolve():
        write_bytes_atomic(beside, data)
    write_bytes_atomic(path, ElementTree.tostring(root, xml_declaration=True, encoding="utf-8"))


def rewrite(source: Path, path: Path, manifest: Mapping[str, Any]) -> None:
    """The exported model `source` with another manifest, at `path`, which may be the same."""
    if source.suffix == ".onnx":
        write_onnx(path, source.read_bytes(), manifest)
    else:
        write_openvino(path, source.with_suffix(".bin"), ElementTree.parse(source), manifest)


# --- ONNX ----------------------------------------------------------------------------------


def _onnx_text(data: bytes) -> str | None:
    for number, _, start, end in _fields(data):
        if number == _METADATA:
            entry = {n: data[start:end][first:last] for n, _, first, last in
                     _fields(data[start:end])}  # fmt: skip
            if entry.get(1) == KEY.encode():
                return entry.get(2, b"").decode()
    return None


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(number, where the field starts, where its content starts, where it ends) of each field."""
    position = 0
    while position < len(data):
        first = position
        tag, position = _varint(data, position)
        start, kind = position, tag & 7
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _BYTES:
            length, start = _varint(data, position)
            position = start + length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("not a protobuf message")
        if position > len(data):
            raise ValueError("the file is cut short")
        yield tag >> 3, first, start, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("not a protobuf message")


def _length_delimited(number: int, content: bytes) -> bytes:
    return _to_varint(number << 3 | _BYTES) + _to_varint(len(content)) + content


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


# --- OpenVINO ------------------------------------------------------------------------------


def _openvino_text(path: Path) -> str | None:
    if not path.with_suffix(".bin").is_file():
        raise ValueError(f"its weights are missing: {path.with_suffix('.bin').name}")
    found = ElementTree.parse(path).getroot().find(f"rt_info/{KEY}/manifest")
    return None if found is None else found.get("value")


def require_own_weights(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ArtifactError unless the weights beside an OpenVINO model are those it was written
    with."""
    weights = path.with_suffix(".bin")
    if _sha256(weights.read_bytes()) != manifest["export"].get("weights_sha256"):
        raise ArtifactError(
            f"{weights.name} does not belong to {path.name}: its SHA-256 differs.",
            hint="Copy both files again, or export again.",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- both ----------------------------------------------------------------------------------


def _encoded(array: Any) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def _decoded(entry: Mapping[str, Any]) -> Any:
    dtype = np.dtype(entry["dtype"])
    if dtype.hasobject:
        raise ValueError("arrays of objects are not read")
    data = base64.b64decode(entry["data"], validate=True)
    array = np.frombuffer(data, dtype=dtype).reshape(entry["shape"]).copy()
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("an array holds values that are not finite")
    return array
