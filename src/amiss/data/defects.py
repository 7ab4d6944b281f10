"""Known defects to paste, what a generator of defects makes, and where known ones are read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from amiss.data.foreground import require_image
from amiss.data.geometry import Size, resize_image
from amiss.data.images import read_framed_mask, read_image
from amiss.data.index import Source, index
from amiss.data.tree import MaskFolder, part_masks, scan
from amiss.data.window import Window
from amiss.errors import DataError, OptionError
from amiss.types import ANOMALOUS, Bool, Record, UInt8


class Synthetic(NamedTuple):
    """A made defect: `image` (H, W, 3) uint8, which outside of `mask` (H, W) bool is the normal
    image to the bit. The mask is never empty."""

    image: UInt8
    mask: Bool


class Generator(Protocol):
    """What makes defects. All chance comes from `rng`."""

    def __call__(
        self, normal: UInt8, rng: np.random.Generator, roi: Bool | None = None
    ) -> Synthetic:
        """A defect in the image `normal` (H, W, 3) uint8, within `roi` (H, W) bool or anywhere."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Defect:
    """A known defect: `image` (H, W, 3) uint8 and where in it the defect is, `mask` (H, W) bool.

    Raises OptionError for shapes or dtypes that do not fit, DataError for an empty mask.
    """

    image: UInt8
    mask: Bool

    def __post_init__(self) -> None:
        require_image(self.image)
        if self.mask.shape != self.image.shape[:2] or self.mask.dtype != np.bool_:
            raise OptionError(
                f"The mask of a defect has shape {self.mask.shape} and dtype {self.mask.dtype}; "
                f"its image wants {self.image.shape[:2]} bool."
            )
        if not self.mask.any():
            raise DataError("The mask of a defect is empty.", hint="Leave such an image out.")


def anomalous_records(source: Source, mask_dir: str | Path | None = None) -> list[Record]:
    """The images of a set that are not normal, with their masks where there are some.

    `source` is anything that `amiss.data.index.index` takes; a list of paths, a folder right in
    which all images lie, or one with a folder for each kind and no normal images, are all
    defective: masks may then lie beside them (`x_mask.png`) or right in `mask_dir`.

    Raises DataError where no such image is found, and what `index` raises.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        folder = Path(source)
        if scan(folder).images and _is_flat(folder):
            return _flat_defects(folder, mask_dir)
        kinds = _kinds_alone(folder)
        if kinds:
            return [
                replace(record, kind=kind.name)
                for kind in kinds
                for record in _flat_defects(kind, mask_dir)
            ]
    paths = _listed_paths(source)
    if paths:
        return _listed_defects(paths, mask_dir)
    dataset = index(source, mask_dir=mask_dir)
    found = [r for r in dataset.records if r.label == ANOMALOUS]
    if not found:
        raise DataError(
            f"{dataset.name} holds no anomalous image.",
            hint="Give a folder of defective images alone, or a set with defects in it.",
        )
    return found


def _is_flat(folder: Path) -> bool:
    try:
        return index(folder).layout == "flat"
    except DataError:
        return False


def _kinds_alone(folder: Path) -> list[Path]:
    """The folders of images in a folder that has nothing else in it, and is no set by itself."""
    try:
        index(folder)
    except DataError:
        tree = scan(folder)
        kinds = tree.folders()
        if all(len(parts) == 2 and parts[0] in kinds for parts in tree.images):
            return [folder / name for name in kinds]
    return []


def _listed_paths(source: Source) -> list[Path]:
    """Those of a list of paths; none of any other source."""
    if isinstance(source, str) or not isinstance(source, Sequence):
        return []
    return [Path(one) for one in source if isinstance(one, str | Path)]


def _listed_defects(paths: Sequence[Path], mask_dir: str | Path | None) -> list[Record]:
    """Images by name, with their masks; masks that are named among them are no images.

    Raises DataError for a path that is no file.
    """
    records: list[Record] = []
    beside = {folder: _flat_defects(folder, mask_dir) for folder in {p.parent for p in paths}}
    known = {r.path.resolve(): r for found in beside.values() for r in found}
    masks = {m.resolve() for r in known.values() for m in r.masks}
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: there is no such file.")
        if path.resolve() in known:
            records.append(replace(known[path.resolve()], path=path))
        elif path.resolve() not in masks:
            records.append(Record(path, ANOMALOUS))
    return records


def defect_records(source: Source, mask_dir: str | Path | None = None) -> list[Record]:
    """Those of `anomalous_records` that have a mask.

    Raises DataError where none has.
    """
    found = anomalous_records(source, mask_dir)
    masked = [record for record in found if record.masks]
    if not masked:
        raise DataError(
            f"{source}: of {len(found)} images that are not normal, none has a mask.",
            hint="Name the folder of the masks with mask_dir.",
        )
    return masked


def _flat_defects(folder: Path, mask_dir: str | Path | None) -> list[Record]:
    """The images right in a folder, with their masks, as defects."""
    tree = scan(folder)
    parted = part_masks(tree.direct())
    elsewhere = None if mask_dir is None else scan(Path(mask_dir))
    masks = MaskFolder((p, elsewhere.path(p)) for p in elsewhere.direct()) if elsewhere else None
    records = []
    for parts in parted.images:
        path, beside = tree.path(parts), parted.masks.get(parts)
        mask = None if beside is None else tree.path(beside)
        if mask is None and masks is not None:
            mask = masks.find(path, [()])
        records.append(Record(path, ANOMALOUS, mask))
    return records


def read_defects(
    records: Sequence[Record], size: Size, window: Window | str | None = "percentile"
) -> list[Defect]:
    """The defects in images with masks, brought to `size` (height, width). Records without a mask,
    and those whose mask is empty, or is at this size, are passed over.

    Raises ImageError for a file that cannot be read, DataError where nothing is left.
    """
    defects = []
    for record in records:
        if record.mask is None:
            continue
        image = read_image(record.path, crop=record.crop, window=window)
        frame, geometry = resize_image(image, size)
        small = read_framed_mask(record.mask, geometry, record.crop)
        if small.any():
            defects.append(Defect(frame, small))
    if not defects:
        raise DataError(
            f"None of {len(records)} images has a mask with a positive pixel at this size.",
            hint="Give a larger size, or images with larger defects.",
        )
    return defects
