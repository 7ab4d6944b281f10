"""One look at each file of a set: what `check` needs to know, from a single decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from amiss.data.decoding import read_bytes
from amiss.data.images import decode_bytes, is_no_mask, mask_limit, read_mask_values
from amiss.data.stream import usable_cores
from amiss.data.window import Window
from amiss.errors import ImageError
from amiss.run import Progress
from amiss.types import UInt8

THUMB = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageLook:
    """What one image file holds. `error` is set, and the rest empty, when it cannot be read.

    `thumb` (64, 64) uint8 gray. `pixel_hash` is the same for two files that decode to the same
    pixels, whatever the format, and whether gray is stored once or three times.
    """

    path: Path
    error: ImageError | None = None
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    file_hash: bytes = b""
    pixel_hash: bytes = b""
    mean: float = 0.0
    is_constant: bool = False
    thumb: UInt8 | None = None

    @property
    def reason(self) -> str:
        """Why it cannot be read, as a word of `decoding.Reason`."""
        return (self.error.reason if self.error is not None else "") or "unreadable"


@dataclass(frozen=True, slots=True)
class MaskLook:
    """What one mask file holds; `positive` is the share of positive pixels, `levels` the number
    of different values. `is_picture`: a photograph, a heat map and the like."""

    path: Path
    error: ImageError | None = None
    size: tuple[int, int] = (0, 0)
    levels: int = 0
    largest: float = 0.0
    positive: float = 0.0
    is_picture: bool = False

    @property
    def is_ambiguous(self) -> bool:
        """Whether the values are neither 0/1 nor 0/255 (see `images.read_mask`)."""
        return mask_limit(self.largest) is None


def look_at_image(path: Path, window: Window | None = None) -> ImageLook:
    """Read and decode one image."""
    try:
        data = read_bytes(path)
        image, mode = decode_bytes(data, path, window=window)
    except ImageError as error:
        return ImageLook(path, error)
    extrema = image.getextrema()
    channels = extrema if isinstance(extrema[0], tuple) else (extrema,)
    gray = image.convert("L").resize((THUMB, THUMB), Image.Resampling.BILINEAR)
    thumb = np.array(gray)
    return ImageLook(
        path,
        size=(image.height, image.width),
        mode=mode,
        file_hash=hashlib.sha256(data).digest(),
        pixel_hash=_pixel_hash(image),
        mean=float(thumb.mean()),
        is_constant=all(low == high for low, high in channels),
        thumb=thumb,
    )


def look_at_mask(path: Path) -> MaskLook:
    """Read and decode one mask."""
    try:
        values = read_mask_values(path)
    except ImageError as error:
        return MaskLook(path, error)
    largest = float(values.max())
    limit = mask_limit(largest)
    return MaskLook(
        path,
        size=(values.shape[0], values.shape[1]),
        levels=int(np.unique(values).size),
        largest=largest,
        positive=0.0 if limit is None else float((values > limit).mean()),
        is_picture=limit is not None and is_no_mask(values),
    )


def look_at_all(
    look: Callable[[Path], T],
    paths: Sequence[Path],
    stage: str,
    workers: int | None,
    progress: Progress,
) -> dict[Path, T]:
    """`look` at every path in threads, told to `progress` as it goes."""
    looks: dict[Path, T] = {}
    pool = ThreadPoolExecutor(workers or min(8, usable_cores()), thread_name_prefix="amiss-check")
    try:
        futures = {pool.submit(look, path): path for path in paths}
        for done, future in enumerate(as_completed(futures), 1):
            looks[futures[future]] = future.result()
            progress(stage, done, len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {path: looks[path] for path in paths}


def _pixel_hash(image: Image.Image) -> bytes:
    """SHA-256 of size and pixels; RGB with three equal channels counts as gray."""
    pixels = np.asarray(image)
    # A few rows tell a colour image, so that the whole of it is rarely compared for nothing.
    if pixels.ndim == 3 and _is_gray(pixels[:: max(1, len(pixels) // 8)]) and _is_gray(pixels):
        pixels = pixels[:, :, 0]
    sha = hashlib.sha256(f"{pixels.shape}".encode())
    sha.update(np.ascontiguousarray(pixels).data)
    return sha.digest()


def _is_gray(pixels: UInt8) -> bool:
    return bool(
        np.array_equal(pixels[:, :, 0], pixels[:, :, 1])
        and np.array_equal(pixels[:, :, 0], pixels[:, :, 2])
    )
