"""The stream: order, errors, regions of interest, and its threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from amiss.data import (
    ImageStream,
    inner_roi,
    read_image,
    resize_image,
    write_png,
)
from amiss.errors import DataError, ImageError, OptionError
from amiss.types import Record

H, W = 20, 30


@pytest.fixture
def rgb() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def save(array: npt.NDArray[np.generic], path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def make_set(folder: Path, count: int = 7) -> list[Record]:
    rng = np.random.default_rng(4)
    records = []
    for i in range(count):
        shape = (30 + i, 40, 3) if i % 3 else (30 + i, 40)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        records.append(Record(save(image, folder / f"{i}.png"), 0))
    return records


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
@pytest.mark.parametrize("mode", ["squash", "letterbox"])
def test_stream_equals_reading_and_resizing_by_hand(tmp_path, batch_size, mode):
    records = make_set(tmp_path)
    stream = ImageStream(records, size=(16, 24), mode=mode)
    assert len(stream) == 7
    seen = []
    for batch in stream.batches(batch_size):
        B = len(batch.indices)
        assert batch.images.shape == (B, 16, 24, 3) and batch.images.dtype == np.uint8
        assert batch.images.flags["C_CONTIGUOUS"] and batch.images.flags["WRITEABLE"]
        assert B == len(batch.geometries) == len(batch.digests) <= batch_size
        assert (batch.rois is None) == (mode == "squash")
        for row, i in enumerate(batch.indices):
            image, geometry = resize_image(read_image(records[i].path), (16, 24), mode)
            assert np.array_equal(batch.images[row], image)
            assert batch.geometries[row] == geometry
            if batch.rois is not None:
                inside = inner_roi(geometry)
                assert np.array_equal(batch.rois[row], inside if inside is not None else True)
        seen += batch.indices.tolist()
    assert seen == list(range(7))


def test_digests_tell_content_and_crop(tmp_path, rgb):
    a = save(rgb, tmp_path / "a.png")
    b = tmp_path / "b.png"
    b.write_bytes(a.read_bytes())
    c = save(rgb[::-1], tmp_path / "c.png")
    records = [Record(a), Record(b), Record(c), Record(a, crop=(0, 0, 9, 9))]
    records.append(Record(a, crop=(0, 9, 9, 9)))
    (batch,) = ImageStream(records, size=(8, 8)).batches(8)
    assert all(len(digest) == 8 for digest in batch.digests)
    assert batch.digests[0] == batch.digests[1]
    assert len(set(batch.digests)) == 4
    assert np.array_equal(batch.images[4], resize_image(rgb[:9, 9:18], (8, 8))[0])


def test_without_digests_batches_hold_none(tmp_path):
    records = make_set(tmp_path)
    asked = list(ImageStream(records, size=(8, 8)).batches(3))
    plain = list(ImageStream(records, size=(8, 8), digests=False).batches(3))
    assert [batch.digests for batch in plain] == [[], [], []]
    assert [len(batch.digests) for batch in asked] == [3, 3, 1]
    for one, other in zip(asked, plain, strict=True):
        assert np.array_equal(one.images, other.images)


def test_unreadable_images_raise_or_are_reported_in_order(tmp_path):
    records = make_set(tmp_path)
    records[2].path.write_bytes(b"")
    records[5].path.write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"2\.png"):
        list(ImageStream(records, size=(8, 8)).batches(3))
    reported = []
    stream = ImageStream(records, size=(8, 8), on_error=lambda r, e: reported.append((r, e)))
    batches = list(stream.batches(3))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 3], [4, 6]]
    assert [record for record, _ in reported] == [records[2], records[5]]
    assert all(isinstance(error, ImageError) for _, error in reported)


def decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("amiss-decode")]


def test_an_early_stop_ends_the_threads_and_reads_little(tmp_path, monkeypatch):
    records = [Record(save(np.zeros((9, 9), np.uint8), tmp_path / f"n{i}.png")) for i in range(200)]
    decoded = []
    original = ImageStream._decode
    monkeypatch.setattr(
        ImageStream,
        "_decode",
        lambda self, task, records: (decoded.append(task), original(self, task, records))[1],
    )
    batches = ImageStream(records, size=(8, 8), workers=2).batches(4)
    next(batches)
    batches.close()
    assert not decoding_threads()
    assert len(decoded) < 40
    with pytest.raises(ImageError):
        list(ImageStream([*records[:5], Record(tmp_path / "gone.png")], size=(8, 8)).batches(2))
    assert not decoding_threads()


def test_region_of_interest(tmp_path):
    records = make_set(tmp_path)[:3]
    roi = np.zeros((30, 40), np.uint8)
    roi[:, :20] = 255
    save(roi, tmp_path / "roi.png")
    own = np.zeros((31, 40), np.uint8)
    own[10:] = 1
    save(own, tmp_path / "own.png")
    records[1] = Record(records[1].path, 0, roi=tmp_path / "own.png")
    stream = ImageStream(records[:2], size=(16, 16), roi=tmp_path / "roi.png")
    (batch,) = stream.batches(2)
    assert batch.rois is not None and batch.rois.dtype == np.bool_
    assert batch.rois[0, :, :8].all() and not batch.rois[0, :, 8:].any()
    assert not batch.rois[1, :5].any() and batch.rois[1, 6:].all()
    # The third image is 32 x 40: the mask's aspect is more than 1 % off.
    with pytest.raises(DataError, match=r"30 x 40 pixels, and .*2\.png is 32 x 40"):
        list(ImageStream(records, size=(16, 16), roi=tmp_path / "roi.png").batches(2))


def test_region_of_interest_is_scaled_cropped_and_joined_with_the_letterbox(tmp_path):
    path = save(np.full((100, 200), 50, np.uint8), tmp_path / "x.png")
    roi = np.zeros((50, 100), bool)
    roi[:, 50:] = True
    write_png(roi, tmp_path / "roi.png")
    records = [Record(path), Record(path, crop=(0, 80, 100, 100))]
    stream = ImageStream(records, size=(20, 20), mode="letterbox", roi=tmp_path / "roi.png")
    (batch,) = stream.batches(2)
    assert batch.rois is not None
    expected = np.zeros((20, 20), bool)
    expected[5:15, 10:] = True
    assert np.array_equal(batch.rois[0], expected)
    expected[:] = False
    expected[:, 4:] = True
    assert np.array_equal(batch.rois[1], expected)
    with pytest.raises(DataError, match="nothing of"):
        records = [Record(path, crop=(0, 0, 50, 50))]
        list(ImageStream(records, size=(20, 20), roi=tmp_path / "roi.png").batches(1))


def test_a_region_that_covers_everything_is_none_and_an_empty_one_an_error(tmp_path, rgb):
    records = [Record(save(rgb, tmp_path / "x.png"))]
    write_png(np.ones((H, W), bool), tmp_path / "all.png")
    (batch,) = ImageStream(records, size=(8, 8), roi=tmp_path / "all.png").batches(1)
    assert batch.rois is None
    write_png(np.zeros((H, W), bool), tmp_path / "none.png")
    with pytest.raises(DataError, match="no positive pixel"):
        ImageStream(records, size=(8, 8), roi=tmp_path / "none.png")
    with pytest.raises(ImageError, match="no such file"):
        ImageStream(records, size=(8, 8), roi=tmp_path / "gone.png")


def test_stream_options_are_checked_at_once(tmp_path):
    for options in ({"size": (0, 8)}, {"size": (8, 8), "workers": 0}):
        with pytest.raises(OptionError):
            ImageStream([], **options)
    with pytest.raises(OptionError, match="LOW:HIGH"):
        ImageStream([], size=(8, 8), window="wide")
    with pytest.raises(OptionError, match="batch_size is 0"):
        ImageStream([], size=(8, 8)).batches(0)
    assert list(ImageStream([], size=(8, 8)).batches(2)) == []


def test_one_image_is_read_without_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr("amiss.data.stream.ThreadPoolExecutor", None)
    path = save(np.full((9, 9), 7, np.uint8), tmp_path / "a.png")
    stream = ImageStream([], size=(8, 8))
    batch = stream.read(Record(path))
    assert batch.images.shape == (1, 8, 8, 3) and (batch.images == 7).all()
    with pytest.raises(ImageError):
        stream.read(Record(tmp_path / "none.png"))
