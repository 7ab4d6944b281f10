"""Pictures of anything at all, to teach a network on: random square crops of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from amiss.data.decoding import read_bytes
from amiss.data.images import read_image
from amiss.data.tree import scan
from amiss.data.window import Window
from amiss.errors import DataError, MissingDependencyError
from amiss.types import Record, UInt8

# The photographs and micrographs among the files that scikit-image brings; no drawings.
_BUNDLED = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
    "microaneurysms.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip


def bundled_pictures() -> list[Record]:
    """The pictures that come with scikit-image.

    Raises MissingDependencyError where it is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "Pictures to teach on come with scikit-image, which is not installed.",
            hint="pip install 'amiss[train]', or name a folder of pictures.",
        )
    folder = Path(spec.origin).parent / "data"
    return [Record(folder / name) for name in _BUNDLED if (folder / name).is_file()]


def pictures_in(folder: Path, *, without: Sequence[Record] = ()) -> list[Record]:
    """All images below a folder, but those that hold the same as a file of `without`. Raises
    DataError where there is none."""
    known = {read_bytes(record.path) for record in without}
    sizes = set(map(len, known))
    tree = scan(folder)
    paths = [tree.path(parts) for parts in tree.images]
    found = [
        Record(path) for path in paths
        if path.stat().st_size not in sizes or path.read_bytes() not in known
    ]  # fmt: skip
    if not found:
        rest = " but the images that are held out" if paths else ""
        raise DataError(
            f"{folder} holds no picture{rest}.", hint="Name a folder of PNG or JPEG files."
        )
    return found


class Pictures:
    """Random crops of the files of `records`, which are decoded when they are first wanted and kept
    up to `room` bytes."""

    def __init__(
        self,
        records: Sequence[Record],
        window: Window | str | None = "percentile",
        room: int = 1 << 29,
    ) -> None:
        self.records, self.window, self.room = list(records), window, room
        self._kept: dict[int, Image.Image] = {}
        self._bytes = 0

    def crop(self, number: int, side: int, low: int, high: int, dice: Sequence[float]) -> UInt8:
        """A square of picture `number`, brought to (side, side, 3) uint8.

        Its side in the picture lies between `low` and `high` pixels; where the picture is smaller
        than `high`, between half of its shorter side (or `low`) and all of it. `dice`: three
        numbers in [0, 1) that choose size, row and column.
        """
        picture = self._picture(number)
        shorter = min(picture.size)
        if shorter < high:
            high, low = shorter, min(low, max(1, shorter // 2))
        length = low + int(dice[0] * (high - low + 1))
        top = int(dice[1] * (picture.height - length + 1))
        left = int(dice[2] * (picture.width - length + 1))
        box = (left, top, left + length, top + length)
        return np.array(picture.resize((side, side), Image.Resampling.BILINEAR, box=box))

    def _picture(self, number: int) -> Image.Image:
        if number in self._kept:
            return self._kept[number]
        record = self.records[number]
        pixels = read_image(record.path, crop=record.crop, window=self.window)
        picture = Image.fromarray(pixels)
        if self._bytes + pixels.nbytes <= self.room:
            self._kept[number] = picture
            self._bytes += pixels.nbytes
        return picture
