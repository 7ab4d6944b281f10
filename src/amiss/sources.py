"""Where the images of `amiss predict` come from: arguments, stdin, or a watched folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from amiss.errors import DataError, ImageError
from amiss.predict import predict_records
from amiss.runtime import Runtime
from amiss.types import ImageResult, Record
from amiss.watch import Stopper, image_files, watch_folder

Skip = Callable[[Record, ImageError], None]


def judged_images(
    runtime: Runtime, arguments: Sequence[str], watch: Path | None, roi: Path | None, skip: Skip
) -> Iterator[ImageResult]:
    """Judge what the arguments name, or what appears in `watch` until SIGTERM or Ctrl-C.

    An unreadable image is handed to `skip` and left out.
    """
    if watch is None:
        records = [Record(path) for path in _listed(arguments)]
        for _, found in predict_records(runtime, records, roi=roi, on_error=skip):
            yield found
        return
    for path in watch_folder(watch, stop=Stopper()):
        for _, found in predict_records(runtime, [Record(path)], roi=roi, on_error=skip):
            yield found


def _listed(arguments: Sequence[str]) -> list[Path]:
    paths: list[Path] = []
    for argument in arguments:
        if argument == "-":
            paths += [Path(line.strip()) for line in sys.stdin if line.strip()]
        elif Path(argument).is_dir():
            paths += image_files(Path(argument))
        else:
            paths.append(Path(argument))
    if not paths:
        raise DataError("No image was named.", hint="Name files or folders, or pipe a list to -.")
    return paths
