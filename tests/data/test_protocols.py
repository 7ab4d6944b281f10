"""Sets of classes in array files, and the protocols over them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

import amiss
from amiss.data.array_files import bytes_in_array, images_of, is_array_file, labels_of
from amiss.data.images import read_image
from amiss.data.index import Dataset, index
from amiss.data.stream import ImageStream
from amiss.errors import DataError, ImageError, OptionError
from amiss.learning.normals import Normals
from amiss.types import UInt8

CLASSES = 3
TRAIN, TEST = 30, 15  # images of all classes


def _images(count: int, seed: int, *, colour: bool = False) -> UInt8:
    shape = (count, 8, 8, 3) if colour else (count, 8, 8)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _labels(count: int) -> UInt8:
    return (np.arange(count) % CLASSES).astype(np.uint8)


def idx(path: Path, array: UInt8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    data += array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist(folder: Path, ending: str = ".gz") -> Path:
    for word, count, seed in (("train", TRAIN, 1), ("t10k", TEST, 2)):
        idx(folder / f"{word}-images-idx3-ubyte{ending}", _images(count, seed))
        idx(folder / f"{word}-labels-idx1-ubyte{ending}", _labels(count))
    return folder


def keys(dataset: Dataset, split: str) -> set[Path]:
    return {r.path for r in dataset.records if r.split == split}


@pytest.mark.parametrize("where", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_found_where_torchvision_puts_them(
    tmp_path: Path, where: str, ending: str
) -> None:
    mnist(tmp_path / where, ending)
    dataset = index(f"one_class:1:{tmp_path}")
    assert len(dataset.records) == TRAIN // CLASSES + TEST
    first = next(r for r in dataset.records if r.split == "train")
    pixels = read_image(first.path)
    assert np.array_equal(pixels[..., 0], _images(TRAIN, 1)[1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_npz_and_the_binary_version_of_cifar_are_read(tmp_path: Path) -> None:
    npz, binary = tmp_path / "npz", tmp_path / "bin" / "cifar-10-batches-bin"
    npz.mkdir()
    binary.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    labels = _labels(9)
    for name in ("train", "test"):
        np.savez_compressed(npz / f"cifar_{name}.npz", images=images, labels=labels)
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(9, -1)], axis=1)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        rows.tofile(binary / name)
    for folder in (npz, tmp_path / "bin"):
        dataset = index(f"one_class:2:{folder}")
        train = [r for r in dataset.records if r.split == "train"]
        assert len(train) == 3 and len(dataset.records) == 3 + 9
        assert np.array_equal(read_image(train[0].path), images[2])


# --- the protocols ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["leave_one_out", "one_class", "memae_30"])
def test_no_image_is_on_both_sides_and_only_normals_train(tmp_path: Path, protocol: str) -> None:
    dataset = index(f"{protocol}:0:{mnist(tmp_path)}")
    assert not keys(dataset, "train") & keys(dataset, "test")
    assert all(r.label == 0 for r in dataset.records if r.split == "train")
    assert len({r.path for r in dataset.records}) == len(dataset.records)
    for record in dataset.records:
        is_class = record.kind == "0"
        assert record.label == (is_class if protocol == "leave_one_out" else not is_class)


def test_leave_one_out_pools_everything(tmp_path: Path) -> None:
    dataset = index(f"leave_one_out:2:{mnist(tmp_path)}")
    normals, anomalous = 30, 15
    train = int(0.8 * normals)
    assert len(keys(dataset, "train")) == train
    assert len(keys(dataset, "test")) == normals - train + anomalous


def test_one_class_keeps_the_official_split(tmp_path: Path) -> None:
    dataset = index(f"one_class:2:{mnist(tmp_path)}")
    assert {p.parent.name for p in keys(dataset, "train")} == {"train-images-idx3-ubyte.gz"}
    assert {p.parent.name for p in keys(dataset, "test")} == {"t10k-images-idx3-ubyte.gz"}
    assert len(keys(dataset, "test")) == TEST


def test_memae_30_has_three_tenths_of_anomalies(tmp_path: Path) -> None:
    dataset = index(f"memae_30:1:{mnist(tmp_path)}")
    test = [r for r in dataset.records if r.split == "test"]
    normals = sum(r.label == 0 for r in test)
    assert len(keys(dataset, "train")) == 10 and normals == 5
    assert len(test) - normals == round(0.3 / 0.7 * 5)


def test_the_seed_draws_and_the_name_says_so(tmp_path: Path) -> None:
    mnist(tmp_path)
    one, same = (index(f"leave_one_out:2:{tmp_path}") for _ in range(2))
    other = index(f"leave_one_out:2@7:{tmp_path}")
    assert keys(one, "train") == keys(same, "train") != keys(other, "train")
    assert one.name == f"{tmp_path.name} leave_one_out 2"
    assert other.name == f"{tmp_path.name} leave_one_out 2 seed 7"


# --- along the main path ---------------------------------------------------------------------


def test_images_of_one_file_are_images_of_their_own(tmp_path: Path) -> None:
    dataset = index(f"one_class:1:{mnist(tmp_path)}")
    stream = ImageStream(dataset.train, size=(16, 16))
    images = Normals(stream)
    (batch,) = images.batches(100)
    assert batch.images.shape == (10, 16, 16, 3) and len(set(batch.digests)) == 10
    assert len(np.unique(images.groups())) == 10


def test_a_detector_goes_from_fit_to_figures(tmp_path: Path) -> None:
    source = f"one_class:1:{mnist(tmp_path)}"
    detector = amiss.GANomaly(image_size=(16, 16), width=4, epochs=1, batch_size=4)
    partial = tmp_path / "x.partial"
    detector.fit(source, max_false_alarm=0.4, run=amiss.Run(partial=partial))
    assert detector.training_facts["name"].endswith("one_class 1")
    report = amiss.evaluate(detector, source)
    assert len(report.judged) == TEST and 0 <= report.metrics["image_auroc"] <= 1
    path = next(r.path for r in index(source).test)
    found = detector.predict(path)
    assert isinstance(found, amiss.ImageResult) and found.path == path


# --- what cannot be used ---------------------------------------------------------------------


def test_an_image_that_the_file_does_not_hold_is_missing(tmp_path: Path) -> None:
    file = mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    for name in ("00030.pgm", "x.pgm"):
        with pytest.raises(ImageError, match="holds images 0 to 29") as caught:
            bytes_in_array(file / name)
        assert caught.value.reason == "missing"
    assert bytes_in_array(tmp_path / "plain.png") is None
    assert not is_array_file(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no idx file"),
        (bytes((0, 0, 13, 3)) + bytes(12), "no idx file"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 4, 4) + bytes(31), "cut short"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", *[2**32 - 1] * 3), "cut short"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 0, 4, 4), "of shape"),
    ],
)
def test_damaged_idx_files_are_named_errors(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        images_of(path)


def test_damaged_archives_are_named_errors(tmp_path: Path) -> None:
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(bytes(100))[:-12])
    with pytest.raises(DataError, match="cannot be unpacked"):
        images_of(packed)
    archive = tmp_path / "a.npz"
    archive.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="cannot be read as npz"):
        images_of(archive)
    np.savez(archive, images=np.array([{}], dtype=object), labels=np.zeros((2, 2), int))
    with pytest.raises(DataError, match="cannot be read as npz"):
        images_of(archive)
    with pytest.raises(DataError, match="its labels are"):
        labels_of(archive)
    np.savez(archive, pictures=np.zeros(3))
    with pytest.raises(DataError, match="no images"):
        images_of(archive)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError) as caught:
        index(f"one_class:1:{tmp_path}")
    assert "Pickles run code" in caught.value.hint


def test_what_a_protocol_cannot_have_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        index(f"one_class:1:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="holds no set of classes"):
        index(f"one_class:1:{tmp_path}")
    mnist(tmp_path)
    with pytest.raises(DataError, match="no class 9") as caught:
        index(f"one_class:9:{tmp_path}")
    assert "0, 1, 2" in caught.value.hint
    with pytest.raises(OptionError, match="names a protocol"):
        index(f"one_class:1:{tmp_path}", layout="flat")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("one_class:three:photos", "one_class:K:FOLDER, K the number"),
        ("leave_one_out:photos", "leave_one_out:K:FOLDER"),
        ("leave-one-out:3:photos", "Is leave_one_out meant"),
        ("oneclass:3:photos", "Is one_class meant"),
        ("photos", "Sets known by name"),
    ],
)
def test_a_misspelt_protocol_is_told_the_right_one(source: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        index(source)
    assert hint in caught.value.hint


def test_a_folder_of_arrays_asks_for_a_protocol(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files were found") as caught:
        index(mnist(tmp_path))
    assert f"one_class:3:{tmp_path}" in caught.value.hint


def test_figures_of_another_protocol_than_the_fits_carry_a_note(tmp_path: Path) -> None:
    mnist(tmp_path)
    options = {"image_size": (16, 16), "width": 4, "latent_dim": 4, "epochs": 1, "batch_size": 4}
    detector = amiss.GANomaly(**options).fit(f"one_class:1:{tmp_path}", max_false_alarm=0.5)
    same = amiss.evaluate(detector, f"one_class:1:{tmp_path}")
    other = amiss.evaluate(detector, f"one_class:2:{tmp_path}")
    of_others = amiss.evaluate(detector, f"memae_30:1:{tmp_path}")
    for report in (same, of_others):
        assert not any("was normal there" in note for note in report.notes)
    (note,) = [note for note in other.notes if "was normal there" in note]
    assert "one_class 1" in note and "one_class 2" in note
