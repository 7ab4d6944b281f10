"""The normal images of a fit: which have been read, and which belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from amiss.data.stream import ImageStream, digest
from amiss.learning.normals import Normals, to_tensors
from amiss.types import Record
from made_images import write


def normals_of(records: list[Record], **options: object) -> Normals:
    return Normals(ImageStream(records, size=(12, 16), **options))  # type: ignore[arg-type]


def read(images: Normals) -> Normals:
    for batch in images.batches(5):
        assert len(batch.images)
    return images


def test_a_pass_over_some_images_counts_in_the_whole_set(normals: Path) -> None:
    paths = sorted(normals.iterdir())
    images = normals_of([Record(path) for path in paths])
    assert len(images) == 12
    batches = list(images.only(np.array([2, 3, 7]), 2))
    assert [batch.indices.tolist() for batch in batches] == [[2, 3], [7]]
    assert images.digests == {i: digest(paths[i].read_bytes()) for i in (2, 3, 7)}
    whole = [i for batch in images.batches(5) for i in batch.indices.tolist()]
    assert whole == list(range(12)) and len(images.digests) == 12


def test_digests_go_through_a_file_and_back(normals: Path) -> None:
    records = [Record(path) for path in sorted(normals.iterdir())]
    images = read(normals_of(records))
    rows = images.digest_rows(9)
    assert rows.shape == (9, 8)
    again = normals_of(records)
    again.restore_digests(rows)
    assert again.digests == {i: images.digests[i] for i in range(9)}


def test_images_without_anything_in_common_are_groups_of_their_own(normals: Path) -> None:
    images = read(normals_of([Record(path) for path in sorted(normals.iterdir())]))
    assert images.groups().tolist() == list(range(12))


def test_cuts_of_one_file_and_equal_files_belong_together(normals: Path, tmp_path: Path) -> None:
    a, b, c = sorted(normals.iterdir())[:3]
    copy = Path(shutil.copy(b, tmp_path / "copy.png"))
    left, right = (0, 0, 60, 40), (0, 40, 60, 40)
    records = [
        Record(a, crop=left),
        Record(b),
        Record(c),
        Record(a, crop=right),
        Record(copy),
    ]
    assert read(normals_of(records)).groups().tolist() == [0, 1, 2, 0, 1]


def test_a_copy_joins_its_file_whose_cuts_stand_elsewhere(normals: Path, tmp_path: Path) -> None:
    a = sorted(normals.iterdir())[0]
    copy = Path(shutil.copy(a, tmp_path / "copy.png"))
    left, right = (0, 0, 60, 40), (0, 40, 60, 40)
    records = [Record(a, crop=left), Record(copy, crop=left), Record(copy, crop=right)]
    assert read(normals_of(records)).groups().tolist() == [0, 0, 0]


def test_what_decides_the_pixels_is_named(normals: Path, tmp_path: Path) -> None:
    records = [Record(path) for path in sorted(normals.iterdir())]
    half = np.zeros((60, 80), np.uint8)
    half[:, :40] = 255
    roi = write(half, tmp_path / "roi.png")
    plain, wide = normals_of(records), normals_of(records, window="0:4095")
    masked = normals_of(records, roi=roi)
    assert plain.reading() == normals_of(records).reading()
    assert len({str(images.reading()) for images in (plain, wide, masked)}) == 3
    before = masked.reading()
    half[:, 40:] = 255
    write(half, roi)
    assert masked.reading() != before


@pytest.mark.parametrize("writeable", [True, False])
def test_arrays_become_tensors_of_the_networks_axes(writeable: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    images.flags.writeable = writeable
    rois = np.ones((2, 4, 5), dtype=np.bool_)
    x, none = to_tensors(images, None)
    assert x.shape == (2, 3, 4, 5) and none is None
    assert np.array_equal(x.numpy(), images.transpose(0, 3, 1, 2))
    _, roi = to_tensors(images, rois)
    assert roi is not None and np.array_equal(roi.numpy(), rois)


def test_what_is_tied_through_a_third_image_belongs_together(normals: Path, tmp_path: Path) -> None:
    first, other = sorted(normals.iterdir())[:2]
    copy = tmp_path / "copy.png"
    shutil.copyfile(first, copy)
    left, right = (0, 0, 60, 40), (0, 40, 60, 40)
    cuts = [(first, left), (copy, right), (other, None), (first, right)]
    records = [Record(path, crop=crop) for path, crop in cuts]
    assert normals_of(records).groups().tolist() == [0, 0, 1, 0]  # nothing was read before


def test_a_file_that_is_not_there_is_a_group_of_its_own(normals: Path, tmp_path: Path) -> None:
    records = [Record(tmp_path / "gone.png"), Record(sorted(normals.iterdir())[0])]
    assert normals_of(records).groups().tolist() == [0, 1]
