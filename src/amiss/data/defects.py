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
from amiss.data.stream import is_there
from amiss.data.tree import MaskFolder, Tree, part_masks, scan
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
    defective: masks may then lie beside them (`x_mask.png`), or in `mask_dir`, right in it or in
    folders named by the kinds.

    Raises DataError where no such image is found, where `mask_dir` has a mask of none, and what
    `index` raises.
    """
    found = _found(source, mask_dir)
    if not found:
        raise DataError(
            f"{_name(source)} holds no anomalous image.",
            hint="Give a folder of defective images alone, or a set with defects in it.",
        )
    if mask_dir is not None and not any(record.masks for record in found):
        raise DataError(
            f"{mask_dir} holds no mask of {len(found)} defects, such as {found[0].path.name}.",
            hint="A mask has the name of its image, with or without _mask, and lies right in the "
            "folder or in one named by the kind.",
        )
    return found


def _found(source: Source, mask_dir: str | Path | None) -> list[Record]:
    if isinstance(source, str | Path) and Path(source).is_dir():
        folder = Path(source)
        tree = scan(folder)
        if tree.direct() and not tree.folders():
            return _folder_of_defects(folder, _masks_in(mask_dir))
        kinds = _kinds_alone(tree)
        if kinds:
            masks = _masks_in(mask_dir)
            return [r for kind in kinds for r in _folder_of_defects(folder / kind, masks, kind)]
    paths = _listed_paths(source)
    if paths:
        return _listed_defects(paths, mask_dir)
    return [r for r in index(source, mask_dir=mask_dir).records if r.label == ANOMALOUS]


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else index(source).name


def _kinds_alone(tree: Tree) -> list[str]:
    """The folders of images in a folder that has nothing else in it, and is no set by itself."""
    kinds = tree.folders()
    if not all(len(parts) == 2 and parts[0] in kinds for parts in tree.images):
        return []
    try:
        is_set = index(tree.root).layout != "flat"  # of one folder: all normal
    except DataError:
        is_set = False
    return [] if is_set else kinds


def _masks_in(mask_dir: str | Path | None) -> MaskFolder | None:
    """The masks in a folder: where images lie beside them as well, what is named as a mask."""
    if mask_dir is None:
        return None
    tree = scan(Path(mask_dir))
    named = part_masks(tree.images).masks.values()
    return MaskFolder((parts, tree.path(parts)) for parts in named or tree.images)


def _listed_paths(source: Source) -> list[Path]:
    """Those of a list of paths; none of any other source."""
    if isinstance(source, str) or not isinstance(source, Sequence):
        return []
    return [Path(one) for one in source if isinstance(one, str | Path)]


def _listed_defects(paths: Sequence[Path], mask_dir: str | Path | None) -> list[Record]:
    """Images by name, with their masks; masks that are named among them are no images.

    Raises DataError for a path that is no file.
    """
    for path in paths:
        if not is_there(path):
            hint = "Several folders: name one that holds them." if path.is_dir() else ""
            raise DataError(f"{path}: there is no such file.", hint=hint)
    masks = _masks_in(mask_dir)
    records: list[Record] = []
    beside = {f: _folder_of_defects(f, None) for f in {path.parent for path in paths}}
    known = {r.path.resolve(): r for found in beside.values() for r in found}
    taken = {mask.resolve() for r in known.values() for mask in r.masks}
    for path in paths:
        found = known.get(path.resolve())
        if found is not None:
            own = found.mask or _mask_of(path, masks, path.parent.name)
            records.append(replace(found, path=path, mask=own))
        elif path.resolve() not in taken:
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


def _folder_of_defects(
    folder: Path, masks: MaskFolder | None, kind: str | None = None
) -> list[Record]:
    """The images right in a folder as defects of a kind, with the masks beside them or of a
    folder of masks."""
    tree = scan(folder)
    parted = part_masks(tree.direct())
    records = []
    for parts in parted.images:
        path, beside = tree.path(parts), parted.masks.get(parts)
        mask = _mask_of(path, masks, kind) if beside is None else tree.path(beside)
        records.append(Record(path, ANOMALOUS, mask, kind=kind))
    return records


def _mask_of(path: Path, masks: MaskFolder | None, kind: str | None) -> Path | None:
    """The mask of an image in a folder of masks; raises DataError where it is the image itself."""
    if masks is None:
        return None
    mask = masks.find(path, [(kind,), ()] if kind else [()])
    if mask is not None and mask.samefile(path):
        raise DataError(
            f"{path} would be its own mask.", hint="Name the folder of the masks, not that of the "
            "images.",
        )  # fmt: skip
    return mask


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
