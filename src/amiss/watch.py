"""New images of a folder, as they appear."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from amiss.data.tree import IMAGE_SUFFIXES
from amiss.errors import DataError


def image_files(folder: Path) -> list[Path]:
    """The image files under a folder, by suffix, sorted; hidden ones left out.

    Raises:
        DataError: no image below it.
    """
    found = sorted(
        path for path in folder.rglob("*") if _named_like_an_image(path) and path.is_file()
    )
    if not found:
        raise DataError(
            f"{folder} holds no image.", hint=f"Images end in {' '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


def watch_folder(
    folder: Path, *, interval: float = 0.2, stop: Callable[[], bool] = lambda: False
) -> Iterator[Path]:
    """Image files that appear in `folder` from now on, each once, when its size has settled.

    A file that is still being written is waited for: it is handed on when two looks, `interval`
    seconds apart, find the same size above 0. Ends when `stop` says so.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder to watch.")
    known = {path: -1 for path in folder.iterdir()}
    sizes: dict[Path, int] = {}
    while not stop():
        for path in sorted(folder.iterdir()):
            if path in known or not _named_like_an_image(path):
                continue
            try:
                size = path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # moved away between the two looks
                continue
            if size > 0 and sizes.get(path) == size:
                known[path] = size
                del sizes[path]
                yield path
            else:
                sizes[path] = size
        time.sleep(interval)


def _named_like_an_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


class Stopper:
    """Asked to stop by SIGTERM or SIGINT: what is under way is finished first."""

    def __init__(self) -> None:
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def __call__(self) -> bool:
        return self.stopped
