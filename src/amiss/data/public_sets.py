"""The public sets with layouts of their own: MTD, HeadCT, AITEX and ELPV."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

from amiss.data.images import Crop, read_mask, stored_size
from amiss.data.layouts import Choices, Found
from amiss.data.tables import read_text
from amiss.data.tree import Parts, Tree, scan
from amiss.errors import DataError, ImageError, MissingDependencyError, OptionError
from amiss.types import ANOMALOUS, NORMAL, Record


def read_mtd(tree: Tree, choices: Choices) -> Found | None:
    """Magnetic tiles: `MT_<Kind>/Imgs/*.jpg` with the mask `*.png` beside; `MT_Free` is normal."""
    kinds = [name for name in tree.folders() if name.lower().startswith("mt_")]
    if "mt_free" not in (name.lower() for name in kinds):
        return None
    found = Found("mtd", [])
    for name in kinds:
        files = tree.under(name.lower())
        masks = {_place(p): p for p in files if p[-1].lower().endswith(".png")}
        label = NORMAL if name.lower() == "mt_free" else ANOMALOUS
        for parts in files:
            if not parts[-1].lower().endswith((".jpg", ".jpeg")):
                continue
            beside = masks.pop(_place(parts), None)
            # The masks beside normal tiles are all black and say nothing.
            mask = tree.path(beside) if beside is not None and label == ANOMALOUS else None
            kind = "good" if label == NORMAL else name[3:].lower()
            found.records.append(Record(tree.path(parts), label, mask, kind=kind))
        found.spare_masks += [tree.path(p) for p in masks.values()]
    return found


def _place(parts: Parts) -> Parts:
    """A file's place without its suffix, which an image shares with its mask."""
    return (*parts[:-1], Path(parts[-1]).stem)


def read_head_ct(tree: Tree, choices: Choices) -> Found | None:
    """HeadCT: `labels.csv` with the columns id and hemorrhage, and `head_ct/NNN.png`."""
    slices = [p for p in tree.images if len(p) > 1 and p[-2].lower() == "head_ct"]
    if ("labels.csv",) not in tree.tables or not slices:
        return None
    table = tree.path(("labels.csv",))
    by_number = {int(Path(p[-1]).stem): p for p in slices if Path(p[-1]).stem.isdecimal()}
    found = Found("headct", [])
    missing = []
    rows = csv.DictReader(read_text(table).splitlines(), skipinitialspace=True)
    names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if not {"id", "hemorrhage"} <= names.keys():
        raise DataError(
            f"{table}: the columns are {', '.join(names)}; HeadCT has id and hemorrhage."
        )
    for row in rows:
        number = (row[names["id"]] or "").strip()
        word = (row[names["hemorrhage"]] or "").strip()
        if not number.isdecimal() or word not in ("0", "1"):
            raise DataError(
                f'{table}, line {rows.line_num}: id "{number}", hemorrhage "{word}"; an id is '
                "a whole number and hemorrhage 0 or 1."
            )
        parts = by_number.pop(int(number), None)
        if parts is None:
            missing.append(number)
            continue
        kind = "hemorrhage" if word == "1" else "good"
        found.records.append(Record(tree.path(parts), int(word), kind=kind))
    if missing:
        found.notes.append(f"{len(missing)} rows of labels.csv have no image: {_some(missing)}.")
    if by_number:
        found.notes.append(f"{len(by_number)} images are not in labels.csv and are not used.")
    return found


def read_aitex(tree: Tree, choices: Choices) -> Found | None:
    """AITEX: fabric strips, cut into squares of the strip's height.

    A square of a strip with defects is anomalous when one of the strip's masks has a positive pixel
    there, and all that have one make up its truth. A square without is normal and goes to the test
    split: its strip was not meant for training, and such squares are the hardest normals there are.
    A strip without a mask is left out, since nobody knows which of its squares are normal.
    """
    normal, defect = tree.under("nodefect_images"), tree.under("defect_images")
    if not normal:
        return None
    found = Found("aitex", [])
    unread = 0
    for parts in normal:
        path = tree.path(parts)
        crops = _squares(path)
        if crops is None:  # left whole, so that `check` meets the damaged file and names it
            unread += 1
            found.records.append(Record(path, NORMAL, kind="good"))
        else:
            found.records += [Record(path, NORMAL, kind="good", crop=crop) for crop in crops]
    masks: dict[str, list[Path]] = {}
    for parts in tree.under("mask_images"):
        masks.setdefault(Path(parts[-1]).stem.partition("_mask")[0], []).append(tree.path(parts))
    left_out = []
    for parts in defect:
        path = tree.path(parts)
        squares = _defect_squares(path, masks.pop(path.stem, []))
        found.records += squares
        if not squares:
            left_out.append(path.name)
    strips = len({record.path for record in found.records})
    found.notes.append(
        f"{strips} strips were cut into {len(found.records)} squares; squares of defect strips "
        "without a defect pixel are normal and in the test split."
    )
    if left_out:
        found.notes.append(
            f"{len(left_out)} defect strips have no mask of their size and are left out: "
            f"{_some(left_out)}."
        )
    if unread:
        found.notes.append(f"{unread} normal strips cannot be read.")
    found.spare_masks += [path for paths in masks.values() for path in paths]
    return found


def _defect_squares(path: Path, mask_paths: list[Path]) -> list[Record]:
    """The squares of one strip; a few strips have several masks, one per defect.

    Empty without a mask that can be read and has the size of the strip.
    """
    # The names are number_defect_fabric: the second field is the code of the defect.
    kind = [*path.stem.split("_"), "defect"][1]
    try:
        masks = [(mask, read_mask(mask)) for mask in mask_paths]
        size = stored_size(path)
    except ImageError:
        return []
    if not masks or any(mask.shape != size for _, mask in masks):
        return []
    records = []
    for crop in _squares(path) or []:
        top, left, height, width = crop
        hit = [file for file, mask in masks if mask[top : top + height, left : left + width].any()]
        if hit:
            truth = hit[0] if len(hit) == 1 else tuple(hit)
            records.append(Record(path, ANOMALOUS, truth, "test", kind, crop=crop))
        else:
            records.append(Record(path, NORMAL, None, "test", "good", crop=crop))
    return records


def _squares(path: Path) -> list[Crop] | None:
    """(top, left, side, side) along the longer side of a strip; None when it cannot be read."""
    try:
        H, W = stored_size(path)
    except ImageError:
        return None
    side = min(H, W)
    if W >= H:
        return [(0, i * side, side, side) for i in range(W // side)]
    return [(i * side, 0, side, side) for i in range(H // side)]


def read_elpv_folder(tree: Tree, choices: Choices) -> Found | None:
    """ELPV as a folder: `labels.csv` (path, probability, mono or poly) and `images/`."""
    if ("labels.csv",) not in tree.tables or not tree.under("images"):
        return None
    rows = _elpv_rows(tree.path(("labels.csv",)))
    return None if rows is None else _elpv(tree, rows, choices)


def elpv_package() -> Tree:
    """The tree of the installed `elpv-dataset`, found without importing it.

    Raises MissingDependencyError when it is not installed.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    places = spec.submodule_search_locations if spec is not None else None
    root = Path(next(iter(places))) / "data" if places else None
    if root is None or not (root / "labels.csv").is_file():
        raise MissingDependencyError(
            "The solar cells of ELPV are not installed.", hint="Run: pip install elpv-dataset"
        )
    return scan(root)


def _elpv_rows(table: Path) -> list[tuple[str, float, str]] | None:
    """(path, defect probability, cell type) per line; None when the table is of another kind."""
    rows = []
    for line in read_text(table).splitlines():
        fields = line.replace(",", " ").split()
        if not fields:
            continue
        try:
            path, probability, cell = fields
            rows.append((path, float(probability), cell))
        except ValueError:
            return None
        if cell not in ("mono", "poly"):
            return None
    return rows


def _elpv(tree: Tree, rows: list[tuple[str, float, str]], choices: Choices) -> Found:
    if choices.part not in ("", "mono", "poly"):
        raise OptionError(f'ELPV has no part "{choices.part}"; allowed are "mono" and "poly".')
    least = choices.elpv_anomalous
    if not 0 < least <= 1:
        raise OptionError(
            f"elpv_anomalous is {least:g}; allowed is a defect probability above 0 and up to 1."
        )
    found = Found("elpv", [])
    present = set(tree.images)
    between = 0
    missing: list[str] = []
    for name, probability, cell in rows:
        parts: Parts = tuple(name.split("/"))
        if choices.part not in ("", cell):
            continue
        if parts not in present:
            missing.append(name)
        elif probability == 0:
            found.records.append(Record(tree.path(parts), NORMAL, kind=f"{cell}_good"))
        elif probability >= least - 0.01:  # the experts' steps are thirds: 0.66 means 2/3
            found.records.append(Record(tree.path(parts), ANOMALOUS, kind=f"{cell}_defective"))
        else:
            between += 1
    said = f"Normal cells have defect probability 0, anomalous ones {least:g} or more"
    found.notes.append(f"{said}; the {between} cells between are left out.")
    if missing:
        found.notes.append(f"{len(missing)} cells of labels.csv are missing: {_some(missing)}.")
    return found


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
