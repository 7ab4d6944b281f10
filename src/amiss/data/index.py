"""`index`: from a folder, a table, a name or a list to records with labels and splits."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amiss.data.known_anomalies import asked_known, with_known
from amiss.data.layouts import (
    ANOMALOUS_WORDS,
    Choices,
    Found,
    Reader,
    categories,
    read_flat,
    read_nested,
    read_train_test,
    read_two_folders,
    read_yes_no,
)
from amiss.data.protocols import asked_protocol, holds_classes, misspelt, read_protocol
from amiss.data.public_sets import (
    elpv_package,
    read_aitex,
    read_elpv_folder,
    read_head_ct,
    read_mtd,
)
from amiss.data.tables import TABLE_SUFFIXES, read_table
from amiss.data.tree import Tree, scan
from amiss.errors import DataError, OptionError
from amiss.types import ANOMALOUS, NORMAL, Record

# In the order in which they are tried: the most particular first.
LAYOUTS: dict[str, tuple[Reader, str]] = {
    "elpv": (read_elpv_folder, "labels.csv and images/ (ELPV)"),
    "headct": (read_head_ct, "labels.csv and head_ct/NNN.png (HeadCT)"),
    "mtd": (read_mtd, "MT_Free/Imgs/*.jpg and MT_<kind>/Imgs/ (MTD)"),
    "aitex": (read_aitex, "NODefect_images/, Defect_images/ and Mask_images/ (AITEX)"),
    "mvtec": (read_train_test, "train/good, test/<kind> and ground_truth/<kind> (MVTec AD)"),
    "btad": (read_train_test, "train/ok, test/ok, test/ko and ground_truth/ko (BTAD)"),
    "brainmri": (read_yes_no, "yes/ and no/ (BrainMRI)"),
    "two_folder": (read_two_folders, "good/ (or ok/, normal/) and any other folders"),
    "flat": (read_flat, "images right in the folder, all normal"),
    "nested": (read_nested, "images at any depth, all normal (only when asked for by name)"),
}
_TITLES = {
    "elpv": "ELPV solar cells",
    "headct": "HeadCT",
    "mtd": "magnetic tiles (MTD)",
    "aitex": "AITEX",
    "mvtec": "MVTec AD layout",
    "btad": "BTAD layout",
    "brainmri": "yes/no layout (BrainMRI)",
    "two_folder": "one folder per kind",
    "flat": "flat folder",
    "nested": "nested folders",
    "table": "table",
    "list": "list",
}
_WITH_MASK_DIR = ("mvtec", "btad", "two_folder", "brainmri")
LABEL_NAMES = {NORMAL: "normal", ANOMALOUS: "anomalous", None: "unlabelled"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records with labels and splits, and what was decided to get there.

    `layout` is a key of `LAYOUTS`, "table" or "list". `root` is the folder that keys are relative
    to, None for a list. `notes` are whole sentences for a person. `spare_masks` are masks that
    belong to no image. `has_drawn_split`: the set itself did not say which normals are for the
    test.
    """

    name: str
    layout: str
    root: Path | None
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()
    spare_masks: tuple[Path, ...] = ()
    has_drawn_split: bool = False

    @property
    def train(self) -> tuple[Record, ...]:
        """The normal records of the train split: what a detector is fitted on."""
        return tuple(r for r in self.records if r.split == "train" and r.label == NORMAL)

    @property
    def train_anomalous(self) -> tuple[Record, ...]:
        """The anomalous records of the train split, for methods that learn from defects."""
        return tuple(r for r in self.records if r.split == "train" and r.label == ANOMALOUS)

    @property
    def test(self) -> tuple[Record, ...]:
        """All records of the test split."""
        return tuple(r for r in self.records if r.split == "test")

    @property
    def has_masks(self) -> bool:
        """Whether any anomalous test record has a mask, so that pixel metrics can be computed."""
        return any(r.mask is not None for r in self.test if r.label == ANOMALOUS)

    def key(self, record: Record) -> str:
        """A name of the record that does not depend on where the set lies on this machine."""
        path = record.path
        if self.root is not None and path.is_relative_to(self.root):
            path = path.relative_to(self.root)
        crop = "" if record.crop is None else "#{},{},{},{}".format(*record.crop)
        return path.as_posix() + crop

    def counts(self) -> dict[str, dict[str, int]]:
        """For each split the number of images per label, of masks, and per kind ("kind:NAME")."""
        counts: dict[str, dict[str, int]] = {}
        for split in ("train", "test"):
            records = [r for r in self.records if r.split == split]
            labels = Counter(LABEL_NAMES[r.label] for r in records)
            kinds = Counter(f"kind:{r.kind}" for r in records if r.kind)
            counts[split] = {
                **{name: labels[name] for name in LABEL_NAMES.values()},
                "masks": sum(r.mask is not None for r in records),
                **dict(sorted(kinds.items())),
            }
        return counts

    def describe(self) -> str:
        """What was found, in a few lines, to be read before any work begins."""
        where = f" in {self.root}" if self.root is not None else ""
        lines = [f"{self.name}: {_TITLES.get(self.layout, self.layout)}{where}"]
        for split in ("train", "test"):
            records = [r for r in self.records if r.split == split]
            if records:
                lines.append(f"  {split:<6}{_line(records)}")
        lines += [f"  note  {note}" for note in self.notes]
        return "\n".join(lines)


Source = str | Path | Sequence[Record] | Sequence[str] | Sequence[Path] | Dataset


def find_again(key: str, root: str | Path | None) -> tuple[Path, tuple[int, int, int, int] | None]:
    """The path and crop of a record by its `Dataset.key` and the root of the set."""
    cut = re.fullmatch(r"(.*)#(\d+),(\d+),(\d+),(\d+)", key, re.DOTALL)
    path = Path(root or "", key if cut is None else cut[1])
    if cut is None:
        return path, None
    top, left, height, width = map(int, cut.groups()[1:])
    return path, (top, left, height, width)


def index(
    source: Source,
    *,
    layout: str | None = None,
    mask_dir: str | Path | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    elpv_anomalous: float = 1.0,
) -> Dataset:
    """Find the images of a set, their labels, masks and splits. No image is decoded.

    `source` is a folder; a CSV or JSONL file; a protocol over a set of classes, such as
    "one_class:3:FOLDER" (see `amiss.data.protocols`), or one that shows some defects, such as
    "multi_class:10:FOLDER" (see `amiss.data.known_anomalies`); "elpv", "elpv:mono" or "elpv:poly"
    for the cells of the package `elpv-dataset`; or a list of records or paths (paths are all
    normal). The layout is recognised on sight unless `layout` names one of `LAYOUTS`. `mask_dir` is
    a folder of masks outside the set.

    Where the set has normal and anomalous images but no split, `test_fraction` of the normals and
    all anomalous images become the test split. Which normals these are depends on the relative
    paths and `seed` alone. With normals only, all of them are for training. ELPV cells count as
    anomalous from the defect probability `elpv_anomalous` on.

    Raises DataError, with what was found, when no layout fits; OptionError for an option out of
    range; MissingDependencyError when the package is not installed.
    """
    if isinstance(source, Dataset):
        return source
    if not 0 <= test_fraction < 1:
        raise OptionError(f"test_fraction is {test_fraction:g}; allowed is 0 up to below 1.")
    choices = _choices(layout, mask_dir, elpv_anomalous)
    if isinstance(source, str) and (known := asked_known(source)) is not None:
        whole = index(known.source, layout=layout, mask_dir=mask_dir, test_fraction=test_fraction,
                      seed=seed, elpv_anomalous=elpv_anomalous)  # fmt: skip
        return with_known(whole, known)
    if isinstance(source, str | Path):
        root, name, found = _from_path(source, layout, choices)
    elif layout is None:
        root, name, found = None, "list", _from_list(source)
    else:
        raise OptionError(f'layout "{layout}" is for folders, and the source is a list.')
    if not found.records:
        raise DataError(f"{source if root else 'The list'}: no images were found.")
    _check_applies(choices, found.layout)
    dataset = Dataset(name, found.layout, root, tuple(found.records), tuple(found.notes))
    dataset = replace(dataset, spare_masks=tuple(sorted(found.spare_masks)))
    return _split(dataset, test_fraction, seed)


def _choices(layout: str | None, mask_dir: str | Path | None, elpv_anomalous: float) -> Choices:
    _, _, part = (layout or "").partition(":")
    masks = None if mask_dir is None else Path(mask_dir)
    if masks is not None and not masks.is_dir():
        raise DataError(f"{masks}: mask_dir is no folder.")
    return Choices(masks, elpv_anomalous, part)


def _check_applies(choices: Choices, layout: str) -> None:
    """Raises OptionError for an argument that the layout has no use for."""
    if choices.mask_dir is not None and layout not in _WITH_MASK_DIR:
        raise OptionError(
            f'mask_dir is for the layouts {", ".join(_WITH_MASK_DIR)}, and this set is "{layout}".',
            hint="A table can name the mask of each image in its column mask.",
        )
    if layout != "elpv" and (choices.part or choices.elpv_anomalous != 1):
        raise OptionError(
            f'elpv_anomalous and a part such as ":mono" are for ELPV, and this set is "{layout}".'
        )


def _from_list(source: Sequence[Any]) -> Found:
    """Records as they are; paths as normal images."""
    for item in source:
        if not isinstance(item, Record | str | Path):
            raise DataError(
                f"The list holds a {type(item).__name__}; a set is a list of paths or records.",
                hint="Write arrays to image files first: PIL.Image.fromarray(array).save(path).",
            )
    records = [r if isinstance(r, Record) else Record(Path(r), NORMAL) for r in source]
    found = Found("list", records)
    if source and not any(isinstance(r, Record) for r in source):
        found.notes.append("A list of paths has no labels: all images are taken as normal.")
    return found


def _from_path(source: str | Path, layout: str | None, choices: Choices) -> tuple[Path, str, Found]:
    """(root, name, what was found) of a folder, a table or a set that is known by name."""
    asked = asked_protocol(str(source))
    if asked is not None:
        if layout is not None:
            raise OptionError(f'layout "{layout}" is for folders, and {source} names a protocol.')
        title = f"{asked.folder.resolve().name} {asked.protocol} {asked.label}"
        title += f" seed {asked.seed}" if asked.seed else ""
        return asked.folder, title, Found(asked.protocol, read_protocol(asked))
    path = Path(source)
    name, _, part = str(source).partition(":")
    if name.lower() == "elpv" and not path.exists():
        tree = elpv_package()
        choices = replace(choices, part=part.lower())
        found = read_elpv_folder(tree, choices)
        if found is None:
            raise DataError(f"{tree.root}: labels.csv of the package is not what ELPV's should be.")
        return tree.root, str(source), found
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(
                f"{path}: a set is a folder or a table, and this is one file.",
                hint=f"Tables end in {', '.join(sorted(TABLE_SUFFIXES))}; one image is [path].",
            )
        if layout not in (None, "table"):
            raise OptionError(f'layout "{layout}" is for folders, and {path} is a table.')
        return path.parent, path.stem, read_table(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: there is no such folder or file.",
            hint=misspelt(str(source))
            or 'Sets known by name: "elpv", "elpv:mono", "elpv:poly"; of classes: '
            '"leave_one_out:K:FOLDER", "one_class:K:FOLDER", "memae_30:K:FOLDER"; with known '
            'defects: "multi_class:A:FOLDER", "one_class:KIND/A:FOLDER".',
        )
    tree = scan(path)
    found = _recognise(tree, choices) if layout is None else _by_name(tree, layout, choices)
    found.notes += tree.notes()
    return path, path.resolve().name, found


def _by_name(tree: Tree, layout: str, choices: Choices) -> Found:
    name = layout.partition(":")[0].lower()
    if name not in LAYOUTS:
        raise OptionError(f'There is no layout "{layout}"; allowed are {", ".join(LAYOUTS)}.')
    reader, shape = LAYOUTS[name]
    found = reader(tree, choices)
    if found is None and len(tree.folders()) == 1:
        return _by_name(tree.below(tree.folders()[0]), layout, choices)
    if found is None:
        raise DataError(f'{tree.root}: is not of the layout "{name}", {shape}. {_summary(tree)}')
    found.layout = name
    return found


def _recognise(tree: Tree, choices: Choices) -> Found:
    """The first layout that fits; folders that hold nothing but one folder are stepped into."""
    several = categories(tree)
    if len(several) > 1 and not tree.under("train"):
        raise DataError(
            f"{tree.root}: holds {len(several)} sets: {', '.join(several)}.",
            hint=f"Name one, for example {tree.root / several[0]}: a detector learns one product.",
        )
    for name, (reader, _) in LAYOUTS.items():
        found = reader(tree, choices) if name != "nested" else None
        if found is not None:
            return found
    folders = tree.folders()
    if len(folders) == 1 and folders[0].lower() not in ANOMALOUS_WORDS:
        return _recognise(tree.below(folders[0]), choices)
    if not tree.images:
        passed_over = " ".join(tree.notes())
        hint = ""
        if holds_classes(tree.root):
            hint = (
                f"It holds a set of classes: say which is normal, as in one_class:3:{tree.root}, "
                f"or which is not, as in leave_one_out:3:{tree.root}."
            )
        raise DataError(
            f"{tree.root}: no image files were found. {passed_over}".rstrip(), hint=hint
        )
    shapes = "".join(f"\n  {shape}" for _, shape in LAYOUTS.values())
    raise DataError(
        f"{tree.root}: none of the layouts fits. {_summary(tree)} The layouts are:{shapes}\n",
        hint='Name the folder of normal images good/, or say layout="nested" if all are normal.',
    )


def _summary(tree: Tree) -> str:
    """What lies in a folder, in a sentence."""
    if not tree.images:
        return "No image files were found."
    parts = [f"{name}/ ({len(tree.under(name.lower()))} images)" for name in tree.folders()[:8]]
    if len(tree.folders()) > 8:
        parts.append("...")
    if tree.direct():
        parts.append(f"{len(tree.direct())} images right in it")
    return f"Found {', '.join(parts) or 'only masks'}."


def _split(dataset: Dataset, test_fraction: float, seed: int) -> Dataset:
    """Give a split to the records that have none."""
    open_records = [r for r in dataset.records if r.split is None]
    if not open_records:
        return dataset
    normals = sorted(
        {dataset.key(replace(r, crop=None)) for r in open_records if r.label == NORMAL}
    )
    # Without anything to find there is nothing to test, and all normals train.
    wants_test = any(r.label != NORMAL for r in dataset.records) and test_fraction > 0
    chosen: set[str] = set()
    if wants_test and len(normals) > 1:
        # By file, so that two crops of one strip never come to both sides; and by a hash, so that
        # images added later move as few of the others as possible.
        normals.sort(key=lambda key: hashlib.sha256(f"{seed}|{key}".encode()).digest())
        chosen = set(normals[: max(1, round(test_fraction * len(normals)))])

    def place(record: Record) -> Record:
        if record.split is not None:
            return record
        is_test = record.label != NORMAL or dataset.key(replace(record, crop=None)) in chosen
        return replace(record, split="test" if is_test else "train")

    notes = dataset.notes
    if wants_test:
        notes = (
            *notes,
            f"Files without a split: {len(chosen)} of {len(normals)} normal ones (drawn by a hash "
            f"of their names and seed {seed}) and all anomalous ones are in the test split.",
        )
    return replace(
        dataset, records=tuple(place(r) for r in dataset.records), notes=notes,
        has_drawn_split=wants_test,
    )  # fmt: skip


def _line(records: Sequence[Record]) -> str:
    """ "20 normal, 63 anomalous (crack 40, dent 23), 63 masks" """
    parts = []
    for label, word in LABEL_NAMES.items():
        some = [r for r in records if r.label == label]
        if not some:
            continue
        kinds = Counter(r.kind for r in some if r.kind)
        listed = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
        show = label == ANOMALOUS and kinds and (len(kinds) > 1 or len(listed) < 40)
        parts.append(f"{len(some)} {word}" + (f" ({listed})" if show else ""))
    masks = sum(r.mask is not None for r in records)
    return ", ".join([*parts, f"{masks} masks"] if masks else parts)
