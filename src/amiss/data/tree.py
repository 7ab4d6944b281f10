"""What lies in a folder: images, masks, and what is passed over."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from amiss.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
)
MASK_FOLDERS = frozenset(
    {"ground_truth", "groundtruth", "ground-truth", "gt", "mask", "masks", "mask_images"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_MASK_ENDING = re.compile(r"[_\-. ](mask|gt|ground_?truth|label)\d*$", re.IGNORECASE)

Parts = tuple[str, ...]
"""A path relative to the root, split at its separators."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files under `root`, in sorted order.

    `images`: relative parts of all files with an image suffix, masks among them. `gifs`, `other`
    (suffix -> number), `hidden` and `repeated` (folders reached twice through links) are passed
    over, and `notes` says so.
    """

    root: Path
    images: tuple[Parts, ...]
    tables: frozenset[Parts]
    gifs: int
    hidden: int
    repeated: int
    other: dict[str, int]

    def under(self, *folders: str) -> list[Parts]:
        """The images below a folder, at any depth; names are compared without case."""
        depth = len(folders)
        return [p for p in self.images if len(p) > depth and _lower(p[:depth]) == folders]

    def folders(self, *folders: str) -> list[str]:
        """The folders right below a folder that hold images, masks folders left out, as spelled."""
        depth = len(folders)
        names = {p[depth].lower(): p[depth] for p in self.under(*folders) if len(p) > depth + 1}
        return sorted(name for word, name in names.items() if word not in MASK_FOLDERS)

    def direct(self, *folders: str) -> list[Parts]:
        """The images right in a folder."""
        return [p for p in self.under(*folders) if len(p) == len(folders) + 1]

    def below(self, name: str) -> Tree:
        """The part of the tree in one of its folders."""
        return Tree(
            self.root / name,
            tuple(p[1:] for p in self.images if p[0] == name and len(p) > 1),
            frozenset(p[1:] for p in self.tables if p[0] == name and len(p) > 1),
            self.gifs,
            self.hidden,
            self.repeated,
            self.other,
        )

    def path(self, parts: Parts) -> Path:
        return self.root.joinpath(*parts)

    def notes(self) -> list[str]:
        """What was passed over, one sentence each."""
        notes = []
        if self.gifs:
            notes.append(f"{self.gifs} GIF files passed over: save the frames as PNG to use them.")
        if self.hidden:
            notes.append(f"{self.hidden} hidden or system files passed over.")
        if self.repeated:
            notes.append(f"{self.repeated} folders reached again through links were read once.")
        if self.other:
            kinds = ", ".join(
                f"{n} {suffix or 'without suffix'}" for suffix, n in self.other.items()
            )
            notes.append(
                f"{sum(self.other.values())} files that are no images passed over: {kinds}."
            )
        return notes


def scan(root: Path) -> Tree:
    """Walk a folder. Links are followed, a folder that was seen before is not entered again.

    Raises DataError when the folder is missing or cannot be listed.
    """
    images: list[Parts] = []
    tables: set[Parts] = set()
    other: Counter[str] = Counter()
    gifs = hidden = repeated = 0
    seen: set[tuple[int, int]] = set()
    pending: list[Parts] = [()]
    while pending:
        folder = pending.pop()
        if not _is_new(root.joinpath(*folder), seen):
            repeated += 1
            continue
        for name, is_folder in _list(root.joinpath(*folder)):
            parts = (*folder, name)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or name.lower() in _SYSTEM_FILES:
                hidden += 1
            elif is_folder:
                pending.append(parts)
            elif suffix in IMAGE_SUFFIXES:
                images.append(parts)
            elif suffix == ".gif":
                gifs += 1
            else:
                if suffix == ".csv":
                    tables.add(parts)
                other[suffix] += 1
    return Tree(
        root,
        tuple(sorted(images)),
        frozenset(tables),
        gifs,
        hidden,
        repeated,
        dict(sorted(other.items())),
    )


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read ({error.strerror}).") from error
    identity = (status.st_dev, status.st_ino)
    if status.st_ino and identity in seen:  # some network file systems number nothing
        return False
    seen.add(identity)
    return True


def _list(folder: Path) -> list[tuple[str, bool]]:
    """(name, is a folder) of the entries of a folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be listed ({error.strerror}).") from error


class Beside(NamedTuple):
    """Files of one set parted into images and the `*_mask` files that lie beside them."""

    images: list[Parts]
    masks: dict[Parts, Parts]
    orphans: list[Parts]


def part_masks(files: Sequence[Parts]) -> Beside:
    """Part `x.png` from `x_mask.png` in the same folder, and drop what lies in masks folders.

    A file named like a mask without its image is an orphan where other files of the folder are
    masks; elsewhere it is an image, since things may be called "..._mask".
    """
    files = [p for p in files if not any(name.lower() in MASK_FOLDERS for name in p[:-1])]
    by_stem: dict[tuple[Parts, str], Parts] = {}
    for p in files:
        by_stem.setdefault((p[:-1], os.path.splitext(p[-1])[0].lower()), p)
    masks: dict[Parts, Parts] = {}
    suspects: list[Parts] = []
    mask_places = set()
    for p in files:
        bare = bare_stem(p[-1])
        if bare == os.path.splitext(p[-1])[0].lower():
            continue
        image = by_stem.get((p[:-1], bare))
        if image is None:
            suspects.append(p)
        else:
            masks.setdefault(image, p)
            mask_places.add(p[:-1])
    orphans = [p for p in suspects if p[:-1] in mask_places]
    dropped = {*masks.values(), *orphans}
    return Beside([p for p in files if p not in dropped], masks, orphans)


def bare_stem(name: str) -> str:
    """A file name without suffix and without an ending such as "_mask", in lower case."""
    return _MASK_ENDING.sub("", os.path.splitext(name)[0]).lower()


class MaskFolder:
    """Finds the mask of an image in a folder of masks, and remembers which were taken.

    A mask has the stem of its image, with or without an ending such as "_mask", and any suffix. It
    lies in a folder named like the image's kind, in `<split>/<kind>`, or right in the folder.
    """

    def __init__(self, masks: Iterable[tuple[Parts, Path]]) -> None:
        self._by_key: dict[tuple[Parts, str], Path] = {}
        self._all: list[Path] = []
        self._taken: dict[Path, Path] = {}
        for parts, path in masks:
            self._by_key.setdefault((_lower(parts[:-1]), bare_stem(parts[-1])), path)
            self._all.append(path)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, image: Path, places: Sequence[Parts]) -> Path | None:
        """The mask of `image` in the first of `places` (folders inside the masks folder).

        Raises DataError when the mask was already taken by another image.
        """
        stem = image.stem.lower()
        for place in places:
            mask = self._by_key.get((_lower(place), stem))
            if mask is None:
                continue
            other = self._taken.setdefault(mask, image)
            if other != image:
                raise DataError(
                    f"{mask}: this mask fits two images, {other} and {image}.",
                    hint="Put masks in one folder per kind, named like the folders of the images.",
                )
            return mask
        return None

    def spare(self) -> list[Path]:
        """The masks that no image took."""
        return [path for path in self._all if path not in self._taken]


def _lower(parts: Parts) -> Parts:
    return tuple(part.lower() for part in parts)
