"""`amiss export`: a fitted detector as one graph that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amiss.console import print_json, progress_bar, require_writable, say
from amiss.flags import Json, Layout, Threads


def export(  # noqa: PLR0913 - one parameter per flag
    detector: Annotated[Path, typer.Argument(help="A file made by `amiss fit`.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; beside the detector if left.")
    ] = None,
    to: Annotated[str, typer.Option(help="onnx or openvino.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 (weights only) or int8.")] = "fp32",
    input: Annotated[
        str, typer.Option(help="model: images of the input size; original: of any size.")
    ] = "model",
    roi_input: Annotated[
        bool, typer.Option(help="Let the graph take a region of interest beside each image.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Labelled images on which both are judged and compared.")
    ] = None,
    layout: Layout = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Write a graph for ONNX Runtime or OpenVINO that provably says the same."""
    from amiss.data.index import index
    from amiss.errors import OptionError, naming_extra

    with naming_extra("An export", "train"):
        from amiss.export import export as write
        from amiss.export.exporting import SUFFIX
    from amiss.run import Run, mute
    from amiss.runtime import load_detector
    from amiss.threads import set_threads

    set_threads(threads)
    if layout is not None and data is None:
        raise OptionError("--layout says how --data lies, which was not given.")
    path = output or detector.with_suffix(SUFFIX.get(to, ".onnx"))
    require_writable(path)
    model = load_detector(detector)
    labelled = None if data is None else index(data, layout=layout)
    with progress_bar(json) as progress:
        run = Run(progress=progress, say=mute if json else say)
        done = write(
            model, path, to=to, precision=precision, input=input, roi_input=roi_input,
            data=labelled, run=run,
        )  # fmt: skip
    if json:
        print_json(done.as_dict())
        return
    for name, value in done.drift.items():
        print(f"{name:<26}{value:.4g}")
    print(done.parity.describe())
    print(f"{done.path}: {done.size_mib} MiB, {done.precision}, input {done.input}")
