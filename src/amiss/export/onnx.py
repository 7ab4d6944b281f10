"""From a detector to an ONNX graph: traced once, sizes left free, weights whole, half or in 8 bits.

The only file that knows the packages onnx and onnxscript, and it imports them late.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amiss.errors import ExportError, naming_extra
from amiss.export.graph import ExportedForm
from amiss.types import UInt8

OPSET = 20
_LARGE_CONVOLUTION = 1 << 14  # weights
_LARGEST = 2_000_000_000  # bytes that one protobuf message can hold


def to_onnx(form: ExportedForm) -> bytes:
    """The graph of `form` as an ONNX model in float32.

    Inputs `images` and, where it takes one, `roi`; outputs `score` and `anomaly_map`.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        ExportError: an operation has no counterpart, or the model is too large for one file.
    """
    _require_onnx()
    example = form.example(2)
    with torch.inference_mode():
        localizes = len(form(*example)) == 2  # and whatever is made at the first call exists now
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                form.eval(), example, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=["images", "roi"][: len(example)],
                output_names=["score", "anomaly_map"][: 1 + localizes],
                dynamic_shapes=form.dynamic_shapes(), optimize=True,
            )  # fmt: skip
    except Exception as error:  # tracing meets whatever a method does; anything may come out
        raise ExportError(
            f"The detector cannot be written as an ONNX graph: {_first_line(error)}",
            hint="Its page in docs/methods says what is known to work.",
        ) from error
    assert program is not None
    model = program.model_proto
    _tidy(model)
    if model.ByteSize() > _LARGEST:
        raise ExportError(
            f"The graph takes {model.ByteSize() >> 20} MiB; one ONNX file can hold 1907.",
            hint="Use a smaller bank (coreset_ratio) or backbone.",
        )
    data: bytes = model.SerializeToString()
    return data


def halve(data: bytes) -> bytes:
    """The same graph with its large float32 weights stored in float16; it still computes in
    float32, so a processor without half arithmetic loses no time."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < 64:
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue  # such as the rank of padding, which is meant to be far
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name],
                                           to=onnx.TensorProto.FLOAT))  # fmt: skip
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    half: bytes = model.SerializeToString()
    return half


def quantize(data: bytes, batches: Sequence[dict[str, Any]]) -> bytes:
    """The same graph with its large convolutions in 8 bits, ranges taken from `batches` of inputs:
    weights per channel, symmetric; values per tensor.

    All else stays in float32: the search for neighbours and the map; and of the network the
    depthwise and the early convolutions, which hold few of the bytes, and whose channels are so
    unlike that one range for all of them spoils the features.
    """
    import onnx
    import onnxruntime.quantization as q

    large = _large_convolutions(onnx.load_from_string(data).graph)
    if not large:
        raise ExportError(
            "The network has no convolution that is large enough for 8 bits.",
            hint="Export in fp16 or fp32.",
        )

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        waiting = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.waiting, None)

    with tempfile.TemporaryDirectory() as folder, _quietly():
        plain, small = Path(folder, "plain.onnx"), Path(folder, "small.onnx")
        plain.write_bytes(data)
        q.quantize_static(
            plain, small, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv"], nodes_to_quantize=large,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod.MinMax,
        )  # fmt: skip
        return small.read_bytes()


def _large_convolutions(graph: Any) -> list[str]:
    """The names of convolutions over all channels with at least _LARGE_CONVOLUTION weights."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type != "Conv" or sizes.get(node.input[1], 0) < _LARGE_CONVOLUTION:
            continue
        if all(a.i == 1 for a in node.attribute if a.name == "group"):
            found.append(node.name)
    return found


def feed(images: UInt8, roi: Any | None, *, form: ExportedForm) -> dict[str, Any]:
    """Named inputs of the graph of `form` for images (B, H, W, 3) uint8."""
    if not form.takes_roi:
        return {"images": images}
    everywhere = np.ones((len(images), *form.detector.image_size), np.bool_)
    return {"images": images, "roi": everywhere if roi is None else roi}


def _tidy(model: Any) -> None:
    """Names of source files and other traces of the machine stay here."""
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "amiss", "", ""
    graph = model.graph
    graph.doc_string = ""
    for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for entry in part:
            entry.doc_string = ""
            del entry.metadata_props[:]
    del graph.metadata_props[:]


def _require_onnx() -> None:
    with naming_extra("An export", "train"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters print and log on their way."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
