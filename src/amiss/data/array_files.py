"""Sets that come as arrays of many images in one file: idx, as MNIST does, npz, CIFAR's binary.

Each image has a path of its own, as if the file were a folder:
`train-images-idx3-ubyte.gz/00123.pgm`. Reading that path gives the image as a PGM or PPM file would
hold it, so everything that takes files takes these. No file runs code: pickles, such as CIFAR's for
Python, are refused.
"""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from amiss.errors import DataError, ImageError
from amiss.types import Int64, UInt8

_IDX = ("-idx3-ubyte", "-idx3-ubyte.gz")
_CIFAR_BIN = (".bin",)
_CIFAR_SHAPE = (3, 32, 32)
_MAX_BYTES = 4 << 30  # of one array: what a hostile file may ask for ends here


def is_array_file(path: Path) -> bool:
    """Whether a file of this name may hold many images."""
    return path.name.lower().endswith((*_IDX, ".npz", *_CIFAR_BIN))


def image_path(file: Path, number: int, images: UInt8) -> Path:
    """The path of one of the images (N, H, W) or (N, H, W, 3) in a file."""
    return file / f"{number:05}.{'pgm' if images.ndim == 3 else 'ppm'}"


def bytes_in_array(path: Path) -> bytes | None:
    """An image of an array file as a PGM or PPM file would hold it; None for any other path.

    Raises ImageError where the array holds no such image.
    """
    file = path.parent
    if not is_array_file(file) or not file.is_file():
        return None
    images = images_of(file)
    number = int(path.stem) if path.stem.isdigit() else -1
    if not 0 <= number < len(images):
        raise ImageError(f"{path}: {file.name} holds images 0 to {len(images) - 1}.",
                         reason="missing")  # fmt: skip
    image: UInt8 = images[number]
    kind, (height, width) = "P5" if image.ndim == 2 else "P6", image.shape[:2]
    return f"{kind} {width} {height} 255\n".encode() + bytes(image.tobytes())


def images_of(file: Path) -> UInt8:
    """(N, H, W) or (N, H, W, 3) uint8; of an npz its array `images`.

    Raises DataError for a file that is damaged or holds something else.
    """
    stat = file.stat()
    return _images(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _images(file: Path, changed: int, size: int) -> UInt8:
    del changed, size  # what tells a file from one written over it
    lower = file.name.lower()
    if lower.endswith(_IDX):
        images = _idx(file, 3)
    elif lower.endswith(".npz"):
        images = _npz(file, "images")
    else:
        images = _cifar(file)[0]
    colour = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (images.ndim == 3 or colour) or not len(images):
        raise DataError(
            f"{file}: its images are {images.dtype} of shape {images.shape}.",
            hint="Allowed is uint8 of shape (N, H, W) or (N, H, W, 3).",
        )
    return images


def labels_of(file: Path) -> Int64:
    """(N,) int64 of an idx1 file, an npz (its array `labels`) or CIFAR's binary version."""
    lower = file.name.lower()
    if lower.endswith(".npz"):
        labels = _npz(file, "labels")
    else:
        labels = _cifar(file)[1] if lower.endswith(_CIFAR_BIN) else _idx(file, 1)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{file}: its labels are {labels.dtype} of shape {labels.shape}.")
    found: Int64 = labels.astype(np.int64)
    return found


def _idx(file: Path, axes: int) -> UInt8:
    """An idx file of uint8: two zeros, the type 8, the number of axes, their lengths, the data."""
    data = _unpacked(file)
    head = 4 + 4 * axes
    if len(data) < head or data[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{file}: is no idx file of uint8 with {axes} axes.")
    shape = struct.unpack(f">{axes}I", data[4:head])
    if int(np.prod(shape, dtype=object)) != len(data) - head:
        raise DataError(
            f"{file}: should hold {' x '.join(map(str, shape))} values and holds "
            f"{len(data) - head}: cut short or damaged.",
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _unpacked(file: Path) -> bytes:
    if file.suffix.lower() != ".gz":
        return file.read_bytes()
    try:
        with gzip.open(file) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be unpacked ({error}).") from error
    if len(data) > _MAX_BYTES:
        raise DataError(f"{file}: unpacks to more than {_MAX_BYTES >> 30} GiB.")
    return data


def _npz(file: Path, name: str) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        if sizes.get(f"{name}.npy", 0) > _MAX_BYTES:
            raise DataError(f"{file}: {name} unpacks to more than {_MAX_BYTES >> 30} GiB.")
        with np.load(file, allow_pickle=False) as arrays:
            if name not in arrays:
                raise DataError(f"{file}: holds {', '.join(arrays)}, and no {name}.")
            return arrays[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file}: cannot be read as npz ({error}).") from error


def _cifar(file: Path) -> tuple[UInt8, UInt8]:
    """CIFAR-10's binary version: for each image its label and 3 x 32 x 32 values."""
    data = np.frombuffer(file.read_bytes(), np.uint8)
    row = 1 + int(np.prod(_CIFAR_SHAPE))
    if not len(data) or len(data) % row:
        raise DataError(f"{file}: is not of CIFAR-10's binary version, rows of {row} bytes.")
    rows = data.reshape(-1, row)
    images = rows[:, 1:].reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0]
