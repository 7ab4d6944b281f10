"""The public sets with layouts of their own, built small."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amiss.data import check, index, read_mask
from amiss.errors import DataError, ImageError, MissingDependencyError, OptionError
from amiss.types import ANOMALOUS


def make(root: Path, *names: str, size: tuple[int, int] = (6, 8), value: int = 90) -> None:
    """Write small images; a name may hold a range such as `good/{3}.png` for three files."""
    for name in names:
        count = int(name.partition("{")[2].partition("}")[0] or 0)
        for i in range(max(1, count)):
            path = root / name.replace(f"{{{count}}}", f"{i:03}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(size, value, np.uint8)).save(path)


def splits(dataset):
    """(split, label) -> number."""
    return dict(Counter((record.split, record.label) for record in dataset.records))


def test_mtd(tmp_path):
    root = tmp_path / "Magnetic-tile-defect-datasets"
    make(root, "MT_Free/Imgs/{10}.jpg", "MT_Free/Imgs/{10}.png")
    make(root, "MT_Blowhole/Imgs/{3}.jpg", "MT_Blowhole/Imgs/{3}.png", "MT_Fray/Imgs/{2}.jpg")
    make(root, "MT_Fray/Imgs/{2}.png", "MT_Fray/Imgs/spare.png")
    dataset = index(tmp_path)
    assert dataset.layout == "mtd"
    assert splits(dataset) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 5}
    assert {r.kind for r in dataset.test} == {"good", "blowhole", "fray"}
    assert all((r.mask is not None) == (r.label == ANOMALOUS) for r in dataset.records)
    assert [mask.name for mask in dataset.spare_masks] == ["spare.png"]


def test_head_ct(tmp_path):
    make(tmp_path, "head_ct/head_ct/{6}.png")
    rows = "\n".join(f"{i},{' 1' if i < 2 else ' 0'}" for i in range(7))
    (tmp_path / "labels.csv").write_text(f"id, hemorrhage\n{rows}\n")
    dataset = index(tmp_path)
    assert dataset.layout == "headct"
    assert splits(dataset) == {("train", 0): 3, ("test", 0): 1, ("test", 1): 2}
    assert "1 rows of labels.csv have no image: 6" in dataset.describe()
    (tmp_path / "labels.csv").write_text("id, hemorrhage\n0, maybe\n")
    with pytest.raises(DataError, match='line 2: id "0", hemorrhage "maybe"'):
        index(tmp_path)


def test_aitex(tmp_path):
    make(tmp_path, "NODefect_images/2306/000{5}.png", size=(16, 64))
    make(tmp_path, "Defect_images/0001_002_00.png", "Defect_images/0002_019_01.png", size=(16, 70))
    make(tmp_path, "Defect_images/0100_025_08.png", size=(16, 64))
    mask = np.zeros((16, 70), np.uint8)
    mask[3:5, 14:20] = 255  # reaches into the first two squares
    (tmp_path / "Mask_images").mkdir()
    Image.fromarray(mask).save(tmp_path / "Mask_images/0001_002_00_mask.png")
    for number, left in (("1", 0), ("2", 40)):
        mask = np.zeros((16, 70), np.uint8)
        mask[5, left] = 255
        Image.fromarray(mask).save(tmp_path / f"Mask_images/0002_019_01_mask{number}.png")
    dataset = index(tmp_path)
    assert dataset.layout == "aitex"
    train_strips = {r.path.name for r in dataset.train}
    assert len(dataset.train) == 16 and len(train_strips) == 4
    # A whole strip goes to one side.
    assert not train_strips & {r.path.name for r in dataset.test}
    strips = {}
    for r in dataset.test:
        strips.setdefault(r.path.name, []).append((r.crop[1], r.label, r.kind))
    assert strips["0001_002_00.png"] == [
        (0, 1, "002"),
        (16, 1, "002"),
        (32, 0, "good"),
        (48, 0, "good"),
    ]
    chosen = {r.crop[1]: r.mask.name for r in dataset.test if r.mask and "0002" in r.mask.name}
    assert chosen == {0: "0002_019_01_mask1.png", 32: "0002_019_01_mask2.png"}
    assert all(isinstance(r.mask, Path) for r in dataset.test if r.label == ANOMALOUS)
    assert "1 defect strips have no mask" in dataset.describe()
    assert "0100_025_08.png" in dataset.describe()
    assert len({dataset.key(r) for r in dataset.records}) == len(dataset.records)


def make_strip_with_two_masks(root: Path) -> None:
    """One strip of four squares: the first mask hits squares 0 and 1, the second 1 and 2."""
    make(root, "NODefect_images/2306/000{2}.png", size=(16, 64))
    make(root, "Defect_images/0002_019_01.png", size=(16, 64))
    for number, columns in (("1", slice(12, 20)), ("2", slice(28, 34))):
        mask = np.zeros((16, 64), np.uint8)
        mask[4:7, columns] = 255
        path = root / f"Mask_images/0002_019_01_mask{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)


def test_aitex_joins_the_masks_of_a_strip(tmp_path):
    make_strip_with_two_masks(tmp_path)
    dataset = index(tmp_path)
    squares = {r.crop[1] // 16: r for r in dataset.test if "Defect_images" in r.path.parts}
    assert [squares[i].label for i in range(4)] == [1, 1, 1, 0]
    names = [tuple(mask.name[-9:-4] for mask in squares[i].masks) for i in range(4)]
    assert names == [("mask1",), ("mask1", "mask2"), ("mask2",), ()]
    truth = read_mask(squares[1].mask, crop=squares[1].crop)
    expected = np.zeros((16, 16), dtype=bool)
    expected[4:7, :4] = expected[4:7, 12:] = True
    assert np.array_equal(truth, expected)
    assert dataset.counts()["test"]["masks"] == 3 and not dataset.spare_masks
    assert not [f for f in check(dataset).findings if f.code.startswith("mask-")]


def test_masks_of_one_image_that_differ_in_size_are_a_named_error(tmp_path):
    make(tmp_path, "a.png", size=(6, 8), value=255)
    make(tmp_path, "b.png", size=(6, 9), value=255)
    with pytest.raises(ImageError, match=r"b\.png: is 6 x 9 pixels, and .*a\.png.* 6 x 8"):
        read_mask((tmp_path / "a.png", tmp_path / "b.png"))
    with pytest.raises(ImageError, match="empty list"):
        read_mask(())


def make_elpv(root: Path) -> None:
    make(root, "images/cell{12}.png")
    steps = [0.0, 0.3333333333333333, 0.6666666666666666, 1.0]
    lines = [
        f"images/cell{i:03}.png  {steps[0 if i < 6 else i % 4]:<18} {'mono' if i % 2 else 'poly'}"
        for i in range(12)
    ]
    (root / "labels.csv").write_text("\n".join(lines))


def test_elpv_folder(tmp_path):
    make_elpv(tmp_path)
    dataset = index(tmp_path)
    assert dataset.layout == "elpv"
    assert splits(dataset) == {("train", 0): 6, ("test", 0): 1, ("test", 1): 2}
    assert "the 3 cells between are left out" in dataset.describe()
    assert sum(r.label == 1 for r in index(tmp_path, elpv_anomalous=0.66).records) == 4
    assert sum(r.label == 1 for r in index(tmp_path, elpv_anomalous=0.33).records) == 5
    mono = index(tmp_path, layout="elpv:mono")
    assert {r.kind.partition("_")[0] for r in mono.records} == {"mono"}
    for bad in (0, 1.5):
        with pytest.raises(OptionError, match="elpv_anomalous"):
            index(tmp_path, elpv_anomalous=bad)
    with pytest.raises(OptionError, match='no part "amorphous"'):
        index(tmp_path, layout="elpv:amorphous")


def test_elpv_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "elpv_dataset"
    make_elpv(package / "data")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path / "elpv_dataset" / "data" / "images")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    dataset = index("elpv:poly")
    assert dataset.name == "elpv:poly" and len(dataset.records) == 4
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingDependencyError, match="pip install elpv-dataset"):
        index("elpv")
