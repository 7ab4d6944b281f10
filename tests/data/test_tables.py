"""CSV and JSONL tables of images."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amiss.data import index
from amiss.errors import DataError


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
