"""Recognising the layouts of sets, with labels, masks and splits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amiss.data import index
from amiss.data.layouts import label_of_folder
from amiss.errors import DataError, OptionError
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
