"""Data protocols: how papers make normal and anomalous images out of the classes of a set.

Figures of one protocol say nothing beside those of another, so each has a name that stands in the
detector and its report: `leave_one_out:3:FOLDER`, `one_class:3:FOLDER`, `memae_30:3:FOLDER`; a seed
other than 0 as `leave_one_out:3@1:FOLDER`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from amiss.data.array_files import image_path, images_of, labels_of
from amiss.errors import DataError
from amiss.types import ANOMALOUS, NORMAL, Int64, Record, UInt8

_TRAIN_SHARE = 0.8  # of the normals, where all images are pooled (GANomaly)
_ANOMALOUS_SHARE = 0.3  # of the test images (MemAE)


class _Part(NamedTuple):
    """One array file with the class of each of its images."""

    file: Path
    images: UInt8
    labels: Int64


class Classes(NamedTuple):
    """A set of images by class: the parts of its official training and test images."""

    train: list[_Part]
    test: list[_Part]


class Asked(NamedTuple):
    """What a source such as `leave_one_out:3@1:FOLDER` asks for."""

    protocol: str
    label: int
    seed: int
    folder: Path


def asked_protocol(source: str) -> Asked | None:
    """What a source asks for; None where it names no protocol."""
    found = re.fullmatch(r"(\w+):(\d+)(?:@(\d+))?:(.+)", source, re.DOTALL)
    if found is None or found[1] not in PROTOCOLS:
        return None
    return Asked(found[1], int(found[2]), int(found[3] or 0), Path(found[4]))


def misspelt(source: str) -> str:
    """What is amiss with a source that seems to mean a protocol, as a hint; else empty."""
    name, _, rest = source.partition(":")
    if not rest:
        return ""
    if name in PROTOCOLS:
        of_kinds = ", or one_class:KIND/A:FOLDER with A known defects of a kind"
        return (
            f"{name} is asked for as {name}:K:FOLDER, K the number of a class, such as "
            f"{name}:3:FOLDER{of_kinds if name == 'one_class' else ''}."
        )
    if name == "multi_class":
        return "multi_class is asked for as multi_class:A:FOLDER, A the number of known defects."
    plain = name.lower().replace("-", "_").replace(" ", "_")
    near = difflib.get_close_matches(plain, PROTOCOLS, n=1)
    return f"Is {near[0]} meant, as in {near[0]}:3:FOLDER?" if near else ""


def holds_classes(folder: Path) -> bool:
    """Whether a protocol could read the array files there."""
    try:
        find_classes(folder)
    except DataError:
        return False
    return True


def read_protocol(asked: Asked) -> list[Record]:
    """The records of a protocol over a folder of array files.

    Raises DataError where the folder holds none, or no image of the class.
    """
    classes = find_classes(asked.folder)
    known = np.unique(np.concatenate([p.labels for p in classes.train + classes.test]))
    if asked.label not in known:
        raise DataError(
            f"{asked.folder}: holds no class {asked.label}.",
            hint=f"Its classes are {', '.join(map(str, known))}.",
        )
    return PROTOCOLS[asked.protocol](classes, asked.label, asked.seed)


def leave_one_out(classes: Classes, label: int, seed: int) -> list[Record]:
    """Nine classes are normal, one anomalous. All images are pooled; four fifths of the normals are
    for training, the others and all of the anomalous class for the test. As GANomaly's code."""
    pool, normal = _pooled(classes, lambda labels: labels != label)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(normal))
    count = int(_TRAIN_SHARE * len(order))
    return _records(pool, normal, order[:count], np.r_[order[count:], np.flatnonzero(~normal)])


def one_class(classes: Classes, label: int, seed: int) -> list[Record]:
    """One class is normal: its official training images are for training, all official test images
    for the test. Nothing is drawn."""
    del seed
    pool, normal = _pooled(classes, lambda labels: labels == label)
    count = sum(len(part.labels) for part in classes.train)
    is_train = np.arange(len(pool)) < count
    return _records(pool, normal, np.flatnonzero(normal & is_train), np.flatnonzero(~is_train))


def memae_30(classes: Classes, label: int, seed: int) -> list[Record]:
    """One class is normal. All images are pooled; two thirds of the normals are for training, the
    others for the test, of which three tenths are anomalous images, drawn from all other classes.

    As MemAE's experiments are remembered; its paper was not at hand.
    """
    pool, normal = _pooled(classes, lambda labels: labels == label)
    random = np.random.default_rng(seed)
    order = random.permutation(np.flatnonzero(normal))
    count = 2 * len(order) // 3
    share = _ANOMALOUS_SHARE / (1 - _ANOMALOUS_SHARE)
    wanted = round(share * (len(order) - count))
    others = random.permutation(np.flatnonzero(~normal))[:wanted]
    return _records(pool, normal, order[:count], np.r_[order[count:], others])


Protocol = Callable[[Classes, int, int], list[Record]]
PROTOCOLS: dict[str, Protocol] = {
    "leave_one_out": leave_one_out,
    "one_class": one_class,
    "memae_30": memae_30,
}

_Place = tuple[Path, int]  # path of an image, its class


def _pooled(
    classes: Classes, is_normal: Callable[[Int64], np.ndarray[tuple[int], np.dtype[np.bool_]]]
) -> tuple[list[_Place], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """All images, those for training first, and which of them are normal."""
    parts = classes.train + classes.test
    pool = [
        (image_path(part.file, number, part.images), int(kind))
        for part in parts
        for number, kind in enumerate(part.labels)
    ]
    return pool, np.concatenate([is_normal(part.labels) for part in parts])


def _records(
    pool: Sequence[_Place],
    normal: np.ndarray[tuple[int], np.dtype[np.bool_]],
    train: Int64,
    test: Int64,
) -> list[Record]:
    found = []
    for numbers, split in ((np.sort(train), "train"), (np.sort(test), "test")):
        for number in numbers.tolist():
            path, kind = pool[number]
            label = NORMAL if normal[number] else ANOMALOUS
            found.append(Record(path, label, split=split, kind=str(kind)))
    return found


# --- where the classes are -------------------------------------------------------------------


def find_classes(folder: Path) -> Classes:
    """The parts of a set in a folder: idx files as MNIST and Fashion-MNIST have them, also where
    torchvision puts them; two npz files with `images` and `labels`; CIFAR-10's binary version.

    Raises DataError where there is none of these.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.")
    places = [folder, folder / "raw", *sorted(folder.glob("*/raw")),
              folder / "cifar-10-batches-bin"]  # fmt: skip
    for place in places:
        found = _idx_files(place) or _npz_files(place) or _cifar_files(place)
        if found is not None:
            return found
    pickled = (folder / "cifar-10-batches-py").is_dir() or (folder / "data_batch_1").is_file()
    hint = "Use idx files, npz files with images and labels, or CIFAR-10's binary version."
    if pickled:
        hint = "Pickles run code and are not read: use CIFAR-10's binary version."
    raise DataError(f"{folder}: holds no set of classes.", hint=hint)


def _idx_files(folder: Path) -> Classes | None:
    parts = []
    for word in ("train", "t10k"):
        images = _either(folder / f"{word}-images-idx3-ubyte")
        labels = _either(folder / f"{word}-labels-idx1-ubyte")
        if images is None or labels is None:
            return None
        parts.append(_part(images, images_of(images), labels_of(labels)))
    return Classes([parts[0]], [parts[1]])


def _either(path: Path) -> Path | None:
    """A file as it is or packed; None where there is neither."""
    packed = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _npz_files(folder: Path) -> Classes | None:
    files = sorted(folder.glob("*.npz"))
    train = [f for f in files if "train" in f.stem.lower()]
    test = [f for f in files if "test" in f.stem.lower()]
    if len(train) != 1 or len(test) != 1 or train == test:
        return None
    parts = [_part(f, images_of(f), labels_of(f)) for f in (train[0], test[0])]
    return Classes([parts[0]], [parts[1]])


def _cifar_files(folder: Path) -> Classes | None:
    train, test = sorted(folder.glob("data_batch_[1-5].bin")), folder / "test_batch.bin"
    if not train or not test.is_file():
        return None
    return Classes(
        [_part(f, images_of(f), labels_of(f)) for f in train],
        [_part(test, images_of(test), labels_of(test))],
    )


def _part(file: Path, images: UInt8, labels: Int64) -> _Part:
    if len(images) != len(labels):
        raise DataError(f"{file}: {len(images)} images, and {len(labels)} labels.")
    return _Part(file, images, labels)
