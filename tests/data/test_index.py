"""Recognising the layouts of sets, with labels, masks and splits."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amiss.data import index
from amiss.data.layouts import label_of_folder
from amiss.errors import DataError, MissingDependencyError, OptionError
from amiss.types import ANOMALOUS, NORMAL, Record


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


def masks(dataset):
    """image -> mask, as relative paths."""
    return {
        r.path.relative_to(dataset.root).as_posix(): r.mask.relative_to(dataset.root).as_posix()
        for r in dataset.records
        if r.mask is not None
    }


# --- flat and two folders


def test_flat_folder_is_all_normal(tmp_path):
    make(tmp_path, "{4}.png", "b.JPG", "c.tiff")
    make(tmp_path, "deeper/x.png")
    dataset = index(tmp_path)
    assert dataset.layout == "flat" and dataset.name == tmp_path.name
    assert splits(dataset) == {("train", NORMAL): 6}
    assert len(dataset.train) == 6 and not dataset.test and not dataset.train_anomalous
    assert "1 images in sub-folders are not used" in dataset.describe()
    assert len(index(str(tmp_path), layout="nested").train) == 7


def test_what_is_passed_over_is_said(tmp_path):
    make(tmp_path, "a.png", ".hidden.png", "__MACOSX/b.png", ".git/c.png")
    for name in ("Thumbs.db", ".DS_Store", "readme.txt", "model.pt", "x.gif"):
        (tmp_path / name).write_bytes(b"x")
    dataset = index(tmp_path)
    assert [record.path.name for record in dataset.records] == ["a.png"]
    text = dataset.describe()
    assert "5 hidden or system files" in text and "1 GIF files" in text
    assert "2 files that are no images passed over: 1 .pt, 1 .txt" in text


@pytest.mark.parametrize("normal", ["good", "OK", "Normal"])
def test_two_folders(tmp_path, normal):
    make(tmp_path, f"{normal}/{{10}}.png", "scratch/{3}.png", "dent/deep/{2}.png")
    dataset = index(tmp_path)
    assert dataset.layout == "two_folder"
    assert splits(dataset) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 5}
    assert {r.kind for r in dataset.test} == {normal, "scratch", "dent"}
    assert "dent 2, scratch 3" in dataset.describe()
    assert "Files without a split: 2 of 10 normal ones" in dataset.describe()
    assert dataset.counts()["test"]["kind:scratch"] == 3


def test_the_split_is_stable_and_seeded(tmp_path):
    make(tmp_path, "a/good/{30}.png", "a/bad/{3}.png")
    first, again = index(tmp_path / "a"), index(tmp_path / "a")
    assert first == again
    assert len(index(tmp_path / "a", seed=1).test) == len(first.test)
    assert index(tmp_path / "a", seed=1).records != first.records
    os.rename(tmp_path / "a", tmp_path / "moved")
    keys = [first.key(record) for record in first.test]
    moved = index(tmp_path / "moved")
    assert [moved.key(record) for record in moved.test] == keys
    # One image more moves at most one of the others.
    make(tmp_path, "moved/good/zzz.png")
    more = index(tmp_path / "moved")
    assert len({more.key(r) for r in more.test} - set(keys)) <= 1
    assert len(index(tmp_path / "moved", test_fraction=0.5).train) == 15
    assert splits(index(tmp_path / "moved", test_fraction=0)) == {("train", 0): 31, ("test", 1): 3}
    with pytest.raises(OptionError, match="test_fraction is 1"):
        index(tmp_path / "moved", test_fraction=1)


def test_two_folders_with_masks(tmp_path):
    make(tmp_path, "good/{2}.png", "bad/{2}.jpg", "hole/000.jpg", "hole/000_mask.png")
    make(tmp_path, "ground_truth/bad/000_mask.png", "ground_truth/bad/001.png")
    make(tmp_path, "ground_truth/bad/009_mask.png")
    dataset = index(tmp_path)
    assert len(dataset.records) == 5
    assert masks(dataset) == {
        "bad/000.jpg": "ground_truth/bad/000_mask.png",
        "bad/001.jpg": "ground_truth/bad/001.png",
        "hole/000.jpg": "hole/000_mask.png",
    }
    assert [mask.name for mask in dataset.spare_masks] == ["009_mask.png"]
    assert dataset.has_masks


def test_masks_in_a_folder_beside_the_images_of_a_kind(tmp_path):
    make(tmp_path, "good/{2}.png", "bad/images/{2}.png", "bad/masks/{2}.png", "bad/masks/x.png")
    dataset = index(tmp_path)
    assert len(dataset.records) == 4
    assert masks(dataset)["bad/images/000.png"] == "bad/masks/000.png"
    assert len(dataset.spare_masks) == 1


def test_mask_dir(tmp_path):
    make(tmp_path, "set/good/{2}.png", "set/bad/{2}.png", "truth/bad/{2}_mask.png")
    dataset = index(tmp_path / "set", mask_dir=tmp_path / "truth")
    assert sum(record.mask is not None for record in dataset.records) == 2
    make(tmp_path, "flat_truth/001.png")
    dataset = index(tmp_path / "set", mask_dir=tmp_path / "flat_truth")
    # The normal image of the same name does not take it.
    assert [r.path.parent.name for r in dataset.records if r.mask] == ["bad"]
    make(tmp_path, "foreign/zzz.png", "empty/x.txt.png")
    with pytest.raises(DataError, match="none of the 1 images here has the name"):
        index(tmp_path / "set", mask_dir=tmp_path / "foreign")
    with pytest.raises(DataError, match="no folder"):
        index(tmp_path / "set", mask_dir=tmp_path / "gone")
    with pytest.raises(OptionError, match="mask_dir is for the layouts"):
        index(tmp_path / "set/good", mask_dir=tmp_path / "truth")


def test_a_mask_that_fits_two_images_is_an_error(tmp_path):
    make(tmp_path, "good/{2}.png", "bad/000.png", "dent/000.png", "masks/000.png")
    with pytest.raises(DataError, match="fits two images"):
        index(tmp_path)


def test_images_named_like_masks_stay_images_where_nothing_else_is_one(tmp_path):
    make(tmp_path, "paper_mask.png", "silk_mask.png")
    assert len(index(tmp_path).train) == 2
    make(tmp_path, "silk.png", "wool_mask.png")
    dataset = index(tmp_path)
    assert [record.path.name for record in dataset.train] == ["silk.png"]
    assert [mask.name for mask in dataset.spare_masks] == [
        "paper_mask.png",
        "silk_mask.png",
        "wool_mask.png",
    ]


def test_no_means_normal_only_beside_yes():
    assert label_of_folder("no", ["no", "Yes"]) == NORMAL
    assert label_of_folder("No", ["no", "other"]) == ANOMALOUS
    assert label_of_folder("GOOD", ["GOOD"]) == NORMAL


def test_brain_mri_with_the_second_copy_of_the_archive(tmp_path):
    make(tmp_path, "yes/Y{4}.jpg", "no/{10} no.jpg")
    make(tmp_path, "brain_tumor_dataset/yes/Y{4}.jpg", "brain_tumor_dataset/no/{10} no.jpg")
    dataset = index(tmp_path)
    assert dataset.layout == "brainmri"
    assert splits(dataset) == {("train", 0): 8, ("test", 0): 2, ("test", 1): 4}
    assert "14 images outside these folders are not used" in dataset.describe()


# --- train and test


def make_mvtec(root: Path) -> None:
    make(root, "train/good/{5}.png", "test/good/{2}.png", "test/crack/{3}.png", "test/dent/{2}.png")
    make(root, "ground_truth/crack/{3}_mask.png", "ground_truth/dent/000_mask.png")


def test_mvtec(tmp_path):
    make_mvtec(tmp_path)
    dataset = index(tmp_path)
    assert dataset.layout == "mvtec"
    assert splits(dataset) == {("train", 0): 5, ("test", 0): 2, ("test", 1): 5}
    found = masks(dataset)
    assert len(found) == 4 and found["test/dent/000.png"] == "ground_truth/dent/000_mask.png"
    counts = dataset.counts()
    assert counts["test"] == {
        "normal": 2,
        "anomalous": 5,
        "unlabelled": 0,
        "masks": 4,
        "kind:crack": 3,
        "kind:dent": 2,
        "kind:good": 2,
    }
    lines = dataset.describe().splitlines()
    assert "MVTec AD" in lines[0]
    assert lines[1].split() == ["train", "5", "normal"]
    assert "5 anomalous (crack 3, dent 2), 4 masks" in lines[2]
    assert index(dataset) is dataset


def test_labelled_training_anomalies_take_no_mask_of_the_test_split(tmp_path):
    make_mvtec(tmp_path)
    make(tmp_path, "train/crack/{3}.png", "ground_truth/train/crack/001_mask.png")
    dataset = index(tmp_path)
    assert len(dataset.train) == 5 and len(dataset.train_anomalous) == 3
    found = masks(dataset)
    assert found["test/crack/001.png"] == "ground_truth/crack/001_mask.png"
    assert found["train/crack/001.png"] == "ground_truth/train/crack/001_mask.png"
    assert "train/crack/000.png" not in found


def test_train_and_test_right_in_their_folders(tmp_path):
    make(tmp_path, "Train/{4}.png", "Test/{2}.png", "validation/good/x.png")
    dataset = index(tmp_path)
    assert splits(dataset) == {("train", 0): 4, ("test", None): 2}
    assert "2 unlabelled" in dataset.describe() and "no label" in dataset.describe()
    assert "1 images outside train/ and test/" in dataset.describe()


def test_train_without_a_normal_folder_is_an_error(tmp_path):
    make(tmp_path, "train/a/x.png", "train/b/x.png", "test/good/x.png")
    with pytest.raises(DataError, match="the folders a, b, and none is named good"):
        index(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_btad(tmp_path, suffix):
    make(tmp_path, f"train/ok/{{4}}.{suffix}", f"test/ok/{{2}}.{suffix}", f"test/ko/{{3}}.{suffix}")
    make(tmp_path, f"ground_truth/ko/{{3}}.{'png' if suffix == 'bmp' else 'bmp'}")
    dataset = index(tmp_path)
    assert dataset.layout == "btad"
    assert splits(dataset) == {("train", 0): 4, ("test", 0): 2, ("test", 1): 3}
    assert len(masks(dataset)) == 3


def test_a_root_of_many_categories_is_named(tmp_path):
    make_mvtec(tmp_path / "bottle")
    make_mvtec(tmp_path / "cable")
    with pytest.raises(DataError, match="holds 2 sets: bottle, cable") as caught:
        index(tmp_path)
    assert "bottle" in caught.value.hint
    make_mvtec(tmp_path / "alone" / "wrapped" / "bottle")
    assert len(index(tmp_path / "alone").records) == 12


# --- sets with layouts of their own


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
    assert "1 defect strips have no mask" in dataset.describe()
    assert "0100_025_08.png" in dataset.describe()
    assert len({dataset.key(r) for r in dataset.records}) == len(dataset.records)


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


# --- tables


def test_csv(tmp_path):
    make(tmp_path, "set/images/{6}.png", "set/masks/004.png", "elsewhere.png")
    (tmp_path / "set/table.csv").write_text(
        "path,label,mask,split,kind\n"
        "images/000.png,normal,,train,\n"
        "images/001.png,0,,train,\n"
        "images/002.png,Good,,test,\n"
        "\n"
        "images/004.png,defect,masks/004.png,test,hole\n"
        '"../elsewhere.png",1,,train,\n',
        encoding="utf-8-sig",
    )
    dataset = index(tmp_path / "set/table.csv")
    assert dataset.layout == "table" and dataset.name == "table"
    assert splits(dataset) == {
        ("train", 0): 2,
        ("test", 0): 1,
        ("test", 1): 1,
        ("train", 1): 1,
    }
    assert dataset.test[1].kind == "hole" and dataset.test[1].mask.name == "004.png"
    assert "1 images lie outside the folder of the table" in dataset.describe()


def test_csv_of_european_spreadsheets_and_tables_without_labels(tmp_path):
    make(tmp_path, "{6}.png")
    rows = "".join(f"{i:03}.png;{'ok' if i else 'ko'}\n" for i in range(6))
    (tmp_path / "a.csv").write_text(f"Path; Label\r\n{rows}")
    assert splits(index(tmp_path / "a.csv")) == {("train", 0): 4, ("test", 0): 1, ("test", 1): 1}
    (tmp_path / "b.csv").write_text("path\n000.png\n001.png\n")
    dataset = index(tmp_path / "b.csv")
    assert splits(dataset) == {("train", 0): 2} and "no label column" in dataset.describe()


def test_jsonl(tmp_path):
    make(tmp_path, "{4}.png")
    rows = [{"path": "000.png", "label": 0}, {"path": "001.png", "label": 1, "mask": None}]
    rows.append({"path": "002.png", "label": "normal", "split": "test"})
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert splits(index(tmp_path / "t.jsonl")) == {
        ("train", 0): 1,
        ("test", 1): 1,
        ("test", 0): 1,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\n000.png,0\ngone.png,0\n", "line 3: path gone.png does not exist"),
        ("path,label\n000.png,0\n001.png,perhaps\n", 'line 3: unknown label "perhaps"'),
        ("path,label\n000.png,\n", 'line 2: unknown label ""'),
        ("path,split\n000.png,val\n", 'line 2: unknown split "val"'),
        ("path,colour\n000.png,red\n", 'line 2: unknown column "colour"'),
        ("label\n0\n", "line 2: there is no column path"),
        ("path,label\n000.png\n", "line 2: 1 fields"),
        ("path,label\n,0\n", "line 2: path is empty"),
        ("path,label\n000.png,0\n./000.png,0\n", "line 3: the image of line 2 again"),
        ("path,mask\n000.png,m.png\n", "mask m.png does not exist"),
        ("path\n" + "gone.png\n" * 9, "and 4 more"),
        ("path,label\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_csv_errors_name_the_line(tmp_path, text, words):
    make(tmp_path, "{2}.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        index(tmp_path / "t.csv")
    assert words in str(caught.value) and "t.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"path": "000.png"}\n{"path"\n', "line 2: no JSON"),
        ("[1]\n", "line 1: is no JSON object"),
        ('{"path": ["000.png"]}\n', "line 1: ['000.png'] is neither text"),
        ('{"path": "000.png", "colour": 1}\n', 'unknown column "colour"'),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path, text, words):
    make(tmp_path, "{2}.png")
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        index(tmp_path / "t.jsonl")
    assert words in str(caught.value)


def test_tables_that_are_no_text(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\xfe\xfa.png\n")
    with pytest.raises(DataError, match="UTF-8"):
        index(tmp_path / "t.csv")


# --- lists, and what is no set


def test_lists(tmp_path):
    make(tmp_path, "{3}.png")
    paths = sorted(tmp_path.iterdir())
    dataset = index(paths)
    assert dataset.root is None and splits(dataset) == {("train", 0): 3}
    assert index([str(path) for path in paths]).records == dataset.records
    records = [Record(paths[0], 0, split="train"), Record(paths[1], 1, split="test")]
    assert index(records).records == tuple(records)
    open_records = [Record(path, i % 2) for i, path in enumerate(paths)]
    assert {r.split for r in index(open_records).records} == {"train", "test"}
    with pytest.raises(DataError, match="no images"):
        index([])
    with pytest.raises(OptionError, match="source is a list"):
        index(paths, layout="flat")


def test_errors_list_what_was_found(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        index(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no image files were found\. 1 files that are no images"):
        index(tmp_path)
    with pytest.raises(DataError, match="a set is a folder or a table"):
        index(tmp_path / "notes.txt")
    make(tmp_path, "dent/{2}.png", "scratch/{3}.png")
    with pytest.raises(DataError) as caught:
        index(tmp_path)
    text = str(caught.value)
    assert "dent/ (2 images), scratch/ (3 images)" in text
    assert "train/good" in text and "nested" in text and "good/" in text
    with pytest.raises(DataError, match='not of the layout "mvtec"'):
        index(tmp_path, layout="mvtec")
    with pytest.raises(OptionError, match='no layout "coco"'):
        index(tmp_path, layout="coco")
    with pytest.raises(OptionError, match="are for ELPV"):
        index(tmp_path, layout="nested", elpv_anomalous=0.5)


def test_a_single_folder_of_defects_is_not_taken_as_normal(tmp_path):
    make(tmp_path, "defect/{2}.png")
    with pytest.raises(DataError, match="none of the layouts fits"):
        index(tmp_path)
    make(tmp_path, "../other/photos/{2}.png")
    assert len(index(tmp_path.parent / "other").train) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_in_a_circle_end(tmp_path):
    make(tmp_path, "good/{3}.png", "bad/{2}.png")
    (tmp_path / "good/again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "bad/self").symlink_to(tmp_path / "bad", target_is_directory=True)
    dataset = index(tmp_path)
    assert len(dataset.records) == 5
    assert "2 folders reached again through links" in dataset.describe()
    (tmp_path / "bad/broken.png").symlink_to(tmp_path / "gone.png")
    assert len(index(tmp_path).records) == 6  # `check` names it; reading it says why not
