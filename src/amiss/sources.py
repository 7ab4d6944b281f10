"""Where the images of `amiss predict` come from: arguments, stdin, or a watched folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from amiss.console import say
from amiss.data.tree import MASK_FOLDERS
from amiss.errors import DataError, ImageError
from amiss.frames import Frame, FrameQueue, judge_frames
from amiss.predict import BATCH, predict_records
from amiss.runtime import Runtime
from amiss.types import ImageResult, Record
from amiss.watch import FolderWatch, image_files

Skip = Callable[[Record, ImageError], None]
Timed = tuple[ImageResult, float]
"""A result and the milliseconds that it took."""


def judged_files(
    runtime: Runtime, arguments: Sequence[str], roi: Path | None, skip: Skip
) -> Generator[Timed, None, None]:
    """Judge the files, folders and lists on stdin (-) that the arguments name.

    The milliseconds are those of an image's batch, divided by the images in it, what the caller
    does between left out. An unreadable image is handed to `skip` and left out.
    """
    records = [Record(path) for path in _listed(arguments)]
    with closing(predict_records(runtime, records, roi=roi, on_error=skip)) as judged:
        results = (found for _, found in judged)
        while True:
            started = time.perf_counter()
            batch = list(islice(results, BATCH))
            each = (time.perf_counter() - started) * 1000 / max(len(batch), 1)
            if not batch:
                return
            for found in batch:
                yield found, each


def judged_arrivals(
    runtime: Runtime,
    inbox: FolderWatch,
    roi: Path | None,
    skip: Skip,
    stop: Callable[[], bool],
) -> Generator[Timed, None, None]:
    """Judge what appears in a watched folder until `stop` says so; what has been taken in by then,
    a handful of images, is judged before the end.

    The milliseconds are those from the moment when an image was found complete and taken in: its
    decoding, its wait behind others that were taken in before, and the network. An image that
    cannot be read, also not a little later, is handed to `skip` and left out.
    """
    queue = FrameQueue()

    def tell(frame: Frame, error: ImageError) -> None:
        assert frame.path is not None
        skip(Record(frame.path), error)

    arrivals = inbox.images(lambda: stop() or queue.closed)
    judged = judge_frames(runtime, arrivals, queue, roi=roi, retry=inbox.again, on_error=tell)
    with closing(judged):
        for frame, found in judged:
            yield found, (time.perf_counter() - frame.taken) * 1000


def _listed(arguments: Sequence[str]) -> list[Path]:
    paths: list[Path] = []
    for argument in arguments:
        if argument == "-":
            paths += [Path(line.strip()) for line in sys.stdin if line.strip()]
        elif Path(argument).is_dir():
            paths += _images_of(Path(argument))
        else:
            paths.append(Path(argument))
    if not paths:
        raise DataError("No image was named.", hint="Name files or folders, or pipe a list to -.")
    return paths


def _images_of(folder: Path) -> list[Path]:
    """The images of a folder, without the masks that lie in folders of their own beside them."""
    found = image_files(folder)
    images = [path for path in found if not _is_mask(path.relative_to(folder))]
    if images and len(images) < len(found):
        say(f"{len(found) - len(images)} masks in {folder} are not judged.")
    return images or found


def _is_mask(path: Path) -> bool:
    return any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])
