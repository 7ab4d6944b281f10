"""From an ONNX graph to an OpenVINO model: an XML file with its weights beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from amiss.errors import ExportError, naming_extra
from amiss.exported_file import write_openvino


def convert(onnx_file: Path, path: Path, *, half: bool, manifest: dict[str, Any]) -> None:
    """Write `path` (.xml) and its .bin. `half`: weights in float16, arithmetic in float32.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
        ExportError: an operation that it does not know.
    """
    require_openvino()
    import openvino

    try:
        model = openvino.convert_model(onnx_file)
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"OpenVINO cannot read the graph: {reason}") from error
    write_openvino(path, path.with_suffix(".bin"), ElementTree.parse(path), manifest)


def require_openvino() -> None:
    """Raise MissingDependencyError where OpenVINO is not installed."""
    with naming_extra("An export to OpenVINO", "openvino"):
        import openvino  # noqa: F401
