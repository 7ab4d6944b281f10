"""Protocols that show some defects: what is known, what is judged, what is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from amiss.data.index import Dataset, index
from amiss.data.known_anomalies import asked_known
from amiss.errors import DataError
from amiss.types import ANOMALOUS, Record

KINDS = {"crack": 7, "dent": 5, "stain": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An MVTec layout of empty files: nothing is decoded."""
    for place, count in (
        ("train/good", 6), ("test/good", 3), *((f"test/{k}", n) for k, n in KINDS.items())
    ):  # fmt: skip
        for i in range(count):
            path = tmp_path / place / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return tmp_path


def kinds(records: tuple[Record, ...]) -> dict[str | None, int]:
    return dict(Counter(r.kind for r in records if r.label == ANOMALOUS))


def paths(records: tuple[Record, ...]) -> set[Path]:
    return {r.path for r in records}


def test_known_anomalies_of_all_kinds_leave_the_test(folder: Path) -> None:
    whole, found = index(folder), index(f"multi_class:10:{folder}")
    known = found.train_anomalous
    assert len(known) == 10 and len(found.test) == len(whole.test) - 10
    assert min(kinds(known).values()) == 3  # ten over three kinds: three each, and one more
    assert paths(known) | paths(found.test) == paths(whole.test)
    assert not paths(known) & paths(found.test)
    assert found.train == whole.train
    assert found.name == f"{folder.name} multi_class 10"
    assert any("10 anomalous images are known" in note for note in found.notes)


def test_one_kind_is_known_and_none_of_it_is_judged(folder: Path) -> None:
    found = index(f"one_class:dent/3:{folder}")
    assert kinds(found.train_anomalous) == {"dent": 3}
    assert kinds(found.test) == {"crack": 7, "stain": 4}
    assert found.name == f"{folder.name} one_class dent/3"
    assert sum(r.label == 0 for r in found.test) == 3


def test_another_seed_is_another_draw_and_the_same_seed_the_same(folder: Path) -> None:
    def known(source: str) -> set[Path]:
        return paths(index(source).train_anomalous)

    first = known(f"multi_class:4:{folder}")
    assert known(f"multi_class:4@0:{folder}") == first
    others = [known(f"multi_class:4@{seed}:{folder}") for seed in (1, 2, 3)]
    assert any(other != first for other in others)
    assert index(f"multi_class:4@2:{folder}").name.endswith("multi_class 4 seed 2")


def test_a_draw_does_not_depend_on_the_place_or_the_order_of_files(folder: Path) -> None:
    from amiss.data.known_anomalies import AskedKnown, with_known

    whole = index(folder)
    turned = Dataset(whole.name, whole.layout, whole.root, whole.records[::-1])
    asked = AskedKnown(None, 5, 1, "")
    assert paths(with_known(turned, asked).train_anomalous) == paths(
        with_known(whole, asked).train_anomalous
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("multi_class:99:{}", "asks for 99 known anomalies, and there are 16"),
        ("multi_class:0:{}", "asks for none"),
        ("multi_class:16:{}", "leaves no anomalous image to be judged"),
        ("one_class:dent/6:{}", "asks for 6 known anomalies, and there are 5"),
        ("one_class:scratch/2:{}", "no anomalous test images of the kind 'scratch'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(folder: Path, source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        index(source.format(folder))


def test_the_kinds_are_named_where_one_is_misspelt(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        index(f"one_class:dant/2:{folder}")
    assert "crack, dent, stain" in str(caught.value)


def test_a_class_of_a_set_of_classes_is_another_protocol() -> None:
    assert asked_known("one_class:3:folder") is None
    assert asked_known("leave_one_out:3:folder") is None
    asked = asked_known("one_class:broken/large/3@4:elpv:mono")
    assert asked is not None
    assert (asked.kind, asked.number, asked.seed, asked.source) == (
        "broken/large", 3, 4, "elpv:mono",
    )  # fmt: skip
