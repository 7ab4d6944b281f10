"""The folder layouts: flat, two folders, and train/test as in MVTec AD and BTAD.

Each `read_*` looks at a tree and returns what it found, or None when the layout is another one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from amiss.data.tree import MASK_FOLDERS, MaskFolder, Parts, Tree, part_masks, scan
from amiss.errors import DataError
from amiss.types import ANOMALOUS, NORMAL, Record

NORMAL_WORDS = frozenset({"good", "ok", "normal"})
ANOMALOUS_WORDS = frozenset(
    {"anomalous", "anomaly", "anomalies", "abnormal", "bad", "defect", "defects", "defective"}
    | {"ko", "ng", "nok", "fail", "yes"}
)


@dataclass(slots=True)
class Found:
    """What a layout holds. Records without a split are split by `index`."""

    layout: str
    records: list[Record]
    notes: list[str] = field(default_factory=list)
    spare_masks: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Choices:
    """The arguments of `index` that a layout may need."""

    mask_dir: Path | None = None
    elpv_anomalous: float = 1.0
    part: str = ""  # what follows the colon of a name such as "elpv:mono"


Reader = Callable[[Tree, Choices], Found | None]


def label_of_folder(name: str, siblings: list[str]) -> int:
    """The label that a folder's name stands for among its siblings."""
    word = name.lower()
    # "no" means "no tumour" only beside "yes"; elsewhere it may be short for "number".
    if word in NORMAL_WORDS or (word == "no" and "yes" in [s.lower() for s in siblings]):
        return NORMAL
    return ANOMALOUS


def read_flat(tree: Tree, choices: Choices) -> Found | None:
    """Images right in the folder, all normal."""
    parted = part_masks(tree.direct())
    if not parted.images:
        return None
    found = Found("flat", [Record(tree.path(p), NORMAL, split="train") for p in parted.images])
    found.notes.append("No folder tells normal from anomalous: all images are taken as normal.")
    found.spare_masks = [tree.path(p) for p in (*parted.masks.values(), *parted.orphans)]
    deeper = len(part_masks(tree.images).images) - len(parted.images)
    if deeper:
        found.notes.append(
            f'{deeper} images in sub-folders are not used; layout "nested" takes them as well.'
        )
    return found


def read_nested(tree: Tree, choices: Choices) -> Found | None:
    """Images at any depth, all normal. Only when asked for by name."""
    parted = part_masks(tree.images)
    if not parted.images:
        return None
    found = Found("nested", [Record(tree.path(p), NORMAL, split="train") for p in parted.images])
    found.notes.append("All images at any depth are taken as normal, as asked for.")
    found.spare_masks = [tree.path(p) for p in (*parted.masks.values(), *parted.orphans)]
    return found


def read_two_folders(tree: Tree, choices: Choices) -> Found | None:
    """`good` (or `ok`, `normal`, or `no` beside `yes`) against any other folders."""
    names = tree.folders()
    normal = [name for name in names if label_of_folder(name, names) == NORMAL]
    if not normal:
        return None
    is_yes_no = {"yes", "no"} <= {name.lower() for name in names}
    used = [n for n in names if n.lower() in ("yes", "no")] if is_yes_no else names
    found = Found("brainmri" if is_yes_no else "two_folder", [])
    folders: list[_Folder] = [((), name, label_of_folder(name, names), None) for name in used]
    _collect(found, tree, choices, folders)
    unused = len(tree.direct()) + sum(len(tree.under(n.lower())) for n in names if n not in used)
    if unused:
        found.notes.append(f"{unused} images outside these folders are not used.")
    if not any(record.label == ANOMALOUS for record in found.records):
        found.records = [replace(record, split="train") for record in found.records]
    return found


def read_yes_no(tree: Tree, choices: Choices) -> Found | None:
    """BrainMRI: `yes` (tumour) and `no`. Kaggle's archive holds both twice; one copy is read."""
    if not {"yes", "no"} <= {name.lower() for name in tree.folders()}:
        return None
    return read_two_folders(tree, choices)


def read_train_test(tree: Tree, choices: Choices) -> Found | None:
    """`train/good`, `test/<kind>` and `ground_truth/<kind>`: MVTec AD, and BTAD with `ok`, `ko`."""
    if not tree.under("train"):
        return None
    train, test = tree.folders("train"), tree.folders("test")
    has_bare_train = bool(part_masks(tree.direct("train")).images)
    if not has_bare_train and not any(label_of_folder(n, train) == NORMAL for n in train):
        raise DataError(
            f"{tree.root / 'train'}: holds the folders {', '.join(train) or '(none)'}, and none is "
            "named good, ok or normal.",
            hint="Name the folder of normal training images train/good.",
        )
    is_btad = {n.lower() for n in (*train, *test)} <= {"ok", "ko"} and not has_bare_train
    found = Found("btad" if is_btad else "mvtec", [])
    folders: list[_Folder] = [
        (("train",), name, label_of_folder(name, train), "train") for name in train
    ]
    folders += [(("test",), name, label_of_folder(name, test), "test") for name in test]
    if has_bare_train and not train:
        folders.append((("train",), "", NORMAL, "train"))
    if tree.direct("test") and not test:
        folders.append((("test",), "", None, "test"))
        found.notes.append("The images right in test/ have no label.")
    _collect(found, tree, choices, folders)
    used = {"train", "test", *MASK_FOLDERS}
    unused = [p for p in tree.images if len(p) == 1 or p[0].lower() not in used]
    if unused:
        found.notes.append(f"{len(unused)} images outside train/ and test/ are not used.")
    return found


def categories(tree: Tree) -> list[str]:
    """The folders that are train/test sets of their own, as in the whole of MVTec AD."""
    return [name for name in tree.folders() if tree.below(name).under("train")]


_Folder = tuple[Parts, str, int | None, str | None]
"""(where it lies, its name or "" for the place itself, label, split)"""


def _collect(found: Found, tree: Tree, choices: Choices, folders: list[_Folder]) -> None:
    """Add the images of the folders, with their masks."""
    masks = _mask_folder(tree, choices)
    for where, name, label, split in folders:
        here = tuple(part.lower() for part in (*where, name) if part)
        files = tree.under(*here) if name else tree.direct(*here)
        parted = part_masks(files)
        found.spare_masks += [tree.path(p) for p in parted.orphans]
        for parts in parted.images:
            path = tree.path(parts)
            beside = parted.masks.get(parts)
            if beside is not None:
                mask: Path | None = tree.path(beside)
            else:
                mask = masks.find(path, _mask_places(parts, len(where), label, split))
            found.records.append(Record(path, label, mask, split, name or None))
    if choices.mask_dir is not None and not any(record.mask for record in found.records):
        raise DataError(
            f"{choices.mask_dir}: none of the {len(masks)} images here has the name of an image in "
            f"{tree.root}.",
            hint="A mask is named like its image, with or without _mask, in a folder per kind.",
        )
    found.spare_masks += masks.spare()


def _mask_places(parts: Parts, depth: int, label: int | None, split: str | None) -> list[Parts]:
    """Where a mask may lie in the masks folder, the most exact place first.

    Test sets number their files per folder, so a mask that is not in a folder of the image's kind
    is only believed for anomalous images, and one outside `train` not for training images.
    """
    kind = parts[depth:-1]
    places: list[Parts] = []
    if split is not None:
        places.append((split, *kind))
    if split != "train":
        places.append(kind)
        if label != NORMAL:
            places += [kind[:n] for n in reversed(range(len(kind)))]
    return places


def _mask_folder(tree: Tree, choices: Choices) -> MaskFolder:
    if choices.mask_dir is not None:
        masks = scan(choices.mask_dir)
        if not masks.images:
            raise DataError(f"{choices.mask_dir}: there are no mask images in this folder.")
        return MaskFolder((parts, masks.path(parts)) for parts in masks.images)
    return MaskFolder(
        (tuple(part for part in parts if part.lower() not in MASK_FOLDERS), tree.path(parts))
        for parts in tree.images
        if any(part.lower() in MASK_FOLDERS for part in parts[:-1])
    )
